# Copyright (c) dan_mm contributors. All rights reserved.
# Modified from
# https://github.com/open-mmlab/mmpretrain/blob/main/tools/train.py
import argparse
import os
import os.path as osp
from copy import deepcopy

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.registry import DATASETS

import dan_mm
from dan_mm.datasets import FERFolder
from dan_mm.engine import (CheckpointFitHook, init_cpu_processes,
                           leave_cpu_processes)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument(
        'config', help='train config file; a config is code and is executed')
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
        'pictures of a folder, which has a folder for each class, or folders '
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
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='whether to disable pin_memory in dataloaders')
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='whether to disable persistent_workers in dataloaders')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config with key=value pairs. A list is '
        'key="[a,b]" or key=a,b; nested lists and tuples are allowed: '
        'key="[(a,b),(c,d)]", with the quotation marks and without blanks')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes --local-rank, older ones --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def finetune(cfg: Config, checkpoint: str, folder: str) -> None:
    """Start from a checkpoint and take the data from a folder."""
    try:
        # The order of the classes is that of the training set everywhere.
        classes = FERFolder(folder, split='train').metainfo['classes']
        for split in 'val', 'test':
            FERFolder(folder, split=split, classes=classes)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'--finetune: {error}')
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


def drop_single_picture(cfg: Config) -> None:
    """Leave out a last batch of one picture, which can't be trained on."""
    loader = cfg.train_dataloader
    dataset = {**loader.dataset, 'pipeline': ()}
    pictures = len(DATASETS.build(dataset))
    share = -(-pictures // int(os.environ.get('WORLD_SIZE', 1)))
    if share > loader.batch_size and share % loader.batch_size == 1:
        loader.drop_last = True


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the command line into the config."""
    name = osp.splitext(osp.basename(args.config))[0]
    if args.finetune:
        finetune(cfg, *args.finetune)
        name += f'_{osp.basename(osp.abspath(args.finetune[1]))}'

    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)

    if args.finetune:
        drop_single_picture(cfg)

    if args.no_validate:
        cfg.val_cfg = None
        cfg.val_dataloader = None
        cfg.val_evaluator = None

    cfg.launcher = args.launcher

    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', name)

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
        begins = cfg.load_from and not find_latest_checkpoint(cfg.work_dir)
        cfg.resume = not begins
        cfg.load_from = cfg.load_from if begins else None
    elif args.resume is not None:
        cfg.resume = True
        cfg.load_from = args.resume

    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise SystemExit(
                f'--auto-scale-lr found no `auto_scale_lr` in {args.config}, '
                'expected the batch size of its recipe. Where the schedule '
                'sets the rate itself, as OneCycleLR does, set `eta_max` with '
                '--cfg-options instead.')
        cfg.auto_scale_lr.enable = True

    for field in 'train_dataloader', 'val_dataloader', 'test_dataloader':
        if cfg.get(field) is None:
            continue
        defaults = ConfigDict(
            # Pinned memory is for the copy to an accelerator.
            pin_memory=get_device() != 'cpu',
            persistent_workers=cfg[field].get('num_workers', 0) > 0,
            collate_fn=dict(type='default_collate'))
        defaults.update(cfg[field])
        cfg[field] = defaults
        if args.no_pin_memory:
            cfg[field].pin_memory = False
        if args.no_persistent_workers:
            cfg[field].persistent_workers = False

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
            # It would fail when the cycle is over, hours later.
            raise SystemExit(
                f'{scheduler.type} has total_steps={total}, expected at least '
                f'train_cfg.max_epochs={epochs}. Set both with --cfg-options: '
                f'{options}')
    return cfg


def main() -> None:
    args = parse_args()
    # Checkpoints are loaded safely, whatever the config imports.
    dan_mm.register_all_modules(init_default_scope=False)
    cfg = merge_args(Config.fromfile(args.config), args)
    init_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    # Other weights are a start for training, but not to resume or fine-tune.
    runner.register_hook(
        CheckpointFitHook(
            partial=not cfg.get('resume') and not args.finetune,
            new_classes=not cfg.get('resume')))
    runner.train()
    leave_cpu_processes()


if __name__ == '__main__':
    main()
