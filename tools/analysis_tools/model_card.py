# Copyright (c) dan_mm contributors. All rights reserved.
"""Print the tables of a model card, as Markdown."""
import argparse
import tempfile
from typing import Optional, Sequence

import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from dan_mm import register_all_modules
from dan_mm.engine import CheckpointFitHook

EVALUATOR = [
    dict(type='Accuracy'),
    dict(type='BalancedAccuracy'),
    dict(type='CalibrationError'),
    dict(
        type='SingleLabelMetric',
        items=('precision', 'recall', 'f1-score', 'support'),
        average=None),
    dict(type='ConfusionMatrix'),
]


def table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Print a table."""
    for row in (header, ['---'] * len(header), *rows):
        print(f'| {" | ".join(map(str, row))} |')
    print()


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description='Test a model and print the tables of its model card as '
        'Markdown: accuracies, calibration, precision, recall and F1 of each '
        'class, the confusion matrix, parameters and FLOPs.')
    parser.add_argument('config', help='the config, which is code and runs')
    parser.add_argument('checkpoint', help='the checkpoint')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='see test.py')
    args = parser.parse_args(argv)
    register_all_modules()
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.load_from = args.checkpoint
    cfg.test_evaluator = EVALUATOR
    cfg.test_dataloader.setdefault('collate_fn', dict(type='default_collate'))
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.register_hook(CheckpointFitHook())
        metrics = runner.test()
        model = runner.model.eval()
        dataset = runner.test_loop.dataloader.dataset
    classes = dataset.metainfo['classes']
    shape = tuple(dataset[0]['inputs'].shape)
    complexity = get_model_complexity_info(
        model, inputs=(torch.zeros(1, *shape), ), show_table=False)
    recalls = np.array(metrics['single-label/recall_classwise'])
    # So rare in FER+ that it is left out of many balanced accuracies.
    seven = [
        recall for recall, name in zip(recalls, classes) if name != 'contempt'
    ]
    parameters = sum(value.numel() for key, value in model.named_parameters()
                     if not key.endswith('centers'))
    table(('images', 'accuracy', 'balanced', 'balanced without contempt',
           'ECE', 'parameters', 'multiply-adds', 'input'),
          [(len(dataset), f'{metrics["accuracy/top1"]:.2f} %',
            f'{metrics["accuracy/balanced"]:.2f} %', f'{np.mean(seven):.2f} %',
            f'{metrics["calibration/ece"]:.4f}', f'{parameters / 1e6:.2f} M',
            f'{complexity["flops"] / 1e9:.3f} G', 'x'.join(map(str, shape)))])
    table(
        ('expression', 'images', 'precision', 'recall', 'F1'),
        [(name, int(support), f'{precision:.1f}', f'{recall:.1f}', f'{f1:.1f}')
         for name, support, precision, recall, f1 in zip(
             classes, metrics['single-label/support_classwise'],
             metrics['single-label/precision_classwise'], recalls,
             metrics['single-label/f1-score_classwise'])])
    matrix = metrics['confusion_matrix/result'].int().tolist()
    table(('labelled as, in rows; predicted as', *classes),
          [(name, *row) for name, row in zip(classes, matrix)])


if __name__ == '__main__':
    main()
