# Copyright (c) dan_mm contributors. All rights reserved.
"""Re-parameterised models give the same outputs, faster."""
import copy

import pytest
import torch
import torch.nn as nn
from mmpretrain.registry import MODELS

from dan_mm.models import AFN, MAN, switch_to_deploy


@pytest.fixture
def trained():
    """A function that builds MAN and AFN with statistics of their own."""

    def build(num_heads, channels=32, **kwargs):
        torch.manual_seed(0)
        models = MAN(channels, num_heads, **kwargs), AFN(5, channels)
        for model in models:
            for layer in model.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.normal_(layer.weight, std=0.2)
                    nn.init.normal_(layer.bias)
                elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    nn.init.normal_(layer.running_mean)
                    nn.init.uniform_(layer.running_var, 0.5, 2)
                    nn.init.uniform_(layer.weight, 0.5, 2)
                    nn.init.normal_(layer.bias)
        return [model.eval() for model in models]

    return build


@pytest.mark.parametrize('num_heads', [1, 2, 5])
@pytest.mark.parametrize('dtype, rtol', [(torch.float64, 1e-10),
                                         (torch.float32, 1e-4)])
@pytest.mark.parametrize('size', [(7, 7), (3, 5), (1, 1)])
def test_the_outputs_stay_the_same(trained, num_heads, dtype, rtol, size):
    neck, head = (
        model.to(dtype) for model in trained(num_heads, map_scale=0.2))
    x = torch.randn(3, 32, *size, dtype=dtype)

    def run():
        feats = neck(x)
        return (neck.attention_maps(x), feats[1], head.pre_logits(feats),
                head(feats))

    with torch.no_grad():
        expected = run()
        for _ in range(2):  # the second time it does nothing
            neck.switch_to_deploy()
            head.switch_to_deploy()
            for before, after in zip(expected, run()):
                assert after.shape == before.shape
                assert after.dtype == before.dtype
                assert (after -
                        before).abs().max() <= rtol * before.abs().max()


def test_nothing_is_left_to_merge(trained):
    models = trained(4)
    before = sum(p.numel() for model in models for p in model.parameters())
    for model in models:
        model.train().switch_to_deploy()
        assert not model.training
        assert not [
            layer for layer in model.modules()
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        ]
    neck = models[0]
    assert len([1 for _ in neck.modules() if isinstance(_, nn.Conv2d)]) == 2
    after = sum(p.numel() for model in models for p in model.parameters())
    assert after < 0.7 * before


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(trained, dtype):
    neck, head = (model.to(dtype) for model in trained(2))
    neck.switch_to_deploy()
    head.switch_to_deploy()
    x, heads = neck(torch.randn(2, 32, 3, 3, dtype=dtype))
    assert x.dtype == dtype and heads.dtype == torch.float32
    assert head((x, heads.to(dtype))).isfinite().all()


def test_deployed_models_are_exported(trained):
    neck, head = trained(2)
    model = nn.Sequential(copy.deepcopy(neck), copy.deepcopy(head))
    for part in model:
        part.switch_to_deploy()
    x = torch.randn(3, 32, 4, 4)
    batch = torch.export.Dim('batch', min=2, max=16)
    program = torch.export.export(
        model, (x, ), dynamic_shapes=(dict({0: batch}), ))
    x = torch.randn(7, 32, 4, 4)
    with torch.no_grad():
        expected = head(neck(x))
    assert torch.allclose(program.module()(x), expected, atol=1e-4)


@pytest.mark.parametrize('backbone, channels', [
    (dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 64),
    (dict(type='DlibResNet'), 256),
    (dict(type='MobileNetV2', widen_factor=0.1), 1280),
    (dict(type='RepVGG', arch='A0', base_channels=8), 160),
    (dict(type='DenseNet', arch='121'), 1024),
    (dict(type='ConvNeXt', arch='atto', gap_before_final_norm=False), 320),
])
def test_classifiers(backbone, channels):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='MAN', in_channels=channels, num_heads=2),
            head=dict(type='AFN', num_classes=5, in_channels=channels)))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    model.eval()
    x = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        expected = model(x)
        switch_to_deploy(model, x.shape)
        found = model(x)
    assert torch.allclose(found, expected, 1e-3, 1e-3)
    assert model.neck.deploy


def test_a_backbone_that_cannot_be_folded_stays():
    """The BatchNorm is made after the convolution, and used before it."""

    class Backbone(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 3)
            self.bn = nn.BatchNorm2d(32)
            nn.init.normal_(self.bn.running_mean)

        def forward(self, x):
            return (self.bn(self.conv(x).relu()), )

    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='DlibResNet'),
            neck=dict(type='MAN', in_channels=32),
            head=dict(type='AFN', num_classes=5, in_channels=32)))
    model.backbone = Backbone()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(x)
        switch_to_deploy(model, x.shape)
        assert isinstance(model.backbone.bn, nn.BatchNorm2d)
        assert torch.allclose(model(x), expected, 1e-4, 1e-4)
