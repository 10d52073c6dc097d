# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import os
import os.path as osp
import shutil
import warnings
import zipfile
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import draw_face
from conftest import load_dataset as build
from conftest import shared

from dan_mm.datasets import RAFDB, FERPlus


@pytest.fixture
def rafdb_root(tmp_path):
    """RAF-DB's layout with 3 training and 2 test images for each class."""
    folder = tmp_path / 'Image' / 'aligned'
    folder.mkdir(parents=True)
    (tmp_path / 'EmoLabel').mkdir()
    lines = []
    for split, number in ('test', 14), ('train', 21):
        for i in range(number):
            name = f'{split}_{i + 1:05d}'
            lines.append(f'{name}.jpg {i % 7 + 1}')
            cv2.imwrite(str(folder / f'{name}_aligned.jpg'), draw_face(i, 96))
    path = tmp_path / 'EmoLabel' / 'list_patition_label.txt'
    path.write_text('\n'.join(lines) + '\n')
    return tmp_path


def annotations(root):
    return root / 'EmoLabel' / 'list_patition_label.txt'


def test_rafdb(rafdb_root):
    with pytest.warns(UserWarning, match='found 21 images.*expected 12271'):
        train = RAFDB(str(rafdb_root), 'train')
    with pytest.warns(UserWarning, match='found 14 images.*expected 3068'):
        test = RAFDB(str(rafdb_root), 'test', test_mode=True)
    # Label 1 is surprise, 4 happiness, 7 neutral.
    assert train.CLASSES[0] == 'surprise' and train.CLASSES[3] == 'happiness'
    assert train.CLASSES[6] == 'neutral' and len(train.CLASSES) == 7
    assert train.get_gt_labels().tolist() == [i % 7 for i in range(21)]
    assert test[3]['img_path'].endswith('test_00004_aligned.jpg')
    assert test[3]['gt_label'] == 3
    assert 'Split: \ttest' in repr(test)


def test_validation_split_is_stratified_and_seeded(rafdb_root):
    kwargs = dict(type='RAFDB', data_root=str(rafdb_root), val_split=1 / 3)
    parts = [build(split=split, **kwargs) for split in ('train', 'val')]
    train, val = [{info['img_path'] for info in part} for part in parts]
    assert len(train) == 14 and len(val) == 7 and not train & val
    for part, number in zip(parts, (2, 1)):
        assert Counter(part.get_gt_labels().tolist()) == {
            label: number
            for label in range(7)
        }
    again = {info['img_path'] for info in build(split='val', **kwargs)}
    other = {
        info['img_path']
        for info in build(split='val', val_seed=1, **kwargs)
    }
    assert again == val != other
    assert len(build(split='test', **kwargs)) == 14


@pytest.mark.parametrize('line', [
    'train_00001.jpg 8', 'train_00001.jpg 0', 'train_00001.jpg',
    '../train_00001.jpg 1', 'train_00001.jpg x'
])
def test_rafdb_refuses_unknown_annotations(rafdb_root, line):
    path = annotations(rafdb_root)
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(ValueError, match='line 36 of .*expected .train_'):
        RAFDB(str(rafdb_root))


def test_rafdb_refuses_two_labels_for_a_image(rafdb_root):
    path = annotations(rafdb_root)
    path.write_text(path.read_text() + 'train_00001.jpg 5\n')
    with pytest.raises(ValueError, match='two labels for .*train_00001'):
        RAFDB(str(rafdb_root))


def test_rafdb_names_what_is_missing(rafdb_root):
    with pytest.raises(ValueError, match="no official split 'val'.*val_split"):
        RAFDB(str(rafdb_root), 'val')
    with pytest.raises(ValueError, match="split='dev', expected"):
        RAFDB(str(rafdb_root), 'dev')
    with pytest.raises(ValueError, match='val_split=1, expected'):
        RAFDB(str(rafdb_root), val_split=1)
    with pytest.raises(ValueError, match='cannot hold out val_split=0.01'):
        build(type='RAFDB', data_root=str(rafdb_root), val_split=0.01)
    missing = rafdb_root / 'Image' / 'aligned' / 'train_00002_aligned.jpg'
    os.remove(missing)
    with pytest.raises(FileNotFoundError, match='misses 1 of 21.*train_00002'):
        RAFDB(str(rafdb_root))
    shutil.rmtree(rafdb_root / 'Image')
    with pytest.raises(FileNotFoundError, match='misses 21 of 21 '):
        RAFDB(str(rafdb_root))
    os.remove(annotations(rafdb_root))
    with pytest.raises(FileNotFoundError, match='no annotation file .*patiti'):
        RAFDB(str(rafdb_root))
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
        RAFDB(str(rafdb_root / 'nowhere'))


def majority(votes):
    """Microsoft's rule once more, in other words: drop single votes, then an
    absolute majority of what is left."""
    kept = {i: vote for i, vote in enumerate(votes) if vote > 1}
    for i, vote in kept.items():
        if i < 8 and vote > sum(kept.values()) / 2:
            return i
    return None


def test_ferplus_majority_and_votes(tmp_path):
    rng = np.random.default_rng(0)
    cases = [[0] * 10 for _ in range(300)]
    for votes in cases:
        liked = rng.integers(0, 10, 3)
        for _ in range(10):
            votes[rng.choice(liked, p=[.6, .3, .1])] += 1
    cases += [[5, 5] + [0] * 8, [4, 1, 1, 1, 1, 1, 1, 0, 0, 0],
              [0, 5, 0, 0, 0, 0, 0, 0, 1, 4], [1] * 10]
    (tmp_path / 'FER2013Train').mkdir()
    with open(tmp_path / 'fer2013new.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['Usage'] * 12)
        writer.writerow(['Training', '', *[0] * 9, 10])  # no face, no image
        for i, votes in enumerate(cases):
            writer.writerow(['Training', f'fer{i}.png', *votes])
            (tmp_path / 'FER2013Train' / f'fer{i}.png').touch()
    dataset = build(type='FERPlus', data_root=str(tmp_path), soft_targets=True)
    found = {osp.basename(info['img_path']): info for info in dataset}
    expected = {
        f'fer{i}.png': majority(votes)
        for i, votes in enumerate(cases) if majority(votes) is not None
    }
    assert {name: info['gt_label'] for name, info in found.items()} == expected
    assert 'fer301.png' in found and 'fer300.png' not in found
    for name, info in found.items():
        votes = np.array(cases[int(name[3:-4])][:8], float)
        votes[votes == 1] = 0
        np.testing.assert_allclose(
            info['gt_score'], votes / votes.sum(), rtol=1e-6)
        assert info['gt_score'].argmax() == info['gt_label']

    # Without a majority they are for training only, with their votes.
    settings = dict(type='FERPlus', data_root=str(tmp_path), soft_targets=True)
    more = build(ambiguous=True, val_split=0.2, **settings)
    held_out = build(ambiguous=True, split='val', val_split=0.2, **settings)
    names = [{osp.basename(info['img_path'])
              for info in part} for part in (more, held_out)]
    assert not names[0] & names[1] and names[1] <= set(expected)
    ambiguous = names[0] - set(expected)
    assert names[0] | names[1] == ambiguous | set(expected)
    assert 'fer300.png' in ambiguous and 'fer303.png' not in ambiguous
    for info in more:
        number = int(osp.basename(info['img_path'])[3:-4])
        votes = np.array(cases[number], float)
        votes[votes == 1] = 0
        assert info['gt_label'] == votes.argmax() < 8
        np.testing.assert_allclose(
            info['gt_score'], votes[:8] / votes[:8].sum(), rtol=1e-6)
    with pytest.raises(ValueError, match='ambiguous=True, expected soft_tar'):
        build(type='FERPlus', data_root=str(tmp_path), ambiguous=True)


def test_ferplus_splits(ferplus_root, tmp_path):
    kwargs = dict(type='FERPlus', data_root=ferplus_root)
    train, official = build(**kwargs), build(split='val', **kwargs)
    assert 100 < len(train) <= 160 and 20 < len(official) <= 40
    held_out = build(split='val', val_split=0.1, **kwargs)
    assert len(held_out) == -(-len(train) // 10)
    assert 'FER2013Train' in held_out[0]['img_path']
    assert 'FER2013Valid' in official[0]['img_path']
    # The private test set is not in this copy.
    with pytest.warns(UserWarning, match="found 1 .*'train'.*expected 25060"):
        path = tmp_path / 'fer2013new.csv'
        path.write_text('\ufeffUsage\nTraining,a.png,10' + ',0' * 9 +
                        '\nPrivateTest,x.png,10' + ',0' * 9)
        (tmp_path / 'FER2013Train').mkdir()
        (tmp_path / 'FER2013Train' / 'a.png').touch()
        FERPlus(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='misses 1 of 1 .*x.png'):
        FERPlus(str(tmp_path), 'test')


@pytest.mark.parametrize('row', [
    'Training,fer0.png,1,2,3', 'Training,fer0.png' + ',-1' * 10,
    'Training,fer0.png' + ',1.5' * 10, 'Training,../fer0.png' + ',1' * 10,
    'Trainnig,fer0.png' + ',1' * 10, 'Training'
])
def test_ferplus_refuses_unknown_annotations(tmp_path, row):
    (tmp_path / 'fer2013new.csv').write_text(f'Usage\n{row}\n')
    with pytest.raises(
            ValueError, match='line 2 of .*fer2013new.csv.*expecte'):
        FERPlus(str(tmp_path))


def test_ferplus_reads_label_csv_where_there_is_no_other(tmp_path):
    folder = tmp_path / 'FER2013Valid'
    folder.mkdir()
    (folder / 'label.csv'
     ).write_text('fer1.png,"(0, 0, 48, 48)",0,0,0,0,10,0,0,0,0,0\n')
    (folder / 'fer1.png').touch()
    dataset = build(type='FERPlus', data_root=str(tmp_path), split='val')
    assert dataset[0]['gt_label'] == dataset.CLASSES.index('anger')


@pytest.mark.slow
def test_ferplus_has_the_official_counts(tmp_path):
    with zipfile.ZipFile(shared('data', 'ferplus_train_valid.zip')) as file:
        file.extractall(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        train = FERPlus(str(tmp_path / 'ferplus'))
        val = FERPlus(str(tmp_path / 'ferplus'), 'val')
    assert (len(train), len(val)) == (25060, 3199)
    assert set(train.get_gt_labels()) == set(range(8))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be'])
def test_annotations_in_unicode_are_read(rafdb_root, tmp_path, encoding):
    path = annotations(rafdb_root)
    text = path.read_text()
    bom = '\ufeff' if encoding == 'utf-16-be' else ''
    path.write_text(bom + text, encoding=encoding)
    with pytest.warns(UserWarning, match='found 21 '):
        labels = RAFDB(str(rafdb_root)).get_gt_labels()
    assert labels.tolist() == [i % 7 for i in range(21)]

    (tmp_path / 'FER2013Train').mkdir()
    (tmp_path / 'FER2013Train' / 'é.png').touch()
    (tmp_path / 'fer2013new.csv').write_text(
        bom + 'Usage,Image name\r\nTraining,é.png,10' + ',0' * 9 + '\r\n',
        encoding=encoding)
    dataset = build(type='FERPlus', data_root=str(tmp_path))
    assert dataset[0]['img_path'].endswith('é.png')


@pytest.mark.parametrize('content', [
    'Training,é.png,10,0,0,0,0,0,0,0,0,0\n'.encode('latin-1'),
    'Training,a.png,10,0,0,0,0,0,0,0,0,0\n'.encode('utf-16-le'), b'\xff\xfeT',
    b'PK\x03\x04\x14\0\x06\0', b'\x89PNG\r\n\x1a\n\0\0'
])
def test_annotations_that_are_not_unicode_are_named(tmp_path, content):
    path = tmp_path / 'fer2013new.csv'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='UTF-8') as error:
        FERPlus(str(tmp_path))
    assert str(path) in str(error.value) and '\n' not in str(error.value)
