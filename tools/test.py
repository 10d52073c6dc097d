# Copyright (c) dan_mm contributors. All rights reserved.
# Modified from
# https://github.com/open-mmlab/mmpretrain/blob/main/tools/test.py
import argparse
import os
import os.path as osp
import warnings
from copy import deepcopy

import mmengine
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

import dan_mm
from dan_mm.checkpoint import load_classes
from dan_mm.datasets.base import FERDataset
from dan_mm.engine import (CheckpointFitHook, init_cpu_processes,
                           leave_cpu_processes)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test (and evaluate) a model')
    parser.add_argument(
        'config', help='test config file; a config is code and is executed')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--data-from',
        metavar='CONFIG',
        help='test on the data set of another config, with the pipeline and '
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
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config with key=value pairs. A list is '
        'key="[a,b]" or key=a,b; nested lists and tuples are allowed: '
        'key="[(a,b),(c,d)]", with the quotation marks and without blanks')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='test with automatic mixed precision')
    parser.add_argument(
        '--show-dir', help='the folder to save pictures of predictions in')
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
        '--wait-time',
        type=float,
        default=2,
        help='display time of every window, in seconds')
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='whether to disable pin_memory in dataloaders')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: that of the config (`tta_pipeline` and '
        '`tta_model`), or the average of the scores of the picture and its '
        'mirror image')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes --local-rank, older ones --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs --out, the file to write to')
    is_pickle = args.out and args.out.endswith(('.pkl', '.pickle'))
    if args.out and args.out_item != 'metrics' and not is_pickle:
        parser.error(f'--out got {args.out}, expected a .pkl file for '
                     'predictions; use `--out-item metrics` for metrics')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def take_data(cfg: Config, path: str) -> None:
    """Take the test data set of another config, without its pipeline."""
    loader = Config.fromfile(path).get('test_dataloader')
    if loader is None:
        raise SystemExit(f'--data-from found no `test_dataloader` in {path}, '
                         'expected one. Give another config.')
    dataset = loader.dataset
    if 'dataset' in dataset or 'datasets' in dataset:
        raise SystemExit(
            f'--data-from found the wrapper {dataset.type} in {path}, '
            'expected a data set. Give a config for each data set in it.')
    dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset = dataset


def match_classes(cfg: Config, needed: bool = False) -> None:
    """Have a data set with other classes than the checkpoint's give labels of
    the latter, by their names.

    Args:
        cfg (Config): The config.
        needed (bool): Whether the checkpoint must have the names of its
            classes. Defaults to False.

    Raises:
        SystemExit: If it has not, or has another number of them than the
            model of outputs.
    """
    classes = load_classes(cfg.load_from)
    if classes is None:
        if needed:
            raise SystemExit(
                f'--data-from found no names of classes in {cfg.load_from}, '
                'expected those that it was trained on: without them its '
                'outputs mean nothing on other data. Convert an original '
                'checkpoint with `--dataset`, or take one that '
                '`tools/train.py` wrote.')
        warnings.warn(
            f'The checkpoint {cfg.load_from} has no names of classes: its '
            'outputs are taken to be in the order of the data set. Convert '
            'an original checkpoint with `--dataset`.')
        return
    model = cfg.model.get('module', cfg.model)
    outputs = model.get('head', {}).get('num_classes', len(classes))
    if outputs != len(classes):
        raise SystemExit(
            f'The checkpoint {cfg.load_from} has the names of {len(classes)} '
            f'classes, {classes}, the model of this config has {outputs} '
            'outputs, expected as many. Use it with the config that it was '
            'trained with.')
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


def log_classes(runner: Runner) -> None:
    """Log which classes have no counterpart."""
    with warnings.catch_warnings():
        # It is in the log.
        warnings.filterwarnings('ignore', '.*without counterpart')
        dataset = runner.test_loop.dataloader.dataset
    if getattr(dataset, 'val_split', 0) and dataset.split != 'train':
        runner.logger.info(
            f'The test is on {len(dataset)} pictures, the part that '
            f'`val_split={dataset.val_split:.3g}` takes out of '
            f"{dataset.data_root}. `split='train'` with `val_split=0` is all "
            'of them.')
    if getattr(dataset, 'target_classes', None) is None:
        return
    classes = dataset.metainfo['classes']
    runner.logger.info(
        f'The data set has the classes {dataset.own_classes}, the model '
        f'{classes}: they are matched by their names. '
        f'{dataset.describe_unmatched() or "Each has its counterpart."} All '
        f'{len(classes)} classes of the model stay allowed as predictions.')


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the command line into the config."""
    cfg.launcher = args.launcher

    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs',
                                osp.splitext(osp.basename(args.config))[0])

    cfg.load_from = args.checkpoint

    if args.data_from is not None:
        take_data(cfg, args.data_from)

    if args.amp:
        cfg.test_cfg.fp16 = True

    if args.show or args.show_dir is not None:
        options = dict(
            enable=True, out_dir=args.show_dir, interval=args.interval)
        if cfg.default_hooks.visualization.type == 'DetVisualizationHook':
            # That of MMDet draws every picture, and puts a relative folder
            # into itself.
            folder = args.show_dir and osp.abspath(args.show_dir)
            options = dict(draw=True, test_out_dir=folder)
        cfg.default_hooks.visualization.update(
            show=args.show, wait_time=args.wait_time, **options)

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

    defaults = ConfigDict(
        # Pinned memory is for the copy to an accelerator.
        pin_memory=get_device() != 'cpu' and not args.no_pin_memory,
        collate_fn=dict(type='default_collate'))
    defaults.update(cfg.test_dataloader)
    cfg.test_dataloader = defaults
    if args.no_pin_memory:
        cfg.test_dataloader.pin_memory = False

    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)

    match_classes(cfg, needed=args.data_from is not None)
    return cfg


def main() -> None:
    args = parse_args()
    dan_mm.register_all_modules(init_default_scope=False)
    cfg = merge_args(Config.fromfile(args.config), args)
    init_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CheckpointFitHook())
    log_classes(runner)

    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=args.out))

    metrics = runner.test()

    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)
    leave_cpu_processes()


if __name__ == '__main__':
    main()
