# Copyright (c) dan_mm contributors. All rights reserved.
"""The weights and the description of a model: which are taken, and which
never."""
import hashlib
import os
import shutil

import pytest
import torch
import yaml
from conftest import ROOT
from mmpretrain.apis import ModelHub

from dan_mm.apis import find_model
from dan_mm.apis.model_index import DEFAULT_MODEL, shipped_model
from dan_mm.datasets import FERPlus
from dan_mm.errors import CheckpointLoadError

FERPLUS = FERPlus.METAINFO['classes']


def save(path, state_dict={'head.fc.bias': torch.zeros(8)}, **meta):
    torch.save(dict(meta=meta, state_dict=state_dict), path)
    return path


def test_a_work_folder(work_dir):
    for path in (work_dir, str(work_dir), work_dir / 'epoch_5.pth'):
        found = find_model(path)
        assert found.path == str(work_dir / 'epoch_5.pth')
        assert found.description.model['backbone']['base_channels'] == 8
        assert found.metainfo['classes'] == FERPLUS


def test_the_best_checkpoint_comes_first(work_dir, tmp_path):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    shutil.copy(folder / 'epoch_5.pth', folder / 'best_accuracy_epoch_4.pth')
    assert find_model(folder).path.endswith('best_accuracy_epoch_4.pth')
    (folder / 'best_accuracy_epoch_4.pth').unlink()
    shutil.copy(folder / 'epoch_5.pth', folder / 'epoch_4.pth')
    assert find_model(folder).path.endswith('epoch_5.pth')


def test_a_config_is_given(work_dir, tmp_path):
    """A config is code, and can have classes that are not listed."""
    path = save(tmp_path / 'a.pth', dataset_meta=dict(classes=FERPLUS))
    with pytest.raises(ValueError, match='does not describe its model.*runs'):
        find_model(path)
    mark = tmp_path / 'mark'
    (tmp_path / 'mine.py').write_text(
        f"open({str(mark)!r}, 'w')\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='Mine'), "
        "head=dict(type='mmpretrain.LinearClsHead'))\n"
        'test_dataloader = dict(dataset=dict(dataset=dict(pipeline=['
        "dict(type='LoadCheckedImage'), dict(type='PackInputs')])))")
    found = find_model(path, tmp_path / 'mine.py')
    assert mark.exists()
    assert found.description.model['backbone'] == dict(type='Mine')
    assert found.description.model['head'] == dict(type='LinearClsHead')
    assert found.description.pipeline == [dict(type='PackInputs')]
    (tmp_path / 'data.py').write_text('data_root = 1')
    with pytest.raises(ValueError, match='no model.backbone, .*data.py'):
        find_model(path, tmp_path / 'data.py')
    with pytest.raises(FileNotFoundError, match='no config .*nowhere.py'):
        find_model(path, tmp_path / 'nowhere.py')


def test_nothing_beside_a_checkpoint_is_read(work_dir, tmp_path):
    """Neither a config there nor the text of one inside is run."""
    mark = tmp_path / 'mark'
    text = f"open({str(mark)!r}, 'w')\nmodel = dict(type='ImageClassifier')"
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    (folder / 'dan_ferplus.py').write_text(text)
    (folder / 'registry.py').write_text(text)
    assert find_model(folder).weights
    path = save(folder / 'epoch_5.pth', cfg=text, config=text)
    with pytest.raises(ValueError, match='does not describe its model'):
        find_model(path)
    assert not mark.exists()


def test_the_shipped_model():
    found = find_model()
    assert found.path == shipped_model()
    assert find_model(DEFAULT_MODEL.upper()).path == found.path
    assert found.metainfo['classes'] == FERPLUS
    assert found.description.model['neck']['type'] == 'MAN'


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='no weights for .dan_rafdb'):
        find_model('dan_rafdb')
    os.makedirs('work_dirs/mine')
    save('work_dirs/mine/epoch_1.pth')
    with pytest.raises(
            FileNotFoundError,
            match=f"'nonsense'.*{DEFAULT_MODEL}.*folders work_dirs/mine"):
        find_model('nonsense')
    with pytest.raises(FileNotFoundError, match='no checkpoint in the folder'):
        find_model(tmp_path)
    with pytest.raises(ValueError, match='expected its checkpoint'):
        find_model(f'{ROOT}/configs/dan_rafdb.py')
    (tmp_path / 'a.pth').write_bytes(b'nonsense')
    with pytest.raises(CheckpointLoadError):
        find_model(tmp_path / 'a.pth')
    torch.save(dict(model_state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='dan_to_mmpretrain.py'):
        find_model(tmp_path / 'a.pth')


def test_weights_of_the_index(work_dir, tmp_path, monkeypatch):
    """Downloaded once and checked."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(ModelHub, '_models_dict', dict(ModelHub._models_dict))
    weights = shutil.copy(work_dir / 'epoch_5.pth', tmp_path / 'weights.pth')
    digest = hashlib.sha256((work_dir / 'epoch_5.pth').read_bytes())
    model = dict(
        Name='mine',
        Config=f'{ROOT}/configs/dan_ferplus.py',
        Weights=f'file://{weights}',
        Metadata=dict(SHA256=digest.hexdigest()),
        Results=[])
    (tmp_path / 'index.yml').write_text(yaml.safe_dump(dict(Models=[model])))
    ModelHub.register_model_index(tmp_path / 'index.yml')
    found = find_model('mine')
    assert found.path == str(tmp_path / 'hub/checkpoints/weights.pth')
    assert found.description.model['backbone']['base_channels'] == 8
    os.remove(weights)
    assert find_model('mine').path == found.path
    with pytest.raises(FileNotFoundError, match='the models .*mine'):
        find_model('nonsense')
    # Without a sum, or with another one, nothing is taken.
    entry = ModelHub._models_dict['mine']
    entry.metadata.data['SHA256'] = 64 * '0'
    shutil.copy(work_dir / 'epoch_5.pth', weights)
    with pytest.raises(OSError, match='another file came'):
        find_model('mine')
    del entry.metadata.data['SHA256']
    with pytest.raises(FileNotFoundError, match='no SHA256 of its weights'):
        find_model('mine')
