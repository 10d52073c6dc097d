# Copyright (c) dan_mm contributors. All rights reserved.
"""Testing a model on another dataset than it was trained on."""
import csv
import pickle
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dan_mm import cli
from dan_mm.checkpoint import load_classes
from dan_mm.datasets import RAFDB, FERPlus
from dan_mm.errors import CheckpointLoadError

FERPLUS, RAF = FERPlus.METAINFO['classes'], RAFDB.METAINFO['classes']


def config(name):
    return f'{ROOT}/configs/{name}.py'


def save(path, name, classes, **meta):
    """Save a checkpoint of a config with random weights."""
    cfg = Config.fromfile(config(name))
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=dict(cfg.data_preprocessor)))
    if classes:
        meta['dataset_meta'] = dict(classes=classes)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    # This comes before the scope that every test has.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return dict(
            ferplus=save(folder / 'ferplus.pth', 'dan_ferplus', FERPLUS),
            rafdb=save(folder / 'rafdb.pth', 'dan_rafdb', RAF),
            nameless=save(folder / 'nameless.pth', 'dan_ferplus', None))


@pytest.fixture
def rafdb_root(tmp_path, ferplus_root):
    """RAF-DB with real faces where they are at hand: 3 of each class."""
    root = tmp_path / 'rafdb'
    (root / 'EmoLabel').mkdir(parents=True)
    (root / 'Image' / 'aligned').mkdir(parents=True)
    faces = sorted(Path(ferplus_root).glob('FER2013Train/*.png'))
    lines = []
    for i in range(21):
        (root / 'Image' / 'aligned' / f'test_{i:04d}_aligned.jpg').write_bytes(
            faces[i].read_bytes())
        lines.append(f'test_{i:04d}.jpg {i % 7 + 1}')
    (root / 'EmoLabel' / 'list_patition_label.txt').write_text(
        '\n'.join(lines))
    return root


def run(monkeypatch, tmp_path, name, checkpoint, root, *options):
    """Run tools/test.py in this process, and get what it predicts and logs."""
    out = tmp_path / 'out.pkl'
    work_dir = tmp_path / 'work'
    monkeypatch.setattr(sys, 'argv', [
        'test.py',
        config(name), checkpoint, '--work-dir',
        str(work_dir), '--out',
        str(out), *options, '--cfg-options', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        f'test_dataloader.dataset.data_root={root}'
    ])
    runpy.run_path(f'{ROOT}/tools/test.py', run_name='__main__')
    with open(out, 'rb') as file:
        predictions = pickle.load(file)
    return predictions, ''.join(path.read_text()
                                for path in work_dir.glob('*/*.log'))


def accuracies(predictions):
    """Accuracy, and the mean of the recalls of the classes that occur."""
    labels = np.array([int(item['gt_label']) for item in predictions])
    hits = labels == [int(item['pred_label']) for item in predictions]
    recalls = [hits[labels == label].mean() for label in set(labels)]
    return 100 * hits.mean(), 100 * np.mean(recalls)


@pytest.mark.filterwarnings('ignore:.*official split')
def test_a_model_of_ferplus_on_rafdb(monkeypatch, tmp_path, checkpoints,
                                     rafdb_root):
    predictions, log = run(monkeypatch, tmp_path, 'dan_ferplus',
                           checkpoints['ferplus'], rafdb_root, '--data-from',
                           config('dan_rafdb'))
    # By the names, in the indices of the model.
    names = [FERPLUS[int(item['gt_label'])] for item in predictions]
    assert names == [RAF[i % 7] for i in range(21)]
    # All classes of the model are possible.
    assert all(len(item['pred_score']) == 8 for item in predictions)
    assert ('Target classes without counterpart in RAFDB, so without '
            'images: contempt. All 8 classes of the model stay' in log)
    accuracy, balanced = accuracies(predictions)
    assert f'accuracy/top1: {accuracy:.4f}' in log
    assert f'accuracy/balanced: {balanced:.4f}' in log
    # The images are those of this config in size.
    assert predictions[0]['img_shape'] == (96, 96)


@pytest.mark.filterwarnings('ignore:.*official split')
def test_a_model_of_rafdb_on_ferplus(monkeypatch, tmp_path, checkpoints,
                                     ferplus_root):
    # Some of contempt, which the model does not know.
    root = tmp_path / 'ferplus'
    (root / 'FER2013Valid').mkdir(parents=True)
    faces = sorted(Path(ferplus_root).glob('FER2013Train/*.png'))
    rows = []
    for i in range(16):
        (root / 'FER2013Valid' / f'{i}.png').write_bytes(faces[i].read_bytes())
        votes = [0] * 10
        votes[i % 8] = 10
        rows.append(['PublicTest', f'{i}.png', *votes])
    with open(root / 'fer2013new.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['Usage'], *rows])
    predictions, log = run(monkeypatch, tmp_path, 'dan_rafdb',
                           checkpoints['rafdb'], root, '--data-from',
                           config('dan_ferplus'), '--tta')
    names = Counter(RAF[int(item['gt_label'])] for item in predictions)
    assert names == {name: 2 for name in RAF}
    assert ('FERPlus leaves out 2 images of its classes without counterpart'
            ': contempt (2). All 7 classes of the model stay' in log)


def merge(*arguments):
    args = cli.parse_args(['test', *map(str, arguments)])
    return cli.test.merge_args(Config.fromfile(args.config), args)


def test_options_of_the_model_with_augmentation(checkpoints):
    cfg = merge(
        config('dan_rafdb'), checkpoints['rafdb'], '--tta', '--cfg-options',
        'model.neck.num_heads=2', 'test_dataloader.batch_size=3')
    assert cfg.model.type.endswith('AverageScoreTTA')
    assert cfg.model.module.neck.num_heads == 2 and 'neck' not in cfg.model
    assert cfg.test_dataloader.batch_size == 3


def test_what_comes_from_the_other_config(checkpoints):
    ferplus, rafdb = config('dan_ferplus'), config('dan_rafdb')
    own, other = Config.fromfile(ferplus), Config.fromfile(rafdb)
    cfg = merge(ferplus, checkpoints['ferplus'], '--data-from', rafdb)
    loader = cfg.test_dataloader
    assert loader.batch_size == own.test_dataloader.batch_size == 128
    assert loader.dataset.pipeline == own.test_dataloader.dataset.pipeline
    assert (loader.dataset.type, loader.dataset.data_root,
            loader.dataset.split) == ('RAFDB', 'data/rafdb', 'test')
    assert loader.dataset.target_classes == FERPLUS
    assert other.test_dataloader.dataset.type == 'RAFDB'
    # A model on its own dataset needs no names.
    for name in 'ferplus', 'nameless':
        cfg = merge(ferplus, checkpoints[name])
        assert 'target_classes' not in cfg.test_dataloader.dataset
    # Without the option, the names count, too.
    cfg = merge(ferplus, checkpoints['ferplus'], '--cfg-options',
                'test_dataloader.dataset.type=RAFDB')
    assert cfg.test_dataloader.dataset.target_classes == FERPLUS


def test_refusals(tmp_path, checkpoints):
    ferplus, rafdb = config('dan_ferplus'), config('dan_rafdb')
    with pytest.raises(
            SystemExit,
            match='nameless.pth has no names of classes'
            '.*`--dataset`'):
        merge(ferplus, checkpoints['nameless'], '--data-from', rafdb)
    with pytest.raises(
            SystemExit, match='names of 7 classes.*config has 8 outputs'):
        merge(ferplus, checkpoints['rafdb'], '--data-from', rafdb)
    (tmp_path / 'empty.py').write_text('model = None')
    with pytest.raises(SystemExit, match='found no `test_dataloader` in'):
        merge(ferplus, checkpoints['ferplus'], '--data-from',
              tmp_path / 'empty.py')
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(classes=('glad', 'grim'))),
            state_dict=dict(weight=torch.zeros(1))), tmp_path / 'mine.pth')
    with pytest.raises(SystemExit, match='names of 2 classes'):
        merge(ferplus, tmp_path / 'mine.pth')


def test_class_names_of_a_checkpoint(tmp_path, checkpoints):
    assert load_classes(checkpoints['rafdb']) == RAF
    assert load_classes(checkpoints['nameless']) is None
    torch.save({'x': torch.zeros(1)}, tmp_path / 'weights.pth')
    assert load_classes(str(tmp_path / 'weights.pth')) is None
    torch.save(dict(meta=open), tmp_path / 'code.pth')
    with pytest.raises(CheckpointLoadError, match='refers to the code'):
        load_classes(str(tmp_path / 'code.pth'))
    with pytest.raises(FileNotFoundError, match='Found no checkpoint'):
        load_classes(str(tmp_path / 'nowhere.pth'))
