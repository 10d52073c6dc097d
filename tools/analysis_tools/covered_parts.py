# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure what a model of synthface looks at: its accuracy on the test set
with parts of the faces covered."""
import argparse
from copy import deepcopy

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import dan_mm
from dan_mm.datasets.synthface_drawing import PARTS
from dan_mm.engine import CheckpointFitHook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file; a config is code and is executed')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', default='work_dirs/covered_parts', help='for the logs')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config with key=value pairs')
    args = parser.parse_args()
    # Whatever the config imports
    dan_mm.register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir
    cfg.load_from = args.checkpoint
    found = cfg.test_dataloader.dataset.type
    if found != 'SynthFace':
        raise SystemExit(f'{args.config} tests on {found}, expected SynthFace:'
                         ' only there is known where the parts of a face are.')

    accuracies = {}
    for parts in (), *((part, ) for part in PARTS), ('brows', 'mouth'), PARTS:
        covered = deepcopy(cfg)
        load, *rest = covered.test_dataloader.dataset.pipeline
        covered.test_dataloader.dataset.pipeline = [
            load, dict(type='CoverParts', parts=parts), *rest
        ]
        runner = Runner.from_cfg(covered)
        runner.register_hook(CheckpointFitHook())
        accuracies[parts] = runner.test()['accuracy/top1']

    whole = accuracies[()]
    print(f'{"covered":24}accuracy, %  difference')
    for parts, accuracy in accuracies.items():
        print(f'{", ".join(parts) or "nothing":24}{accuracy:11.1f}'
              f'{accuracy - whole:+12.1f}')


if __name__ == '__main__':
    main()
