# Copyright (c) dan_mm contributors. All rights reserved.
"""Attacks by what a checkpoint says about its model: code that is named in
other arguments than `type`, and models that take all memory or time."""
import sys
from copy import deepcopy

import pytest
import torch
from mmpretrain.registry import MODELS

from dan_mm.apis import FERInferencer
from dan_mm.description import (BACKBONES, MAX_TENSOR, check_cost,
                                check_description)

MODEL = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=4,
        base_channels=4,
        style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32),
    data_preprocessor=dict(mean=[0., 0., 0.], std=[1., 1., 1.]))
PIPELINE = [dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]
METAINFO = dict(classes=('anger', 'happiness'))


def save(path, weights=None, **changes):
    """Save a checkpoint of the small model above, with changes."""
    model = deepcopy(MODEL)
    for key, value in changes.pop('model', {}).items():
        model[key] = {**model[key], **value}
    meta = dict(
        model=model,
        test_pipeline=changes.pop('pipeline', PIPELINE),
        dataset_meta={
            **METAINFO,
            **changes.pop('metainfo', {})
        },
        **changes)
    if weights is None:
        built = {
            key:
            dict(value, type='ClsDataPreprocessor')
            if key == 'data_preprocessor' else value
            for key, value in deepcopy(model).items()
        }
        weights = MODELS.build(built).state_dict()
    torch.save(dict(meta=meta, state_dict=weights), path)
    return str(path)


def test_the_small_model_is_used(tmp_path, astronaut):
    inferencer = FERInferencer(save(tmp_path / 'a.pth'), device='cpu')
    [result] = inferencer(astronaut, aligned=True)
    assert set(result.faces[0].scores) == {'anger', 'happiness'}


@pytest.mark.parametrize('place,arguments', [
    ('backbone', dict(patch_cfg=dict(conv_type='evil'))),
    ('backbone', dict(patch_cfg=dict(conv_type='evil.sub'))),
    ('backbone', dict(patch_cfg=dict(conv_type='Runner'))),
    ('backbone', dict(conv_cfg=dict(type='Conv2d', padding_mode='evil'))),
    ('backbone', dict(norm='evil')),
    ('backbone', dict(act_cfg='evil')),
    ('backbone', dict(stage_cfgs=[dict(kind='evil.sub')])),
    ('neck', dict(kind='evil')),
    ('head', dict(loss=dict(type='CrossEntropyLoss', name='evil'))),
])
@pytest.mark.parametrize('backbone', ['VisionTransformer', 'SwinTransformer'])
def test_no_argument_names_code(tmp_path, monkeypatch, backbone, place,
                                arguments):
    """Registries import what they do not have."""
    (tmp_path / 'evil.py').write_text('raise SystemExit("ran")')
    monkeypatch.syspath_prepend(tmp_path)
    arch = dict(VisionTransformer='deit-tiny', SwinTransformer='tiny')
    model = deepcopy(MODEL)
    model['backbone'] = dict(type=backbone, arch=arch[backbone])
    model[place].update(arguments)
    path = tmp_path / 'a.pth'
    meta = dict(model=model, test_pipeline=PIPELINE, dataset_meta=METAINFO)
    torch.save(dict(meta=meta, state_dict=dict(a=torch.zeros(1))), path)
    with pytest.raises(ValueError, match='cannot be used: .*evil|Runner'):
        FERInferencer(str(path))
    assert 'evil' not in sys.modules


ALIASES = 'evil'
for _ in range(60):
    ALIASES = [ALIASES, ALIASES]


@pytest.mark.parametrize('place', ['type', 'backbone', 'backbone.type'])
def test_messages_are_bounded(place):
    model = deepcopy(MODEL)
    *parent, key = place.split('.')
    (model[parent[0]] if parent else model)[key] = ALIASES
    with pytest.raises(ValueError) as error:
        check_description(model, PIPELINE, 'a.pth')
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize('metainfo', [
    dict(classes=ALIASES),
    dict(classes=[ALIASES, 'anger']),
    dict(dataset_name=ALIASES),
    dict(licence=ALIASES),
    dict(alignment=ALIASES),
    dict(alignment=dict(size=ALIASES)),
    dict(alignment=dict(template=ALIASES)),
    dict(alignment=dict(interpolation=ALIASES)),
    dict(color_type=ALIASES),
    dict(licence=2**20 * 'a'),
])
def test_metadata_is_bounded(tmp_path, metainfo):
    path = save(tmp_path / 'a.pth', metainfo=metainfo)
    with pytest.raises(ValueError, match='a.pth') as error:
        FERInferencer(path)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize('pipeline', [
    [dict(type='Resize', scale=(65536, 65536))],
    [dict(type='Resize', scale_factor=1000)],
    [dict(type='Pad', size=(65536, 65536))],
    [dict(type='CenterCrop', crop_size=65536, auto_pad=True)],
    [dict(type='ResizeEdge', scale=65536)],
    [
        dict(type='Resize', scale=(1024, 1)),
        dict(type='ResizeEdge', scale=1024)
    ],
    11 * [dict(type='Resize', scale=(8, 8))],
])
def test_inputs_are_bounded(pipeline):
    steps = [*pipeline, dict(type='PackInputs')]
    with pytest.raises(ValueError, match='cannot be used: .*test_pipeline'):
        check_description(MODEL, steps, 'a.pth')


@pytest.mark.parametrize('changes', [
    dict(model=dict(data_preprocessor=dict(pad_size_divisor=65536))),
    dict(model=dict(backbone=dict(out_indices=(3, ) * 5000))),
    dict(model=dict(backbone=dict(stem_channels=1024)),
         pipeline=[dict(type='Resize', scale=(1024, 1024)),
                   dict(type='PackInputs')]),
    dict(pipeline=[]),
    dict(pipeline=[dict(type='PackInputs', input_key='form')]),
    dict(pipeline=[dict(type='Resize', scale=0), dict(type='PackInputs')]),
    dict(metainfo=dict(alignment=dict(size=(4096, 1)))),
    dict(metainfo=dict(alignment=dict(size=4096))),
])  # yapf: disable
def test_models_that_take_too_much_or_do_not_work(tmp_path, changes):
    """One sentence when they are loaded, not at each image."""
    if 'alignment' in changes.get('metainfo', {}):
        changes = dict(changes, pipeline=[dict(type='PackInputs')])
        changes['model'] = dict(backbone=dict(stem_channels=64))
    path = save(tmp_path / 'a.pth', **changes)
    with pytest.raises(ValueError, match='a.pth'):
        FERInferencer(path, device='cpu')


def test_windows_are_bounded():
    model = deepcopy(MODEL)
    model['backbone'] = dict(
        type='SwinTransformer', arch='tiny', window_size=200)
    with pytest.raises(ValueError, match='window_size is 200'):
        check_description(model, PIPELINE, 'a.pth')


# What they do not build without, and smaller ones
ARGUMENTS = {
    **dict.fromkeys(['ResNeSt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt',
                     'Res2Net', 'SEResNet', 'SEResNeXt'], dict(depth=50)),
    **dict.fromkeys(['DistilledVisionTransformer', 'VisionTransformer'],
                    dict(arch='deit-tiny')),
    'DeiT3': dict(arch='small'),
    'MobileOne': dict(arch='s0'),
    'RegNet': dict(arch='regnetx_400mf'),
    'RepVGG': dict(arch='A0'),
}  # yapf: disable


@pytest.mark.parametrize('kind', sorted(BACKBONES))
def test_the_cost_of_every_backbone_is_known(kind):
    arguments = ARGUMENTS.get(kind, {})
    size = 256 if kind == 'SwinTransformerV2' else 224
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type=kind, **arguments),
            head=dict(type='ClsHead')))
    model.eval()
    largest = check_cost(model, torch.zeros(1, 3, size, size))
    # At least the input, and not larger than the first layers make it
    assert 4 * 3 * size**2 <= largest <= MAX_TENSOR / 4
