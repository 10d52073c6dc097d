# Copyright (c) dan_mm contributors. All rights reserved.
"""What a checkpoint from anywhere may build."""
import glob
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmpretrain.models import ImageClassifier

from dan_mm.description import (Description, build_classifier,
                                check_description, describe)
from dan_mm.engine import DescribeModelHook

MODEL = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN')),
    neck=dict(type='MAN', in_channels=512),
    head=dict(
        type='AFN',
        num_classes=8,
        in_channels=512,
        loss_affinity=dict(type='AffinityLoss')),
    data_preprocessor=dict(mean=[0., 0., 0.], std=[1., 1., 1.]))
PIPELINE = [dict(type='Resize', scale=(96, 96)), dict(type='PackInputs')]
CONFIGS = sorted(
    glob.glob(f'{ROOT}/configs/*.py') +
    glob.glob(f'{ROOT}/configs/backbones/*.py') +
    glob.glob(f'{ROOT}/configs/ablation/*.py'))


@pytest.mark.parametrize(
    'path', CONFIGS, ids=lambda path: path[len(ROOT) + 9:-3])
def test_every_config_describes_its_model(path):
    cfg = Config.fromfile(path)
    description = describe(cfg)
    assert check_description(*description, path) == description
    assert description.model['backbone']['type'] == cfg.model.backbone.type
    mean = cfg.data_preprocessor.mean
    assert description.model['data_preprocessor']['mean'] == mean
    assert description.pipeline[-1] == dict(type='PackInputs')
    assert type(description.model['head']) is dict


def test_what_is_described_is_built():
    described = check_description(MODEL, PIPELINE, 'a.pth')
    assert described == Description(MODEL, PIPELINE)
    weights = ImageClassifier(**deepcopy({
        key: value
        for key, value in MODEL.items() if key != 'type'
    })).state_dict()
    built = build_classifier(described, weights, 'a.pth')
    built.load_state_dict(weights)
    assert not built.training
    assert built.data_preprocessor.std.flatten().tolist() == [1, 1, 1]


NESTED = [[]]
NESTED[0].append(NESTED)
ALIASES = [0]
for _ in range(30):
    ALIASES = [ALIASES, ALIASES]


@pytest.mark.parametrize('place,value', [
    # Anything else that a registry has, in place of what belongs there
    ('model.neck', dict(type='mmpretrain.datasets.MultiLabelDataset')),
    ('model.neck', dict(type='MultiLabelDataset', ann_file='http://a/a.pkl')),
    ('model.neck', dict(type='ResNet', depth=18)),
    ('model.backbone', dict(type='TIMMBackbone', model_name='resnet18')),
    ('model.backbone', dict(type='mmpretrain.ResNet', depth=18)),
    ('model.backbone', dict(type='mmpretrain.models.ResNet', depth=18)),
    ('model.backbone', dict(type='Runner')),
    ('model.backbone', dict(type='os.mkdir', path='a')),
    ('model.backbone', dict(depth=18)),
    ('model.backbone', [dict(type='ResNet', depth=18)]),
    ('model.backbone', None),
    ('model.type', 'ImageToTextRetriever'),
    ('model.pretrained', 'http://a/a.pth'),
    ('model.init_cfg', dict(type='Pretrained', checkpoint='http://a/a')),
    ('model.train_cfg', dict(augments=dict(type='Mixup'))),
    ('model._scope_', 'folder'),
    ('model.backbone._scope_', 'folder'),
    ('model.backbone.init_cfg', dict(type='Pretrained', checkpoint='/a')),
    ('model.backbone.norm_cfg', dict(type='Runner')),
    ('model.backbone.norm_cfg', dict(type='BN', _scope_='folder')),
    ('model.backbone.norm_cfg', dict(type='CrossEntropyLoss')),
    ('model.backbone.plugins', [dict(cfg=dict(type='os.mkdir'))]),
    ('model.backbone.norm_cfg', dict(type=torch.nn.BatchNorm2d)),
    ('model.head.loss_affinity', dict(type='ResNet')),
    ('model.head.loss', dict(type='BN')),
    ('model.data_preprocessor.type', 'TwoNormDataPreprocessor'),
    ('model.data_preprocessor.batch_augments', dict(type='Mixup')),
    ('pipeline.0', dict(type='LoadImageFromFile')),
    ('pipeline.0', dict(type='torchvision/Resize', size=9)),
    ('pipeline.0', dict(type='Resize', transforms=[dict(type='Albu')])),
    ('pipeline.0', dict(scale=(96, 96))),
    ('pipeline.0', 'PackInputs'),
    # What is no plain data of a bounded size
    ('model.backbone.depth', 2**40),
    ('model.backbone.depth', float('nan')),
    ('model.backbone.depth', torch.ones(1)),
    ('model.backbone.depth', b'18'),
    ('model.backbone.style', 501 * 'a'),
    ('model.backbone.strides', 10000 * [1]),
    ('model.backbone.strides', NESTED),
    ('model.backbone.strides', ALIASES),
    ('model.backbone.1', 1),
    ('model.backbone.a b', 1),
])  # yapf: disable
def test_everything_else_is_refused(place, value):
    model, pipeline = deepcopy((MODEL, PIPELINE))
    holder = dict(model=model, pipeline=pipeline)
    *parents, last = place.split('.')
    for key in parents:
        holder = holder[int(key) if isinstance(holder, list) else key]
    holder[int(last) if isinstance(holder, list) else last] = value
    with pytest.raises(ValueError, match='a.pth cannot be used: .*`config`'):
        check_description(model, pipeline, 'a.pth')


@pytest.mark.parametrize('model,pipeline', [(None, PIPELINE), (MODEL, None),
                                            ([], PIPELINE), (MODEL, {}),
                                            ({}, PIPELINE),
                                            (ALIASES, PIPELINE),
                                            (MODEL, ALIASES)])
def test_none(model, pipeline):
    with pytest.raises(ValueError, match='a.pth cannot be used'):
        check_description(model, pipeline, 'a.pth')


@pytest.mark.parametrize('arguments', [
    dict(base_channels=60000),
    dict(depth=19),
    dict(nonsense=1),
    dict(out_indices=(7, )),
])
def test_what_can_not_be_built(arguments):
    """One sentence, and no memory for a model that its weights don't fill."""
    model = deepcopy(MODEL)
    model['backbone'].update(arguments)
    described = check_description(model, PIPELINE, 'a.pth')
    with pytest.raises(ValueError, match='a.pth describes cannot be built'):
        build_classifier(described, dict(a=torch.zeros(9)), 'a.pth')


def test_a_large_model_of_few_weights_is_not_built():
    described = check_description(MODEL, PIPELINE, 'a.pth')
    with pytest.raises(ValueError, match='more parameters than its weights'):
        build_classifier(described, dict(a=torch.zeros(9)), 'a.pth')


class Log:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def info(self, line):
        self.lines.append(line)


@pytest.mark.parametrize('name', ['dan_ferplus', 'dlibresnet_ferplus'])
def test_checkpoints_get_the_description(name):
    cfg = Config.fromfile(f'{ROOT}/configs/{name}.py')
    hook, log = DescribeModelHook(), Log()
    runner = SimpleNamespace(cfg=cfg, logger=log)
    hook.before_train(runner)
    checkpoint = dict(meta=dict(epoch=1))
    hook.before_save_checkpoint(runner, checkpoint)
    meta = checkpoint['meta']
    assert meta.pop('epoch') == 1 and not log.lines
    assert Description(meta['model'], meta['test_pipeline']) == describe(cfg)
    assert any(hook.type == 'DescribeModelHook' for hook in cfg.custom_hooks)


def test_a_model_of_others_is_not_described():
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    cfg.model.backbone.type = 'MyBackbone'
    hook, log = DescribeModelHook(), Log()
    runner = SimpleNamespace(cfg=cfg, logger=log)
    hook.before_train(runner)
    checkpoint = dict(meta={})
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == dict(meta={})
    assert 'need their config' in log.lines[0] and 'MyBackbone' in log.lines[0]
