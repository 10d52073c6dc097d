# Copyright (c) dan_mm contributors. All rights reserved.
import os
import runpy

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from mmpretrain.registry import MODELS
from reference import ReferenceDAN

from dan_mm.apis import FERInferencer
from dan_mm.datasets import RAFDB

CONVERTER = f'{ROOT}/tools/model_converters/dan_to_mmpretrain.py'


@pytest.fixture
def convert(tmp_path):
    main = runpy.run_path(CONVERTER)['main']

    def run(checkpoint, *options):
        torch.save(checkpoint, tmp_path / 'src.pth')
        destination = tmp_path / 'new folder' / 'dst.pth'
        main([str(tmp_path / 'src.pth'), str(destination), *options])
        return torch.load(destination, weights_only=True)

    return run


def original(num_heads=2, num_classes=7, centers=False):
    """A checkpoint as the original code saves it."""
    resnet = torchvision.models.resnet18()
    parts = torch.nn.Sequential(*list(resnet.children())[:-2])
    state_dict = {
        f'features.{key}': value
        for key, value in parts.state_dict().items()
    }
    state_dict.update(ReferenceDAN(512, num_heads, num_classes).state_dict())
    if not centers:
        del state_dict['centers']
    return dict(
        iter=3, model_state_dict=state_dict, optimizer_state_dict=dict())


@pytest.mark.parametrize('num_heads, num_classes', [(1, 7), (3, 8)])
def test_converts_dan(convert, num_heads, num_classes):
    source = original(num_heads, num_classes)
    weights = convert(source)['state_dict']
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='MAN', in_channels=512, num_heads=num_heads),
            head=dict(type='AFN', num_classes=num_classes, in_channels=512)))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ['head.loss_affinity.centers'] and not unexpected
    assert len(weights) == len(source['model_state_dict'])


def test_class_names_and_centres(convert, capsys):
    converted = convert(original(centers=True), '--dataset', 'rafdb')
    assert converted['meta']['dataset_meta']['classes'][3] == 'happiness'
    assert converted['state_dict']['head.loss_affinity.centers'].shape == (7,
                                                                           512)
    assert 'with class centres' in capsys.readouterr().out
    # The original code has a spare centre for RAF-DB.
    source = original()
    source['model_state_dict']['centers'] = centers = torch.randn(8, 512)
    weights = convert(source)['state_dict']
    assert torch.equal(weights['head.loss_affinity.centers'], centers[:7])
    assert 'Drops the last of 8 class centres' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='has 7 classes, ferplus has 8'):
        convert(original(), '--dataset', 'ferplus')


@torch.no_grad()
def test_inference_needs_no_config(convert, tmp_path):
    """It is the one of the dataset, with the heads of the checkpoint."""
    convert(original(num_heads=2), '--dataset', 'rafdb')
    fer = FERInferencer(tmp_path / 'new folder' / 'dst.pth', device='cpu')
    assert fer.classes == RAFDB.METAINFO['classes']
    assert 'RAF-DB' in fer.about
    face = np.zeros((100, 100, 3), np.uint8)
    [result] = fer(face, aligned=True, attention_maps=True)
    assert result.faces[0].attention_maps.shape == (2, 7, 7)


def test_converts_the_backbone(convert):
    resnet = torchvision.models.resnet18().eval()
    weights = convert(
        dict(state_dict={
            f'module.{key}': value
            for key, value in resnet.state_dict().items()
        }))['state_dict']
    backbone = MODELS.build(dict(type='ResNet', depth=18))
    backbone.eval()
    backbone.load_state_dict({
        key[len('backbone.'):]: value
        for key, value in weights.items()
    })
    x = torch.randn(1, 3, 64, 64)
    expected = torch.nn.Sequential(*list(resnet.children())[:-2])(x)
    torch.testing.assert_close(backbone(x)[0], expected)


def test_refuses_what_it_does_not_know(convert, tmp_path):
    missing = original()
    del missing['model_state_dict']['fc.bias']
    missing['model_state_dict']['fc.basi'] = torch.zeros(7)
    with pytest.raises(
            SystemExit,
            match=r'Missing keys: 1 \(fc.bias\). Unexpected keys: 1 .fc.basi'):
        convert(missing)
    reshaped = original()
    reshaped['model_state_dict']['centers'] = torch.zeros(7, 256)
    with pytest.raises(SystemExit, match=r'centers \(7, 256\) instead of'):
        convert(reshaped)
    deeper = dict(state_dict=torchvision.models.resnet34().state_dict())
    with pytest.raises(SystemExit, match='Unexpected keys: 96.*and 86 more'):
        convert(deeper)
    with pytest.raises(SystemExit, match=r"holds \['model'\], expected"):
        convert(dict(model={}))
    with pytest.raises(SystemExit, match='holds Tensor, expected'):
        convert(torch.zeros(3))
    assert os.listdir(tmp_path) == ['src.pth']
