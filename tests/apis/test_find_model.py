# Copyright (c) dan_mm contributors. All rights reserved.
"""The config and the weights of a model: which are taken, and which never."""
import glob
import hashlib
import os
import shutil
import sys

import pytest
import torch
import yaml
from conftest import ROOT
from mmengine.config import Config
from mmpretrain.apis import ModelHub

from dan_mm.apis import find_model
from dan_mm.checkpoint import CheckpointLoadError
from dan_mm.datasets import AffectNet, FERPlus

FERPLUS = FERPlus.METAINFO['classes']


def save(path, **meta):
    torch.save(
        dict(meta=meta, state_dict={'head.fc.bias': torch.zeros(8)}), path)
    return path


def test_a_work_folder(work_dir):
    for path in (work_dir, str(work_dir), work_dir / 'epoch_5.pth'):
        found = find_model(path)
        assert found.path == str(work_dir / 'epoch_5.pth')
        assert found.cfg.model.backbone.base_channels == 8
        assert found.metainfo['classes'] == FERPLUS


def test_the_best_checkpoint_comes_first(work_dir, tmp_path):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    shutil.copy(folder / 'epoch_5.pth', folder / 'best_accuracy_epoch_4.pth')
    assert find_model(folder).path.endswith('best_accuracy_epoch_4.pth')
    (folder / 'best_accuracy_epoch_4.pth').unlink()
    shutil.copy(folder / 'epoch_5.pth', folder / 'epoch_4.pth')
    assert find_model(folder).path.endswith('epoch_5.pth')


def test_a_config_by_its_name(tmp_path):
    path = save(
        tmp_path / 'a.pth',
        experiment_name='dan_ferplus_20261124_100217',
        dataset_meta=dict(classes=FERPLUS))
    found = find_model(path)
    assert found.cfg.model.neck.type == 'MAN'
    # The class of the data set knows what an old checkpoint does not say.
    assert found.metainfo['alignment'] == FERPlus.METAINFO['alignment']
    assert found.metainfo['dataset_name'] == 'FER+'


def test_other_classes_are_other_data(tmp_path):
    """Nothing is known about a fine-tuned model's data."""
    path = save(
        tmp_path / 'a.pth',
        experiment_name='dan_ferplus',
        dataset_meta=dict(classes=('bored', 'amused')))
    assert find_model(path).metainfo == dict(classes=('bored', 'amused'))
    # Also where they have the names of its classes
    meta = dict(classes=FERPLUS, dataset_name='the folder mine')
    save(path, experiment_name='dan_ferplus', dataset_meta=meta)
    assert find_model(path).metainfo == meta
    # With fewer classes, AffectNet is still AffectNet.
    classes = AffectNet.METAINFO['classes'][:7]
    meta = dict(classes=classes)
    save(path, experiment_name='dan_affectnet7', dataset_meta=meta)
    metainfo = find_model(path).metainfo
    assert metainfo['classes'] == classes
    assert metainfo['dataset_name'] == 'AffectNet'


def test_the_number_of_heads_of_converted_weights(tmp_path):
    weights = {f'neck.heads.{i}.spatial.x': torch.zeros(1) for i in range(2)}
    torch.save(
        dict(
            meta=dict(
                experiment_name='dan_affectnet8',
                dataset_meta=AffectNet.METAINFO),
            state_dict=weights), tmp_path / 'a.pth')
    assert find_model(tmp_path / 'a.pth').cfg.model.neck.num_heads == 2


def test_no_text_in_a_checkpoint_is_run(tmp_path):
    """MMEngine's inferencer builds models from it."""
    mark = tmp_path / 'mark'
    text = f"open({str(mark)!r}, 'w')\nmodel = dict(type='ImageClassifier')"
    path = save(tmp_path / 'a.pth', cfg=text, config=text)
    with pytest.raises(ValueError, match='names none, expected a config'):
        find_model(path)
    assert not mark.exists()


def test_no_program_beside_a_checkpoint_is_run(tmp_path):
    mark = tmp_path / 'mark'
    for i, line in enumerate((f"open({str(mark)!r}, 'w')",
                              f"x = __import__('os').mkdir({str(mark)!r})",
                              f"x = dict(a=open({str(mark)!r}, 'w'))")):
        (tmp_path / f'setup{i}.py').write_text(f'{line}\nmodel = dict()\n')
    path = save(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='Give the one that it was trained'):
        find_model(path)
    assert not mark.exists()
    # On request it is.
    with pytest.raises(ValueError, match='no test_dataloader'):
        find_model(path, tmp_path / 'setup0.py')
    assert mark.exists()


@pytest.mark.parametrize('kind', ['pipeline', 'model', 'dataset'])
def test_no_type_in_a_config_is_called(work_dir, tmp_path, kind):
    """MMEngine calls whatever a `type` names."""
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    mark = tmp_path / 'mark'
    evil = f"dict(type='os.mkdir', path={str(mark)!r})"
    config = folder / 'dan_ferplus.py'
    config.write_text(config.read_text() + dict(
        pipeline=f'test_dataloader = dict(dataset=dict(pipeline=[{evil}]))',
        model=f"model = dict(type='ImageClassifier', backbone={evil})",
        dataset=f'train_dataloader = dict(dataset={evil})')[kind])
    with pytest.raises(ValueError, match="type 'os.mkdir', expected one that"):
        find_model(folder)
    assert not mark.exists()


def test_a_config_is_read_and_not_run(work_dir, tmp_path):
    """Neither a base, nor an import, nor what MMEngine puts in by text."""
    mark = tmp_path / 'mark'
    name = "e'+str(open('mark','w'))+'"
    folder = shutil.copytree(work_dir, tmp_path / name)
    (folder / 'evil.py').write_text(f"open({str(mark)!r}, 'w')")
    config = folder / 'dan_ferplus.py'
    config.write_text(config.read_text() + "_base_ = ['evil.py']\n"
                      "custom_imports = dict(imports=['this'])\n"
                      "x = '{{ fileDirname }}'\n")
    assert find_model(folder).cfg.model.backbone.base_channels == 8
    assert not mark.exists() and not os.path.exists('mark')
    assert 'this' not in sys.modules


def test_the_configs_of_this_project_can_be_read_as_they_are_dumped(tmp_path):
    for path in glob.glob(f'{ROOT}/configs/*.py'):
        cfg = Config.fromfile(path)
        cfg.custom_keys = {'backbone.layer1': dict(lr_mult=-0.1)}
        cfg.limits = [float('inf'), float('nan'), None, (1, )]
        save(tmp_path / 'a.pth', experiment_name='x', dataset_meta=dict(a=1))
        cfg.dump(tmp_path / 'x.py')
        found = find_model(tmp_path / 'a.pth').cfg
        assert found.filename == str(tmp_path / 'x.py')
        assert found.model == cfg.model
        assert found.test_dataloader == cfg.test_dataloader


def test_a_config_that_can_not_be_read_is_not_passed_over(work_dir, tmp_path):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    with open(folder / 'dan_ferplus.py', 'a') as file:
        file.write('x = list(range(3))\n')
    with pytest.raises(ValueError, match='has more than settings'):
        find_model(folder)
    (folder / 'dan_ferplus.py').rename(folder / 'other.py')
    with pytest.warns(UserWarning, match='other.py beside .* is not used'):
        find_model(folder)


def test_several_configs(work_dir, tmp_path):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    text = (folder / 'dan_ferplus.py').read_text()
    (folder / 'b.py').write_text(text)
    assert find_model(folder).cfg.filename.endswith('dan_ferplus.py')
    (folder / 'dan_ferplus.py').rename(folder / 'a.py')
    with pytest.raises(ValueError, match='a.py, .*b.py beside the checkpoint'):
        find_model(folder)
    assert find_model(folder, folder / 'a.py').path


def test_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        find_model()
    assert 'no published weights yet' in str(error.value)
    assert '\n' not in str(error.value)
    os.makedirs('work_dirs/mine')
    save('work_dirs/mine/epoch_1.pth')
    with pytest.raises(ValueError, match='work folders work_dirs/mine'):
        find_model()
    with pytest.raises(FileNotFoundError, match="model 'nonsense', expected"):
        find_model('nonsense')


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights for .dan_rafdb'):
        find_model('dan_rafdb')
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
    path = save(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='no config .*nowhere.py'):
        find_model(path, tmp_path / 'nowhere.py')


def test_weights_of_the_index(work_dir, tmp_path, monkeypatch):
    """Downloaded once and checked; the config is that of the index."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(ModelHub, '_models_dict', dict(ModelHub._models_dict))
    weights = shutil.copy(work_dir / 'epoch_5.pth', tmp_path / 'weights.pth')
    digest = hashlib.sha256((work_dir / 'epoch_5.pth').read_bytes())
    model = dict(
        Name='mine',
        Config=str(work_dir / 'dan_ferplus.py'),
        Weights=f'file://{weights}',
        Metadata=dict(SHA256=digest.hexdigest()),
        Results=[])
    (tmp_path / 'index.yml').write_text(yaml.safe_dump(dict(Models=[model])))
    ModelHub.register_model_index(tmp_path / 'index.yml')
    found = find_model('mine')
    assert found.path == str(tmp_path / 'hub/checkpoints/weights.pth')
    assert found.cfg.model.backbone.base_channels == 8
    os.remove(weights)
    assert find_model('mine').path == found.path
    with pytest.raises(ValueError, match='the names mine;'):
        find_model()
    # Without a sum, or with another one, nothing is taken.
    entry = ModelHub._models_dict['mine']
    entry.metadata.data['SHA256'] = 64 * '0'
    shutil.copy(work_dir / 'epoch_5.pth', weights)
    with pytest.raises(ValueError, match='another one, expected the SHA-256'):
        find_model('mine')
    del entry.metadata.data['SHA256']
    with pytest.raises(FileNotFoundError, match='no SHA256 of its weights'):
        find_model('mine')
