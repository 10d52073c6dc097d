# Copyright (c) dan_mm contributors. All rights reserved.
"""Train a config with several seeds, and print the mean and the standard
deviation of its results.

The last epoch and, where the config has a validation set, the epoch that was
best on it are tested side by side. An interrupted run resumes.
"""
import argparse
import glob
import json
import os
import os.path as osp
import subprocess
import sys
from typing import List

import mmengine
import numpy as np
from mmengine.config import Config, DictAction
from mmengine.runner import find_latest_checkpoint
from rich.console import Console
from rich.table import Table

from dan_mm.engine.checkpoint_hook import AtomicLocalBackend

TOOLS = osp.dirname(osp.dirname(osp.abspath(__file__)))
METRICS = {'accuracy/top1': 'accuracy', 'accuracy/balanced': 'balanced'}
EPOCHS = dict(last='last epoch', best='chosen by validation')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Options that are not listed here are for tools/train.py.')
    parser.add_argument('config', help='a config is code and is executed')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0, 1, 2, 3, 4],
        help='the seeds (default: %(default)s)')
    parser.add_argument(
        '--work-dir',
        help='the folder of the runs (default: work_dirs/seeds/<config>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='overrides of the config, for training and testing')
    args, args.train = parser.parse_known_args()
    if args.work_dir is None:
        name = osp.splitext(osp.basename(args.config))[0]
        args.work_dir = osp.join('work_dirs', 'seeds', name)
    return args


def run(tool: str, *arguments: str) -> None:
    process = subprocess.run(
        [sys.executable,
         osp.join(TOOLS, f'{tool}.py'), *arguments])
    if process.returncode:
        raise SystemExit(
            f'tools/{tool}.py ended with the code {process.returncode}, '
            'expected 0. Its reason is above; the same command resumes where '
            'it stopped.')


def write(path: str, content: dict) -> None:
    """Write a JSON file atomically."""
    AtomicLocalBackend().put_text(json.dumps(content, indent=1), path)


def check_settings(args: argparse.Namespace, cfg: Config) -> None:
    """Refuse a folder of runs with another config or other options."""
    path = osp.join(args.work_dir, 'settings.json')
    settings = dict(
        config=cfg.pretty_text, train=args.train, options=args.cfg_options)
    if not osp.isfile(path):
        write(path, settings)
        return
    found = mmengine.load(path)
    other = [key for key in settings if found.get(key) != settings[key]]
    if other:
        raise SystemExit(
            f'{args.work_dir} has runs with another `{"`, `".join(other)}`, '
            'expected the same as now: they would be averaged with these. '
            'Give another --work-dir, or remove it.')


def test_checkpoint(args: argparse.Namespace, work_dir: str, epoch: str,
                    checkpoint: str, options: List[str]) -> dict:
    """Test a checkpoint, or read what it reached from an earlier run."""
    out = osp.join(work_dir, f'{epoch}.json')
    stat = os.stat(checkpoint)
    tested = dict(
        checkpoint=osp.basename(checkpoint),
        size=stat.st_size,
        time=stat.st_mtime)
    if osp.isfile(out):
        found = mmengine.load(out)
        if tested.items() <= found.items():
            return found
    partial = osp.join(work_dir, f'{epoch}.partial.json')
    run('test', args.config, checkpoint, '--work-dir',
        osp.join(work_dir, 'test'), '--out', partial, '--out-item', 'metrics',
        *options)
    found = dict(mmengine.load(partial), **tested)
    write(out, found)
    return found


def train_and_test(args: argparse.Namespace, seed: int, epochs: int) -> dict:
    """Train with one seed and test its checkpoints."""
    work_dir = osp.join(args.work_dir, f'seed_{seed}')
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    # The last checkpoint does not tell that training is over: it could have
    # been killed before the last validation.
    if not osp.isfile(osp.join(work_dir, 'last.json')):
        run('train', args.config, '--work-dir', work_dir, '--seed', str(seed),
            '--resume', *args.train, *options)
    last = find_latest_checkpoint(work_dir)
    if osp.basename(last or '') != f'epoch_{epochs}.pth':
        raise SystemExit(
            f'{work_dir} has the checkpoint {last} as its last one, expected '
            f'epoch_{epochs}.pth. Remove that folder and run the same '
            'command.')
    results = dict(last=test_checkpoint(args, work_dir, 'last', last, options))
    if args.metric:
        metric = args.metric.replace('/', '_').replace('auto', '*')
        name = f'best_{metric}_*.pth'
        best = glob.glob(osp.join(glob.escape(work_dir), name))
        if not best:
            raise SystemExit(
                f'{work_dir} has no {name}, expected one, since the config '
                'has `default_hooks.checkpoint.save_best`. Remove that folder '
                'and run the same command.')
        results['best'] = test_checkpoint(args, work_dir, 'best',
                                          max(best, key=osp.getmtime), options)
    return results


def summarize(values: List[float]) -> str:
    """Format the mean and the standard deviation of a sample."""
    if len(values) == 1:
        return f'{values[0]:.2f}'
    return f'{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}'


def show(results: dict) -> None:
    """Print a table of the results of all seeds."""
    table = Table(title='Test results, %; mean ± standard deviation')
    table.add_column('seed')
    columns = [(epoch, metric) for epoch in EPOCHS
               if any(epoch in result for result in results.values())
               for metric in METRICS]
    for epoch, metric in columns:
        table.add_column(
            f'{EPOCHS[epoch]}:\n{METRICS[metric]}', justify='right')
    for seed, result in results.items():
        table.add_row(
            str(seed),
            *(f'{result[epoch][metric]:.2f}' for epoch, metric in columns))
    table.add_section()
    table.add_row(
        'all',
        *(summarize([result[epoch][metric] for result in results.values()])
          for epoch, metric in columns))
    Console(width=100).print(table)
    if ('best', 'accuracy/top1') not in columns:
        print('The config has no `default_hooks.checkpoint.save_best`: no '
              'epoch is chosen by validation.')


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        cfg.merge_from_dict(
            parser.parse_args(['--cfg-options',
                               *args.cfg_options]).cfg_options)
    best = cfg.default_hooks.checkpoint.get('save_best')
    # Of several metrics the first one chooses.
    args.metric = best if isinstance(best, str) else (best or [None])[0]
    check_settings(args, cfg)
    results = {}
    for seed in args.seeds:
        print(f'Seed {seed}, {len(results) + 1} of {len(args.seeds)}')
        results[seed] = train_and_test(args, seed, cfg.train_cfg.max_epochs)
    write(
        osp.join(args.work_dir, 'results.json'), {
            str(seed): result
            for seed, result in results.items()
        })
    show(results)


if __name__ == '__main__':
    main()
