# Copyright (c) dan_mm contributors. All rights reserved.
import os
import runpy

import pytest
import torch
from conftest import ROOT, shared
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from retinaface_reference import MobileNet, RetinaFace

from dan_mm.models import retinaface_weights as weights
from dan_mm.models.retinaface_weights import WEIGHTS, get_checkpoint


@pytest.fixture
def convert(tmp_path):
    main = runpy.run_path(
        f'{ROOT}/tools/model_converters/retinaface_to_mmdet.py')['main']

    def run(source):
        torch.save(source, tmp_path / 'src.pth')
        destination = tmp_path / 'new folder' / 'dst.pth'
        main([str(tmp_path / 'src.pth'), str(destination)])
        return torch.load(destination, weights_only=True)

    return run


def build(name):
    cfg = Config.fromfile(
        f'{ROOT}/configs/retinaface/{name}_widerface.py').model
    cfg.backbone.pop('init_cfg')
    return MODELS.build(cfg).eval()


def shake(module):
    """Give every weight and statistic a value of its own."""
    torch.manual_seed(0)
    for key, value in module.state_dict().items():
        if key.endswith('running_var') or (value.ndim == 1
                                           and key.endswith('weight')):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim == 1:
            torch.nn.init.uniform_(value, -0.1, 0.1)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    'name, prefix',
    [('retinaface_mobilenet0.25', ''),
     pytest.param('retinaface_r50', 'module.', marks=pytest.mark.slow)])
def test_converts_detectors(convert, name, prefix):
    network = shake(RetinaFace(name))
    source = {
        prefix + key: value
        for key, value in network.state_dict().items()
    }
    converted = convert(source)
    assert converted['meta']['dataset_meta']['classes'] == ('face', )
    model = build(name)
    model.load_state_dict(converted['state_dict'])

    x = torch.randn(2, 3, 75, 107) * 50
    boxes, scores, landmarks = network(x)
    outs = model(x)

    def flatten(maps, size):
        return torch.cat(
            [level.permute(0, 2, 3, 1).reshape(2, -1, size) for level in maps],
            1)

    for ours, theirs in ((flatten(outs[0], 2).softmax(-1), scores.flip(-1)),
                         (flatten(outs[1],
                                  4), boxes), (flatten(outs[2],
                                                       10), landmarks)):
        assert ours.std() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_converts_the_backbone(convert):
    network = shake(MobileNet())
    classifier = torch.nn.Linear(256, 1000).state_dict()
    source = {**network.state_dict(), 'fc.weight': classifier['weight']}
    converted = convert(
        dict(
            epoch=3,
            state_dict={
                f'module.{key}': value
                for key, value in source.items()
            }))['state_dict']
    assert len(converted) == len(source) - 1
    model = build('retinaface_mobilenet0.25')
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert not any(key.startswith('backbone.') for key in missing)
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(model.backbone(x), network(x).values()):
        torch.testing.assert_close(ours, theirs)


def test_training_starts_from_the_backbone(convert, tmp_path):
    source = shared('weights', 'mobilenetV1x0.25_in1k.tar')
    source = torch.load(source, map_location='cpu', weights_only=True)
    converted = convert(dict(state_dict=source['state_dict']))['state_dict']
    cfg = Config.fromfile(
        f'{ROOT}/configs/retinaface/retinaface_mobilenet0.25_widerface.py')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'new folder' /
                                                 'dst.pth')
    model = MODELS.build(cfg.model)
    model.init_weights()
    state_dict = model.state_dict()
    for key, value in converted.items():
        assert torch.equal(state_dict[key], value), key


def test_refuses_other_weights(convert, tmp_path):
    source = RetinaFace().state_dict()
    renamed = dict(source)
    renamed['fpn.merge3.0.weight'] = renamed.pop('ssh2.conv5X5_1.0.weight')
    with pytest.raises(
            SystemExit,
            match=r'src.pth cannot be converted. Missing keys: 1 '
            r'\(ssh2.conv5X5_1.0.weight\). Unexpected keys: 1 '
            r'\(fpn.merge3.0.weight\). Keys of another shape: 0'):
        convert(renamed)
    reshaped = dict(source)
    reshaped['BboxHead.0.conv1x1.bias'] = torch.zeros(12)
    with pytest.raises(
            SystemExit,
            match=r'1 \(BboxHead.0.conv1x1.bias \(12,\) instead of \(8,\)'):
        convert(reshaped)
    with pytest.raises(SystemExit, match='Missing keys: 253.* and 243 more'):
        convert({'conv1.weight': torch.zeros(64, 3, 7, 7)})
    with pytest.raises(SystemExit, match=r"It holds \['epoch'\], expected"):
        convert(dict(epoch=3))
    with pytest.raises(SystemExit, match='It holds Tensor, expected'):
        convert(torch.zeros(3))
    assert os.listdir(tmp_path) == ['src.pth']


def test_missing_file(tmp_path):
    main = runpy.run_path(
        f'{ROOT}/tools/model_converters/retinaface_to_mmdet.py')['main']
    with pytest.raises(SystemExit, match='no checkpoint .*none.pth'):
        main([str(tmp_path / 'none.pth'), str(tmp_path / 'dst.pth')])


def test_gets_a_checkpoint(tmp_path, monkeypatch):
    source = shared('weights', 'retinaface_mobilenet0.25.pth')
    public = WEIGHTS['retinaface_mobilenet0.25']
    assert public['url'].startswith('https://')
    # The shared file is the one that is named here.
    monkeypatch.setitem(weights.WEIGHTS, 'retinaface_mobilenet0.25',
                        dict(public, url=f'file://{source}', wheel=None))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        path = get_checkpoint(folder=str(tmp_path))
    model = build('retinaface_mobilenet0.25')
    model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
    before = os.stat(path).st_mtime_ns
    assert get_checkpoint(folder=str(tmp_path)) == path
    assert os.stat(path).st_mtime_ns == before
    with pytest.raises(ValueError, match="Got weights 'yolo', expected one "):
        get_checkpoint('yolo')
