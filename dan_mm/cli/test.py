# Copyright (c) dan_mm contributors. All rights reserved.
# Modified from
# https://github.com/open-mmlab/mmpretrain/blob/main/tools/test.py
"""Test a model on a dataset."""
import argparse
import logging
import os
import os.path as osp
import sys
import warnings
from copy import deepcopy
from numbers import Real
from typing import IO, TYPE_CHECKING, Optional, Sequence

from dan_mm.files import check_file, check_folder
from .config import (add_common_arguments, check_data, check_names,
                     find_config, refuse_checkpoints, set_loader_defaults)
from .output import add_verbose, results_only

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

HELP = 'test a model on a dataset'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'config',
        help='test config file, or the name of one of this project; a config '
        'is code and is executed')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--data-from',
        metavar='CONFIG',
        help='test on the dataset of another config, with the pipeline and '
        'batch size of this one; classes are matched by their names')
    parser.add_argument(
        '--work-dir', help='the folder to save the evaluation metrics in')
    parser.add_argument('--out', help='the file to write results to')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='whether to write the metrics (.json) or the predictions (.pkl), '
        'the default')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='test with automatic mixed precision')
    parser.add_argument(
        '--show-dir', help='the folder to save images of predictions in')
    parser.add_argument(
        '--show',
        action='store_true',
        help='whether to display predictions in a window')
    parser.add_argument(
        '--interval',
        type=int,
        default=1,
        help='visualize one sample in each interval')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: that of the config (`tta_pipeline` and '
        '`tta_model`), or the average of the scores of the image and its '
        'mirror image')
    add_common_arguments(parser)
    add_verbose(parser)


def check_out(args: argparse.Namespace) -> None:
    """Refuse options of the file to write that do not go together."""
    if args.out is None:
        if args.out_item is not None:
            raise SystemExit('--out-item needs --out, the file to write to')
        return
    kind, endings = 'predictions', ('.pkl', '.pickle')
    if args.out_item == 'metrics':
        kind, endings = 'metrics', ('.json', )
    if not args.out.endswith(endings):
        raise SystemExit(
            f'--out got {args.out}, expected a {endings[0]} file for {kind}. '
            'Give one, or choose with --out-item.')
    try:
        check_file(args.out, [args.config, args.checkpoint])
        check_folder(osp.dirname(args.out))
    except (OSError, ValueError) as error:
        raise SystemExit(f'--out: {error}')
    if osp.isdir(args.out):
        raise SystemExit(f'--out got the folder {args.out}, expected the '
                         'path of a file')


def take_data(cfg: 'Config', path: str) -> None:
    """Take the test dataset of another config, without its pipeline."""
    from mmengine.config import Config
    loader = Config.fromfile(find_config(path)).get('test_dataloader')
    if loader is None:
        raise SystemExit(f'--data-from found no `test_dataloader` in {path}, '
                         'expected one. Give another config.')
    dataset = loader.dataset
    if 'dataset' in dataset or 'datasets' in dataset:
        raise SystemExit(
            f'--data-from found the wrapper {dataset.type} in {path}, '
            'expected a dataset. Give a config for each dataset in it.')
    dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset = dataset


def match_classes(cfg: 'Config', needed: bool = False) -> None:
    """Have a dataset with other classes than the checkpoint's give labels of
    the latter, by their names."""
    from mmpretrain.registry import DATASETS

    from dan_mm.checkpoint import load_classes
    from dan_mm.datasets.base import FERDataset
    classes = load_classes(cfg.load_from)
    if classes is None:
        found = f'The checkpoint {cfg.load_from} has no names of classes'
        hint = 'Convert an original checkpoint with `--dataset`.'
        if needed:
            raise SystemExit(f'{found}, expected them for --data-from. {hint}')
        warnings.warn(f'{found}: its outputs are taken to be in the order of '
                      f'the dataset. {hint}')
        return
    model = cfg.model.get('module', cfg.model)
    outputs = model.get('head', {}).get('num_classes', len(classes))
    if outputs != len(classes):
        raise SystemExit(
            f'The checkpoint {cfg.load_from} has the names of {len(classes)} '
            f'classes, {classes}, the model of this config has {outputs} '
            'outputs. Use the config that it was trained with.')
    dataset = cfg.test_dataloader.dataset
    data_class = dataset.type
    if isinstance(data_class, str):
        data_class = DATASETS.get(data_class)
    if (dataset.get('target_classes')
            or not issubclass(data_class or object, FERDataset)):
        return
    own = DATASETS.build({**dataset, 'pipeline': (), 'lazy_init': True})
    if own.own_classes != classes:
        dataset.target_classes = classes


def log_classes(runner: 'Runner') -> None:
    """Log which classes have no counterpart."""
    with warnings.catch_warnings():
        # It is in the log.
        warnings.filterwarnings('ignore', '.*without counterpart')
        dataset = runner.test_loop.dataloader.dataset
    if getattr(dataset, 'val_split', 0) and dataset.split != 'train':
        runner.logger.info(
            f'The test is on {len(dataset)} images, the part that '
            f'`val_split={dataset.val_split:.3g}` takes out of '
            f"{dataset.data_root}. `split='train'` with `val_split=0` is all "
            'of them.')
    if getattr(dataset, 'target_classes', None) is None:
        return
    classes = dataset.metainfo['classes']
    runner.logger.info(
        f'The dataset has the classes {dataset.own_classes}, the model '
        f'{classes}: they are matched by their names. '
        f'{dataset.describe_unmatched() or "Each has its counterpart."} All '
        f'{len(classes)} classes of the model stay allowed as predictions.')


def merge_args(cfg: 'Config', args: argparse.Namespace) -> 'Config':
    """Merge the command line into the config."""
    from mmengine.config import ConfigDict
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        './work_dirs', name)
    cfg.load_from = args.checkpoint
    # The config in the work folder of a resumed training says so.
    cfg.resume = False

    if args.data_from is not None:
        take_data(cfg, args.data_from)
    # Before the model is wrapped
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)

    if args.amp:
        cfg.test_cfg.fp16 = True

    if args.show or args.show_dir is not None:
        options = dict(
            enable=True, out_dir=args.show_dir, interval=args.interval)
        if cfg.default_hooks.visualization.type == 'DetVisualizationHook':
            # That of MMDet draws every image, and puts a relative folder
            # into itself.
            folder = args.show_dir and osp.abspath(args.show_dir)
            options = dict(draw=True, test_out_dir=folder)
        cfg.default_hooks.visualization.update(
            show=args.show, wait_time=2, **options)

    if args.tta:
        if 'tta_model' not in cfg:
            cfg.tta_model = dict(type='mmpretrain.AverageScoreTTA')
        if 'tta_pipeline' not in cfg:
            *before, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
            flip = dict(
                type='TestTimeAug',
                transforms=[[
                    dict(type='RandomFlip', prob=1.),
                    dict(type='RandomFlip', prob=0.)
                ], [pack]])
            cfg.tta_pipeline = [*before, flip]
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline

    set_loader_defaults(cfg.test_dataloader)
    match_classes(cfg, needed=args.data_from is not None)
    return cfg


def build_runner(cfg: 'Config', verbose: bool) -> 'Runner':
    """Build a runner that logs to the standard error: unless ``verbose``,
    without its settings and environment, which are in its log file, and at
    most five times on the way."""
    from mmengine.hooks import LoggerHook
    from mmengine.runner import Runner
    runner = Runner.from_cfg(cfg)
    if verbose:
        return runner
    for handler in runner.logger.handlers:
        # That of the standard output, which is hidden
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
    batches = len(runner.test_loop.dataloader)
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook):
            hook.interval = max(hook.interval, -(-batches // 5))
    return runner


def print_metrics(runner: 'Runner', metrics: dict, output: IO[str]) -> None:
    """Print the metrics that are numbers, a line each."""
    from mmengine.dist import is_main_process
    if not is_main_process():
        return
    numbers = {
        name: value
        for name, value in metrics.items() if isinstance(value, Real)
    }
    width = max(map(len, numbers), default=0)
    number = len(runner.test_loop.dataloader.dataset)
    print(
        f'\nTested on {number} image{"" if number == 1 else "s"}:',
        file=output)
    for name, value in numbers.items():
        # In percent, or a ratio
        digits = 2 if name.startswith('accuracy') else 4
        print(f'{name:{width}}  {value:.{digits}f}', file=output)
    output.flush()


def test(cfg: 'Config', args: argparse.Namespace, output: IO[str]) -> None:
    """Test, and print the metrics."""
    import mmengine
    from mmengine.dist import is_main_process

    from dan_mm.engine import CheckpointFitHook
    from dan_mm.evaluation import AtomicDumpResults
    runner = build_runner(cfg, args.verbose)
    runner.register_hook(CheckpointFitHook())
    log_classes(runner)
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(
            AtomicDumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        mmengine.dump(metrics, args.out, backend_args=dict(backend='atomic'))
    print_metrics(runner, metrics, output)


def run(args: argparse.Namespace) -> int:
    args.config = find_config(args.config)
    check_out(args)
    with refuse_checkpoints(), results_only(args.verbose) as output:
        from mmengine.config import Config

        import dan_mm
        from dan_mm.engine import init_cpu_processes, leave_cpu_processes
        from dan_mm.engine.work_folder import check_writable
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        dan_mm.register_all_modules(init_default_scope=False)
        cfg = merge_args(Config.fromfile(args.config), args)
        check_names(cfg)
        check_data(cfg, 'test')
        check_writable(cfg.work_dir)
        init_cpu_processes(cfg)
        test(cfg, args, output)
        leave_cpu_processes()
    return 0


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(argv))
