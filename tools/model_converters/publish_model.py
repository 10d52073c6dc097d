# Copyright (c) dan_mm contributors. All rights reserved.
"""Make a small, calibrated checkpoint that describes itself."""
import argparse
import os.path as osp
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.registry import DATASETS, MODELS
from rich.progress import track
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from dan_mm import register_all_modules
from dan_mm.cli.output import refuse_unwritten
from dan_mm.description import check_description, describe
from dan_mm.engine.hooks import compare_weights
from dan_mm.errors import CheckpointLoadError, list_some
from dan_mm.evaluation import expected_calibration_error, fit_temperature
from dan_mm.files import check_file, save_checkpoint

# The last layers, whose weight and bias can take a factor and a shift of the
# scores
LAST = dict(AFN='head.bn', LinearClsHead='head.fc')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Calibrate a trained checkpoint on the validation set of '
        'its config, fold the calibration into the last layer, and write its '
        'weights in half precision beside what inference needs to know. What '
        'only training needs is left out.')
    parser.add_argument('config', help='the config, which is code and runs')
    parser.add_argument('checkpoint', help='the trained checkpoint')
    parser.add_argument('dst', help='the checkpoint to write')
    parser.add_argument(
        '--log-prior',
        type=float,
        default=0.,
        metavar='WEIGHT',
        help='subtract so much of the logarithm of the ratio of a class in '
        'the training set from its score, which favours rare classes '
        '(https://arxiv.org/abs/2007.07314; default: %(default)s)')
    parser.add_argument(
        '--licence', help='a note on the licence of the weights')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='see train.py')
    return parser.parse_args(argv)


@torch.inference_mode()
def predict(model: torch.nn.Module,
            loader_cfg: dict) -> Tuple[np.ndarray, np.ndarray]:
    """Get the scores before the softmax, and the labels, of a dataset."""
    loader_cfg = dict(loader_cfg, collate_fn=dict(type='default_collate'))
    loader = Runner.build_dataloader(loader_cfg)
    logits, labels = [], []
    for batch in track(loader, 'Predicting'):
        data = model.data_preprocessor(batch)
        feats = model.extract_feat(data['inputs'])
        logits.append(model.head(feats).float())
        labels += [int(sample.gt_label) for sample in data['data_samples']]
    logits = torch.cat(logits)
    if not logits.isfinite().all():
        raise SystemExit('The model gives scores that are not finite (NaN or '
                         'infinity), expected numbers: its training has '
                         'diverged. Use an earlier checkpoint.')
    return logits.numpy(), np.array(labels)


def say(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Print how good scores are. Returns the calibration error."""
    scores = softmax(logits, axis=1)
    balanced = balanced_accuracy_score(labels, scores.argmax(1))
    ece = expected_calibration_error(scores, labels)
    print(f'{name}: accuracy {100 * (scores.argmax(1) == labels).mean():.2f}, '
          f'balanced {100 * balanced:.2f}, ECE {ece:.4f}')
    return ece


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    try:
        check_file(args.dst, [args.config, args.checkpoint])
    except ValueError as error:
        raise SystemExit(str(error))
    register_all_modules()
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope('mmpretrain')
    description = describe(cfg)
    check_description(*description, args.config)
    try:
        checkpoint = CheckpointLoader.load_checkpoint(
            args.checkpoint, map_location='cpu')
    except CheckpointLoadError as error:
        raise SystemExit(str(error))
    # The class centres are for training only.
    weights = {
        key: value.contiguous()
        for key, value in checkpoint['state_dict'].items()
        if not key.startswith('head.loss_')
    }
    model = MODELS.build(description.model).eval()
    problems = compare_weights(model, weights, optional='head.loss_')
    head = description.model['head']['type']
    last = LAST.get(head)
    if problems or not last:
        raise SystemExit(
            f'{args.checkpoint} does not fit the model of {args.config} '
            f'({list_some(problems) or "all weights fit"}), or its head '
            f'{head} is none of {sorted(LAST)}, expected both. Give the '
            'config of the checkpoint.')
    model.load_state_dict(weights, strict=False)

    logits, labels = predict(model, cfg.val_dataloader)
    before = say('validation, as trained', logits, labels)
    train = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': ()})
    # A class that does not occur counts as one image.
    counts = np.bincount(
        train.get_gt_labels(), minlength=logits.shape[1]).clip(1)
    shift = args.log_prior * np.log(counts / counts.sum())
    temperature = fit_temperature(logits - shift, labels)
    after = say('validation, calibrated', (logits - shift) / temperature,
                labels)

    weights[f'{last}.weight'] = weights[f'{last}.weight'] / temperature
    weights[f'{last}.bias'] = (weights[f'{last}.bias'] -
                               torch.from_numpy(shift).float()) / temperature
    stored: Dict[str, torch.Tensor] = {
        # Variances can be larger than half precision goes.
        key:
        value if 'running_' in key or not value.is_floating_point() else
        value.half()
        for key, value in weights.items()
    }
    model.load_state_dict(stored, strict=False)
    logits, labels = predict(model, cfg.val_dataloader)
    say('validation, as written', logits, labels)
    meta = dict(
        dataset_meta={
            **(checkpoint['meta'].get('dataset_meta') or {}),
            **train.metainfo
        },
        model=description.model,
        test_pipeline=description.pipeline,
        calibration=dict(
            temperature=temperature,
            log_prior=args.log_prior,
            ece_before=before,
            ece_after=after))
    if args.licence:
        meta['licence'] = args.licence
    with refuse_unwritten(args.dst):
        save_checkpoint(dict(meta=meta, state_dict=stored), args.dst)
    print(f'Wrote {args.dst}, {osp.getsize(args.dst) / 1e6:.1f} MB.')


if __name__ == '__main__':
    main()
