# Copyright (c) dan_mm contributors. All rights reserved.
import shutil
import warnings

import cv2
import pytest
from conftest import draw_face, load_dataset

from dan_mm.reading.folders import list_images


def make(root, **counts):
    """Make folders of images, `a_b=3` for three in a/b."""
    for name, count in counts.items():
        folder = root.joinpath(*name.split('_'))
        folder.mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / f'{i}.png'), draw_face(i))


def load(root, split='train', **kwargs):
    return load_dataset('FERFolder', root, split=split, **kwargs)


def paths(dataset):
    return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}


def test_one_folder_is_parted(tmp_path):
    make(tmp_path, bored=20, amused=30)
    (tmp_path / '.cache').mkdir()
    parts = {split: load(tmp_path, split) for split in ('train', 'val')}
    assert parts['train'].metainfo['classes'] == ('amused', 'bored')
    assert (len(parts['train']), len(parts['val'])) == (45, 5)
    assert not paths(parts['train']) & paths(parts['val'])
    assert paths(load(tmp_path, 'test')) == paths(parts['val'])
    for dataset in parts.values():
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            name = dataset.metainfo['classes'][info['gt_label']]
            assert f'/{name}/' in info['img_path']


def test_folders_of_splits(tmp_path):
    make(tmp_path, train_a=4, train_b=4, test_a=2, test_b=1)
    assert len(load(tmp_path)) == 8
    # Without `val`, that is `test`.
    assert paths(load(tmp_path, 'val')) == paths(load(tmp_path, 'test'))
    assert len(load(tmp_path, 'val')) == 3
    make(tmp_path, val_b=3)
    assert len(load(tmp_path, 'val')) == 3
    # Indices are those of the training set, whatever is in a split.
    assert load(tmp_path, 'val').get_gt_labels().tolist() == [1, 1, 1]
    shutil.rmtree(tmp_path / 'test')
    assert paths(load(tmp_path, 'test')) == paths(load(tmp_path, 'val'))


def test_only_the_training_set_in_a_folder(tmp_path):
    make(tmp_path, train_a=20, train_b=20)
    assert len(load(tmp_path)) == 36
    assert len(load(tmp_path, 'test', val_split=.2)) == 8


def test_few_images_are_enough(tmp_path):
    make(tmp_path, a=3, b=3, c=3)
    assert sorted(load(tmp_path, 'val').get_gt_labels()) == [0, 1, 2]
    assert len(load(tmp_path)) == 6


def test_classes_can_be_given(tmp_path):
    make(tmp_path, a=10, b=10)
    dataset = load(tmp_path, classes=['b', 'a'])
    assert dataset.metainfo['classes'] == ('b', 'a')
    label = dataset.get_data_info(0)['gt_label']
    assert (label == 0) == ('/b/' in dataset.get_data_info(0)['img_path'])


def test_other_files_are_named(tmp_path):
    make(tmp_path, a=10, b=10)
    (tmp_path / 'a' / 'notes.txt').write_text('x')
    with pytest.warns(UserWarning, match='left out 1 files .*a/notes.txt'):
        assert len(load(tmp_path)) == 18
    cv2.imwrite(str(tmp_path / 'stray.png'), draw_face(0))
    with pytest.warns(UserWarning, match='left out 2 files .*stray.png'):
        assert len(load(tmp_path)) == 18


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*/nowhere'):
        load(tmp_path / 'nowhere')
    make(tmp_path, a=3)
    with pytest.raises(ValueError, match=r"folders \['a'\].*at least 2"):
        load(tmp_path)
    (tmp_path / 'b').mkdir()
    with pytest.raises(ValueError, match='no image in .*/b, expected'):
        load(tmp_path)
    make(tmp_path, c=1)
    with pytest.raises(ValueError, match=r"\['b'\].*expected only the clas"):
        load(tmp_path, classes=['a', 'c'])
    make(tmp_path / 's', Train_a=3, Test_a=3)
    with pytest.raises(ValueError, match="either a folder per class or"):
        load(tmp_path / 's')
    make(tmp_path / 't', train_a=3, train_b=3, validation_a=3)
    with pytest.raises(ValueError, match=r"Rename or move \['validation'\]"):
        load(tmp_path / 't')
    make(tmp_path / 'u', a=3, b=3)
    with pytest.raises(ValueError, match="'val' and val_split=0"):
        load(tmp_path / 'u', 'val', val_split=0)
    assert len(load(tmp_path / 'u', val_split=0)) == 6
    (tmp_path / 'y' / 'val').mkdir(parents=True)
    make(tmp_path / 'y', train_a=3, train_b=3)
    with pytest.raises(ValueError, match="no image of the split 'val' in"):
        load(tmp_path / 'y', 'val')
    make(tmp_path / 'x', train_a=3, train_b=3, val_z=1)
    with pytest.raises(ValueError, match=r"\['z'\].*expected only"):
        load(tmp_path / 'x', 'val')


@pytest.mark.parametrize('name', [
    '@eaDir', '__MACOSX', '.ipynb_checkpoints', '#recycle', '$RECYCLE.BIN',
    'System Volume Information', 'lost+found'
])
def test_folders_of_file_managers_are_not_read(tmp_path, name):
    root = tmp_path / 'root'
    make(root, train_a=4, train_b=4, val_a=1, val_b=1)
    # Each holds thumbnails or copies, which look like a split or a class.
    for parent in root, root / 'train', root / 'train' / 'a':
        shutil.copytree(root / 'val', parent / name)
    for folder, file in (('train', 'Thumbs.db'), ('train/b', 'desktop.ini'),
                         ('train/a', '._0.png'), ('val/a', 'Icon\r')):
        (root / folder / file).touch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for split, count in ('train', 8), ('val', 2):
            dataset = load(root, split)
            assert len(dataset) == count
            assert dataset.metainfo['classes'] == ('a', 'b')
            assert not any(name in path for path in paths(dataset))
        assert len(load(root / 'train', 'train', val_split=0)) == 8
    assert len(list_images(str(root))[0]) == 10
