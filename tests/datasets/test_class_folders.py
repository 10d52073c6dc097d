# Copyright (c) dan_mm contributors. All rights reserved.
"""AffectNet, SFEW and FER2013: a folder per class in a folder per split."""
import csv
import os.path as osp
import warnings
import zipfile
from collections import Counter

import pytest
from conftest import load_dataset as load
from conftest import shared

from dan_mm.datasets import FER2013, RAFDB, SFEW, AffectNet
from dan_mm.datasets.base import canonical_name

NAMES = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise',
         'neutral', 'contempt')
AFFECTNET = ('neutral', 'happiness', 'sadness', 'surprise', 'fear', 'disgust',
             'anger', 'contempt')


def make(root, split, classes, numbers):
    """Make folders of empty files: only transforms open them."""
    for name, number in zip(classes, numbers):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(number):
            (folder / f'{i}.jpg').touch()


def counts(dataset):
    """The number of images of each class, by the folder that each is in."""
    found = Counter()
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        folder = osp.basename(osp.dirname(info['img_path']))
        found[folder, dataset.metainfo['classes'][info['gt_label']]] += 1
    return dict(found)


def test_names_are_canonical():
    for dataset in AffectNet, SFEW, FER2013, RAFDB:
        classes = dataset.METAINFO['classes']
        assert set(classes) <= set(NAMES) and len(set(classes)) == len(classes)
    assert [
        canonical_name(name)
        for name in ('Angry', 'DISGUSTED', 'fearful', ' Happy', 'sad',
                     'Surprised', 'Neutral', 'glad')
    ] == [*NAMES[:-1], 'glad']


@pytest.mark.parametrize('dataset', [AffectNet, FER2013, RAFDB])
def test_official_counts_add_up(dataset):
    assert dataset.CLASS_COUNTS.keys() == dataset.OFFICIAL_COUNTS.keys()
    for split, known in dataset.CLASS_COUNTS.items():
        totals = dataset.OFFICIAL_COUNTS[split]
        for numbers in known:
            assert len(numbers) == len(dataset.METAINFO['classes'])
            assert sum(numbers) in (totals if isinstance(totals, tuple) else
                                    (totals, ))
    # Kaggle's test set of FER2013 is both of the original ones.
    public, (private, both) = (FER2013.CLASS_COUNTS['val'][0],
                               FER2013.CLASS_COUNTS['test'])
    assert [a + b for a, b in zip(public, private)] == list(both)


def test_affectnet_by_index_and_by_name(tmp_path):
    numbers = [3, 4, 1, 2, 5, 6, 2, 7]
    make(tmp_path / 'a', 'train', '01234567', numbers)
    shouted = [name.title() for name in AFFECTNET]
    make(tmp_path / 'b', 'Training', shouted, numbers)
    for root, folders in (('a', '01234567'), ('b', shouted)):
        dataset = load('AffectNet', tmp_path / root)
        assert dataset.metainfo['classes'] == AFFECTNET
        assert counts(dataset) == dict(zip(zip(folders, AFFECTNET), numbers))
        seven = load('AffectNet', tmp_path / root, num_classes=7)
        assert seven.metainfo['classes'] == AFFECTNET[:7]
        assert counts(seven) == dict(
            list(zip(zip(folders, AFFECTNET), numbers))[:7])


def test_affectnet_splits(tmp_path):
    make(tmp_path, 'train', '01234567', [10] * 8)
    make(tmp_path, 'valid', '01234567', [2] * 8)
    assert len(load('AffectNet', tmp_path, split='val')) == 16
    part = load('AffectNet', tmp_path, split='val', val_split=.1)
    assert Counter(part.get_gt_labels().tolist()) == {i: 1 for i in range(8)}
    with pytest.raises(
            ValueError,
            match="no official split 'test', only .'tra"
            "in', 'val'.. Use one of them"):
        load('AffectNet', tmp_path, split='test')
    with pytest.raises(ValueError, match='num_classes=6, expected 8, or 7'):
        load('AffectNet', tmp_path, num_classes=6)


def test_counts_are_compared(tmp_path):
    make(tmp_path, 'train', '01234567', [1] * 8)
    with pytest.warns(
            UserWarning, match='found 8 .*expected 287651 or 287568'):
        AffectNet(str(tmp_path))
    with pytest.warns(UserWarning, match='found 7 .*expected 283901'):
        AffectNet(str(tmp_path), num_classes=7)
    # As many in all, but the folders are in another order.
    dataset = FER2013(str(tmp_path), lazy_init=True)
    for split, known in FER2013.CLASS_COUNTS.items():
        for numbers in known:
            assert dataset.compare_counts(split, numbers) is None
    a, b, c, happiness, sadness, *others = FER2013.CLASS_COUNTS['val'][0]
    problem = dataset.compare_counts('val',
                                     [a, b, c, sadness, happiness, *others])
    assert ("official split 'val'" in problem and ': 653 of happiness '
            '(expected 895), 895 of sadness (expected 653). Check' in problem)
    # Kaggle's test set is both of the original ones.
    assert sum(FER2013.CLASS_COUNTS['test'][1]) == 7178
    assert 'expected 3589 or 7178' in dataset.compare_counts('test', [1] * 7)


def test_other_numbers_of_the_classes_are_a_warning(tmp_path, monkeypatch):
    make(tmp_path, 'val', '0123456', range(1, 8))
    monkeypatch.setitem(FER2013.OFFICIAL_COUNTS, 'val', 28)
    monkeypatch.setitem(FER2013.CLASS_COUNTS, 'val', [(1, 2, 3, 4, 5, 6, 7)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        FER2013(str(tmp_path), 'val')
    monkeypatch.setitem(FER2013.CLASS_COUNTS, 'val', [(2, 1, 3, 4, 5, 6, 7)])
    with pytest.warns(UserWarning, match=r': 1 of anger \(expected 2\), 2 of'):
        FER2013(str(tmp_path), 'val')


def test_sfew(tmp_path):
    emotions = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad',
                'Surprise')
    make(tmp_path / 'Train', 'Train_Aligned_Faces', emotions, range(1, 8))
    make(tmp_path, 'Val_Aligned_Faces_new', emotions, [2] * 7)
    (tmp_path / 'Test').mkdir()
    (tmp_path / 'Test' / 'x.png').touch()
    train = load('SFEW', tmp_path)
    names = [canonical_name(name) for name in emotions]
    assert counts(train) == dict(zip(zip(emotions, names), range(1, 8)))
    assert train.get_gt_labels().tolist() == sum(
        ([i] * (i + 1) for i in range(7)), [])
    assert len(load('SFEW', tmp_path, split='val')) == 14
    with pytest.raises(ValueError, match="labels are not given out.*'val'"):
        load('SFEW', tmp_path, split='test')
    # Indices are no names there.
    (tmp_path / 'Val_Aligned_Faces_new' / '3').mkdir()
    with pytest.raises(ValueError, match=r"folders \['3'\], expected only"):
        load('SFEW', tmp_path, split='val')


def test_fer2013_of_kaggle_has_no_validation_set(tmp_path):
    make(tmp_path, 'train', '0123456', [10] * 7)
    make(tmp_path, 'test', '0123456', [1] * 7)
    with pytest.raises(
            FileNotFoundError,
            match=r"splits \['test', 'train'\] .*'val'.*val_split=0.1"):
        load('FER2013', tmp_path, split='val')
    assert len(load('FER2013', tmp_path, split='val', val_split=.1)) == 7
    assert len(load('FER2013', tmp_path, split='test')) == 7


def test_ambiguous_folders_are_refused(tmp_path):
    make(tmp_path, 'train', AFFECTNET, [1] * 8)
    (tmp_path / 'train' / '1').mkdir()
    with pytest.raises(
            ValueError,
            match="folders '1' and 'happiness', both of which are 'happiness'"
    ):
        load('AffectNet', tmp_path)
    (tmp_path / 'train' / '1').rename(tmp_path / 'train' / 'awe')
    with pytest.raises(ValueError, match=r"folders \['awe'\], expected only"):
        load('AffectNet', tmp_path)
    (tmp_path / 'train' / 'awe').rename(tmp_path / 'Train')
    with pytest.raises(ValueError, match="'Train' and 'train', both"):
        load('AffectNet', tmp_path)


def test_what_is_missing_or_left_out_is_named(tmp_path):
    make(tmp_path, 'train', AFFECTNET, [1] * 7 + [0])
    with pytest.raises(ValueError, match='no image in .*contempt, expected'):
        load('AffectNet', tmp_path)
    assert len(load('AffectNet', tmp_path, num_classes=7)) == 7
    (tmp_path / 'train' / 'fear' / 'notes.txt').touch()
    (tmp_path / 'train' / 'stray.jpg').touch()
    with pytest.warns(UserWarning, match='left out 2 files .*stray.jpg'):
        load('AffectNet', tmp_path, num_classes=7)
    with pytest.raises(FileNotFoundError, match='no folder .*/nowhere'):
        load('AffectNet', tmp_path / 'nowhere')


def test_links_to_nowhere_are_named(tmp_path):
    make(tmp_path, 'train', '0123456', [2] * 7)
    link = tmp_path / 'train' / '3' / 'a.jpg'
    link.symlink_to(tmp_path / 'gone')
    with pytest.raises(FileNotFoundError, match='broken link .*/3/a.jpg'):
        load('FER2013', tmp_path)
    link.unlink()
    for name in 'train/happy', 'val':
        link = tmp_path / name
        link.symlink_to(tmp_path / 'gone')
        with pytest.raises(
                FileNotFoundError,
                match=f'/{name} is a broken link to .*gone'):
            load('FER2013', tmp_path)
        link.unlink()
    assert len(load('FER2013', tmp_path)) == 14


def test_hidden_images_and_loops_are_not_read(tmp_path):
    make(tmp_path, 'train', '0123456', [2] * 7)
    make(tmp_path, 'train/3', ['.ipynb_checkpoints'], [2])
    (tmp_path / 'train' / '3' / '.a.jpg').touch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(load('FER2013', tmp_path)) == 14
    (tmp_path / 'train' / '3' / 'loop').symlink_to('.')
    (tmp_path / 'train' / 'happiness').symlink_to('..')
    with pytest.warns(UserWarning, match='left out 2 files .*/happiness'):
        assert len(load('FER2013', tmp_path)) == 14


def test_real_images(tmp_path):
    """The labels that FER2013 gives images of FER+."""
    archive = shared('data', 'ferplus_train_valid.zip')
    with zipfile.ZipFile(archive) as file:
        rows = file.read('ferplus/fer2013_original_labels.csv')
        rows = list(csv.DictReader(rows.decode().splitlines()))[:60]
        for row in rows:
            path = row['path'].replace('data/', '')
            folder = tmp_path / 'val' / row['fer2013_label']
            folder.mkdir(parents=True, exist_ok=True)
            (folder / osp.basename(path)).write_bytes(
                file.read(f'ferplus/{path}'))
    dataset = load(
        'FER2013',
        tmp_path,
        split='val',
        pipeline=[dict(type='LoadCheckedImage')],
        test_mode=True)
    expected = {
        osp.basename(row['path']): canonical_name(row['fer2013_label'])
        for row in rows
    }
    found = {
        osp.basename(info['img_path']):
        FER2013.METAINFO['classes'][info['gt_label']]
        for info in dataset
    }
    assert found == expected and len(found) == 60
    assert dataset[0]['img'].shape == (48, 48, 3)
