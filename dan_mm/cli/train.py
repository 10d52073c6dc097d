# Copyright (c) dan_mm contributors. All rights reserved.
# Modified from
# https://github.com/open-mmlab/mmpretrain/blob/main/tools/train.py
"""Train a model."""
import argparse
import os
import os.path as osp
import shlex
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Optional, Sequence

from .config import (add_common_arguments, check_data, check_names,
                     check_start, find_config, refuse_checkpoints,
                     set_loader_defaults)

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

HELP = 'train a model, or fine-tune one on a folder of images'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'config',
        help='train config file, or the name of one of this project; a config '
        'is code and is executed')
    parser.add_argument(
        '--work-dir', help='the folder to save logs and checkpoints in')
    parser.add_argument(
        '--resume',
        nargs='?',
        type=str,
        const='auto',
        help='resume from the given checkpoint, or without one from the '
        'latest in the work folder')
    parser.add_argument(
        '--finetune',
        nargs=2,
        metavar=('CHECKPOINT', 'FOLDER'),
        help='start from a checkpoint of this config and train on the '
        'images of a folder, which has a folder for each class, or folders '
        '`train`, `val` and `test` with one for each class')
    parser.add_argument(
        '--seed',
        type=int,
        help='the seed of all random numbers; it also allows deterministic '
        'algorithms only, so that a second run gives the same numbers on the '
        'same machine')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train with mixed precision; without an accelerator that is '
        'bfloat16 on the CPU')
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='whether not to evaluate the checkpoint during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual batch size over that of '
        'the recipe')
    add_common_arguments(parser)


def finetune(cfg: 'Config', checkpoint: str, folder: str) -> None:
    """Start from a checkpoint and take the data from a folder."""
    from dan_mm.datasets import FERFolder
    try:
        # The order of the classes is that of the training set everywhere.
        metainfo = FERFolder(folder, split='train').metainfo
        classes = metainfo['classes']
        for split in 'val', 'test':
            FERFolder(folder, split=split, classes=classes)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'--finetune: {error}')
    if 'alignment' not in metainfo:
        # Predictions are made on aligned crops.
        print(
            f'Warning: {folder} does not say how its faces were aligned. If '
            'it has photographs, train on their faces instead: dan-mm align '
            f'{shlex.quote(folder)} ALIGNED --like {shlex.quote(checkpoint)}',
            file=sys.stderr)
    for key in 'dataloader', 'evaluator', 'cfg':
        if cfg.get(f'val_{key}') is None:
            cfg[f'val_{key}'] = deepcopy(cfg[f'test_{key}'])
    for split in 'train', 'val', 'test':
        loader = cfg[f'{split}_dataloader']
        loader.dataset = dict(
            type='FERFolder',
            data_root=folder,
            split=split,
            classes=classes,
            pipeline=loader.dataset.pipeline)
    cfg.model.head.num_classes = len(classes)
    cfg.data_preprocessor.num_classes = len(classes)
    cfg.model.backbone.init_cfg = None
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    cfg.load_from = checkpoint


def drop_single_image(cfg: 'Config') -> None:
    """Leave out a last batch of one image, which can't be trained on."""
    from mmpretrain.registry import DATASETS
    loader = cfg.train_dataloader
    dataset = {**loader.dataset, 'pipeline': ()}
    images = len(DATASETS.build(dataset))
    share = -(-images // int(os.environ.get('WORLD_SIZE', 1)))
    if share > loader.batch_size and share % loader.batch_size == 1:
        loader.drop_last = True


def merge_args(cfg: 'Config', args: argparse.Namespace) -> 'Config':
    """Merge the command line into the config."""
    from mmengine.device import get_device

    from dan_mm.engine.work_folder import find_resumable
    name = osp.splitext(osp.basename(args.config))[0]
    if args.finetune:
        finetune(cfg, *args.finetune)
        name += f'_{osp.basename(osp.abspath(args.finetune[1]))}'
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.finetune:
        drop_single_image(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None

    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        './work_dirs', name)

    if args.seed is not None:
        cfg.randomness = dict(seed=args.seed, deterministic=True)
        # Without it, deterministic matrix products fail on a GPU.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

    if args.amp:
        if get_device() == 'cpu':
            cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
        else:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')

    if args.resume == 'auto':
        # Fine-tuning that has not begun begins.
        begins = cfg.load_from and not find_resumable(cfg.work_dir).path
        cfg.resume = not begins
        cfg.load_from = cfg.load_from if begins else None
    elif args.resume is not None:
        cfg.resume = True
        cfg.load_from = args.resume

    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise SystemExit(
                f'--auto-scale-lr found no `auto_scale_lr` in {args.config}. '
                'Where the schedule sets the rate, as OneCycleLR does, set '
                '`eta_max` with --cfg-options.')
        cfg.auto_scale_lr.enable = True

    for split in 'train', 'val', 'test':
        loader = cfg.get(f'{split}_dataloader')
        if loader is not None:
            set_loader_defaults(loader)
            loader.setdefault('persistent_workers',
                              loader.get('num_workers', 0) > 0)
    check_schedule(cfg)
    return cfg


def check_schedule(cfg: 'Config') -> None:
    """Refuse a schedule that is over before the training, which would fail
    hours later."""
    schedulers = cfg.get('param_scheduler') or []
    epochs = cfg.train_cfg.get('max_epochs')
    keys = {'param_scheduler': schedulers}
    if not isinstance(schedulers, dict):
        keys = {f'param_scheduler.{i}': s for i, s in enumerate(schedulers)}
    for scheduler in keys.values():
        total = scheduler.get('total_steps')
        if scheduler.get('by_epoch') and total and epochs and total < epochs:
            options = ' '.join(
                f'{key}.{field}={other[field] * epochs / total:g}'
                for key, other in keys.items()
                for field in ('total_steps', 'begin', 'end')
                if other.get('by_epoch') and other.get(field))
            raise SystemExit(
                f'{scheduler.type} has total_steps={total}, expected at least '
                f'train_cfg.max_epochs={epochs}. Set both with --cfg-options: '
                f'{options}')


def find_trained(runner: 'Runner') -> Optional[str]:
    """Find the checkpoint of a training that is the best on its validation
    set, or the last one."""
    from dan_mm.engine.work_folder import find_resumable
    best = runner.message_hub.runtime_info.get('best_ckpt')
    if best and osp.isfile(best):
        return best
    return find_resumable(runner.work_dir).path


def say_what_next(runner: 'Runner') -> None:
    """Print where the model is, and the next commands to type."""
    from mmengine.dist import is_main_process
    checkpoint = find_trained(runner)
    if not checkpoint or not is_main_process():
        return
    config = osp.join(runner.work_dir, osp.basename(runner.cfg.filename))
    config, path = (
        shlex.quote(min(osp.abspath(name), osp.relpath(name), key=len))
        for name in (config, checkpoint))
    best = osp.basename(checkpoint).startswith('best_')
    print(f'\nThe model is {path}, '
          f'{"the best epoch of its validation" if best else "the last one"}.')
    print(f'Test it:  dan-mm test {config} {path}')
    if runner.cfg.get('default_scope') == 'mmpretrain':
        print(f'Use it:   dan-mm predict photo.jpg --model {path}')


def train(cfg: 'Config', args: argparse.Namespace) -> None:
    """Train, and say where the model is."""
    from mmengine.runner import Runner

    from dan_mm.engine import CheckpointFitHook
    runner = Runner.from_cfg(cfg)
    # Other weights are a start for training, but not to resume or fine-tune.
    runner.register_hook(
        CheckpointFitHook(
            partial=not cfg.get('resume') and not args.finetune,
            new_classes=not cfg.get('resume')))
    try:
        runner.train()
    except (OSError, ValueError) as error:
        # Workers put their traceback before it.
        last = str(error).strip().splitlines()[-1]
        if args.finetune and args.finetune[1] in last:
            raise SystemExit(last)
        raise
    say_what_next(runner)


def run(args: argparse.Namespace) -> int:
    from mmengine.config import Config

    import dan_mm
    from dan_mm.engine import init_cpu_processes, leave_cpu_processes
    from dan_mm.engine.work_folder import use_work_folder
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # Checkpoints are loaded safely, whatever the config imports.
    dan_mm.register_all_modules(init_default_scope=False)
    args.config = find_config(args.config)
    with refuse_checkpoints():
        cfg = merge_args(Config.fromfile(args.config), args)
        check_names(cfg)
        check_data(cfg, 'train', 'val')
        check_start(cfg)
        with use_work_folder(cfg.work_dir, cfg.filename):
            init_cpu_processes(cfg)
            train(cfg, args)
            leave_cpu_processes()
    return 0


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(argv))
