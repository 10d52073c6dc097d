# Copyright (c) dan_mm contributors. All rights reserved.
"""The tools that turn a trained checkpoint into a published one."""
import os
import re
import runpy

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS

from dan_mm.apis import FERInferencer, find_model
from dan_mm.datasets import FERPlus

PUBLISH = f'{ROOT}/tools/model_converters/publish_model.py'
CARD = f'{ROOT}/tools/analysis_tools/model_card.py'


@pytest.fixture(params=['dan', 'resnet18'])
def trained(request, tmp_path, ferplus_root):
    """A config and a checkpoint of a narrow model, with confident scores."""
    cfg = Config.fromfile(f'{ROOT}/configs/{request.param}_ferplus.py')
    cfg.model.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    cfg.model.head.in_channels = 64
    if request.param == 'dan':
        cfg.model.neck.in_channels = 64
    for split in 'train', 'val', 'test':
        cfg[f'{split}_dataloader'].dataset.data_root = ferplus_root
        cfg[f'{split}_dataloader'].num_workers = 0
    cfg.dump(tmp_path / 'config.py')
    torch.manual_seed(0)
    preprocessor = dict(cfg.data_preprocessor)
    model = MODELS.build(dict(cfg.model, data_preprocessor=preprocessor))
    model.head.fc.weight.data *= 30
    path = tmp_path / 'epoch_5.pth'
    torch.save(
        dict(
            meta=dict(dataset_meta=FERPlus.METAINFO),
            state_dict=model.state_dict(),
            optimizer=dict()), path)
    return str(tmp_path / 'config.py'), str(path), model.eval()


def test_published(trained, tmp_path, capsys):
    config, checkpoint, model = trained
    path = str(tmp_path / 'published' / 'model.pth')
    runpy.run_path(PUBLISH)['main']([
        config, checkpoint, path, '--log-prior', '0.5', '--licence', 'CC0'
    ])  # yapf: disable
    printed = capsys.readouterr().out
    assert os.path.getsize(path) < 0.6 * os.path.getsize(checkpoint)
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['licence'] == 'CC0'
    for key, value in content['state_dict'].items():
        assert 'centers' not in key
        assert value.dtype in ((torch.float32, ) if 'running_' in key else
                               (torch.float16, torch.int64)), key

    # The scores are those of the trained model, shifted and divided.
    calibration = content['meta']['calibration']
    found = find_model(path)
    assert found.metainfo['alignment'] == FERPlus.METAINFO['alignment']
    inferencer = FERInferencer(path)
    published = inferencer._classifier.model
    images = torch.rand(4, 3, 96, 96)
    cfg = Config.fromfile(config)
    train = FERPlus(
        **{
            key: value
            for key, value in cfg.train_dataloader.dataset.items()
            if key not in ('type', 'pipeline')
        })
    counts = torch.bincount(
        torch.tensor(train.get_gt_labels()), minlength=8).clamp(min=1)
    shares = counts / counts.sum()
    with torch.no_grad():
        before = model.head(model.extract_feat(images))
        after = published.head(published.extract_feat(images))
    expected = (before - 0.5 * shares.log()) / calibration['temperature']
    torch.testing.assert_close(after, expected, rtol=2e-2, atol=2e-2)

    # It says how good it is before and after.
    before, after, written = (
        float(value) for value in re.findall(r'ECE ([\d.]+)', printed))
    assert before == pytest.approx(calibration['ece_before'], abs=1e-4)
    assert after == pytest.approx(calibration['ece_after'], abs=1e-4)
    assert written == pytest.approx(after, abs=0.02)


def test_another_config(trained, tmp_path):
    config, checkpoint, _ = trained
    cfg = Config.fromfile(config)
    cfg.model.backbone.depth = 34
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(SystemExit, match='backbone.* is missing.*expected'):
        runpy.run_path(PUBLISH)['main'](
            [str(tmp_path / 'other.py'), checkpoint,
             str(tmp_path / 'b.pth')])
    assert not (tmp_path / 'b.pth').exists()


def test_model_card(trained, capsys):
    config, checkpoint, _ = trained
    runpy.run_path(CARD)['main']([config, checkpoint])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in printed.splitlines() if line.startswith('|')]
    overall = dict(zip(rows[0], rows[2]))
    assert overall['images'] == '40' and overall['input'] == '3x96x96'
    matrix = {
        row[0]: list(map(int, row[1:]))
        for row in rows
        if row[0] in FERPlus.METAINFO['classes'] and len(row) == 9
    }
    assert sum(map(sum, matrix.values())) == 40
    right = sum(row[i] for i, row in enumerate(matrix.values()))
    assert overall['accuracy'] == f'{100 * right / 40:.2f} %'
    recalls = {
        row[0]: float(row[3])
        for row in rows if len(row) == 5 and row[0] in matrix
    }
    for i, (name, row) in enumerate(matrix.items()):
        if sum(row):
            assert recalls[name] == pytest.approx(
                100 * row[i] / sum(row), abs=0.06)


@pytest.mark.parametrize('change, message', [
    (lambda value: value[..., :-1].clone(), 'does not fit .*expected'),
    (lambda value: torch.zeros(()), 'does not fit .*expected'),
    (lambda value: value.fill_(3e38), 'not finite.*expected'),
])
def test_weights_that_are_refused(trained, tmp_path, change, message):
    config, checkpoint, _ = trained
    content = torch.load(checkpoint, weights_only=True)
    for key, value in content['state_dict'].items():
        if key.endswith('fc.weight'):
            content['state_dict'][key] = change(value)
    torch.save(content, checkpoint)
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(PUBLISH)['main'](
            [config, checkpoint, str(tmp_path / 'b.pth')])
    assert not (tmp_path / 'b.pth').exists()
