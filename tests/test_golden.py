# Copyright (c) dan_mm contributors. All rights reserved.
"""The outputs, losses and gradients of the original DAN code, through our
converter."""
import json
import runpy
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

GOLDEN = f'{ROOT}/tests/data/golden'
CONVERTER = f'{ROOT}/tools/model_converters/dan_to_mmpretrain.py'


def recipe(key: str, shape: list) -> torch.Tensor:
    """Make the weight, bias or statistic of that name."""
    if key.endswith('num_batches_tracked'):
        return torch.tensor(0)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    is_scale = len(shape) == 1 and key.endswith('weight')
    if key.endswith('running_var') or is_scale:
        value = rng.uniform(.5, 1.5, shape)
    elif len(shape) == 1:
        value = rng.uniform(-.1, .1, shape)
    else:
        fan = np.prod(shape[1:])
        value = rng.standard_normal(shape) * np.sqrt(2 / fan) * .5
    if '.sa.' in key and key.endswith(('weight', 'bias')):
        value = value * .1
    return torch.from_numpy(value.astype(np.float32))


@pytest.mark.parametrize('case', ['k1c7', 'k2c7', 'k4c7', 'k4c8'])
def test_equals_the_original(case, tmp_path):
    with open(f'{GOLDEN}/dan_original_state_dict.json') as file:
        shapes = json.load(file)[case]
    golden = np.load(f'{GOLDEN}/dan_original.npz')
    num_heads, num_classes = int(case[1]), int(case[3])

    source = {key: recipe(key, shape) for key, (shape, _) in shapes.items()}
    source['centers'] = recipe('centers', [num_classes, 512])
    torch.save(dict(iter=1, model_state_dict=source), tmp_path / 'dan.pth')
    runpy.run_path(CONVERTER)['main'](
        [str(tmp_path / 'dan.pth'),
         str(tmp_path / 'ours.pth')])
    weights = torch.load(tmp_path / 'ours.pth', weights_only=True)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='MAN', in_channels=512, num_heads=num_heads),
            head=dict(type='AFN', num_classes=num_classes, in_channels=512)))

    rng = np.random.default_rng(num_heads * 10 + num_classes)
    images = torch.from_numpy(
        rng.standard_normal((3, 3, 224, 224)).astype(np.float32))
    samples = [DataSample().set_gt_label(i % num_classes) for i in range(3)]

    for mode in 'eval', 'train':
        model.load_state_dict(weights['state_dict'])
        model.train(mode == 'train')
        model.zero_grad()
        scores = []
        hook = model.head.register_forward_hook(
            lambda *args: scores.append(args[-1]))
        # AFN.loss calls the head's forward pass: the hook gets its scores.
        feats = model.extract_feat(images)
        losses = model.head.loss(feats, samples)
        hook.remove()
        sum(losses.values()).backward()
        norm = torch.stack([
            parameter.grad.norm()
            for name, parameter in model.named_parameters()
            if 'centers' not in name
        ]).norm()
        gradient = model.neck.heads[0].spatial.conv1x1[0].weight.grad
        for name, value, tolerance in (
            ('logits', scores[0], 1e-4),
            ('heads', model.head.scale(feats[1]), 1e-4),
            ('feat_gap', feats[0].mean((2, 3)), 1e-4),
            ('loss_cls', losses['loss_cls'], 1e-4),
            ('loss_affinity', losses['loss_affinity'], 1e-4),
            ('loss_partition', losses['loss_partition'], 1e-4),
            ('grad_norm', norm, 1e-3),
            ('grad_norm_centers', model.head.loss_affinity.centers.grad.norm(),
             1e-3),
            ('grad_sa1x1_head0', gradient.flatten()[:64], 1e-2),
        ):
            expected = golden[f'{case}_{mode}_{name}']
            error = np.abs(value.detach().numpy() - expected).max()
            largest = np.abs(expected).max()
            # `pytest -s` prints what README quotes.
            print(f'{case} {mode:5} {name:18} {error / (largest or 1):.1e}')
            assert error <= tolerance * largest, (mode, name)
