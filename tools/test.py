# Copyright (c) dan_mm contributors. All rights reserved.
# Modified from
# https://github.com/open-mmlab/mmpretrain/blob/main/tools/test.py
import argparse
import os
import os.path as osp
from copy import deepcopy

import mmengine
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from dan_mm.engine import CheckpointFitHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test (and evaluate) a model')
    parser.add_argument(
        'config', help='test config file; a config is code and is executed')
    parser.add_argument('checkpoint', help='checkpoint file')
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


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Merge the command line into the config."""
    cfg.launcher = args.launcher

    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs',
                                osp.splitext(osp.basename(args.config))[0])

    cfg.load_from = args.checkpoint

    if args.amp:
        cfg.test_cfg.fp16 = True

    if args.show or args.show_dir is not None:
        cfg.default_hooks.visualization.update(
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval)

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
    return cfg


def main() -> None:
    args = parse_args()
    cfg = merge_args(Config.fromfile(args.config), args)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CheckpointFitHook())

    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=args.out))

    metrics = runner.test()

    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
