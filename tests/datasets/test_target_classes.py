# Copyright (c) dan_mm contributors. All rights reserved.
"""Labels in the indices of the classes of another dataset, by their names."""
import csv
import os.path as osp
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import draw_face
from conftest import load_dataset as load

AFFECTNET = ('neutral', 'happiness', 'sadness', 'surprise', 'fear', 'disgust',
             'anger', 'contempt')
RAFDB = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger',
         'neutral')


def by_name(dataset):
    """The name of the class of each image."""
    return {
        info['img_path']: dataset.metainfo['classes'][info['gt_label']]
        for info in (dataset.get_data_info(i) for i in range(len(dataset)))
    }


@pytest.fixture
def affectnet(tmp_path):
    """AffectNet with 1 to 8 images of its classes."""
    for i in range(8):
        folder = tmp_path / 'train' / str(i)
        folder.mkdir(parents=True)
        for j in range(i + 1):
            (folder / f'{j}.jpg').touch()
    return dict(type='AffectNet', data_root=str(tmp_path))


def test_labels_are_those_of_the_target_classes(affectnet):
    own = load(**affectnet)
    # The same classes in another order, under other names.
    target = ('Contempt', 'angry', 'disgusted', 'Fear', 'surprise', 'sad',
              'happy', 'neutral')
    dataset = load(**affectnet, target_classes=target)
    assert dataset.metainfo['classes'] == target
    assert dataset.CLASSES == target and dataset.own_classes == AFFECTNET
    assert dataset.get_gt_labels().tolist() == [
        7 - label for label in own.get_gt_labels()
    ]
    assert dataset.describe_unmatched() == ''


def test_images_without_counterpart_are_left_out(affectnet):
    with pytest.warns(
            UserWarning,
            match=r'AffectNet leaves out 8 images of its classes without '
            r'counterpart: contempt \(8\).$'):
        dataset = load(**affectnet, target_classes=RAFDB)
    assert len(dataset) == 28
    assert Counter(by_name(dataset).values()) == dict(
        neutral=1,
        happiness=2,
        sadness=3,
        surprise=4,
        fear=5,
        disgust=6,
        anger=7)
    folders = {
        osp.basename(osp.dirname(path)): name
        for path, name in by_name(dataset).items()
    }
    assert folders == {str(i): AFFECTNET[i] for i in range(7)}

    with pytest.warns(
            UserWarning,
            match=r'leaves out 21 .*: neutral \(1\), happiness \(2\), .*anger '
            r'\(7\). Target classes without counterpart in AffectNet, so '
            'without images: calm, bored.'):
        dataset = load(
            **affectnet,
            target_classes=['calm', 'sad', 'bored', 'contempt', 'surprised'])
    assert Counter(dataset.get_gt_labels().tolist()) == {1: 3, 3: 8, 4: 4}


def test_refusals(affectnet):
    with pytest.raises(ValueError, match='one of the target.*glad.*grim'):
        load(**affectnet, target_classes=('glad', 'grim'))
    with pytest.raises(ValueError, match="'happy', 'Happiness', 'fear'"):
        load(**affectnet, target_classes=('happy', 'Happiness', 'fear'))
    with pytest.raises(
            ValueError, match='expected at least one of the target'):
        load(**affectnet, target_classes='fear')


@pytest.mark.parametrize('options', [
    dict(classes=('happiness', 'neutral')),
    dict(metainfo=dict(classes=('neutral', 'happiness'))),
])
def test_classes_are_not_renamed(affectnet, options):
    """The labels are indices of the official order."""
    with pytest.raises(
            ValueError,
            match="got the classes .*'neutral', 'happ"
            ".*'sadness'.*set `target_classes`"):
        load(**affectnet, **options)


def test_lazy_data_sets_have_the_target_classes(tmp_path):
    dataset = load(
        type='RAFDB',
        data_root=str(tmp_path / 'nowhere'),
        target_classes=AFFECTNET,
        lazy_init=True)
    assert dataset.metainfo['classes'] == AFFECTNET
    assert dataset.own_classes == RAFDB


def test_ferplus(ferplus_root):
    kwargs = dict(type='FERPlus', data_root=ferplus_root, soft_targets=True)
    own, mapped = load(**kwargs), load(**kwargs, target_classes=AFFECTNET)
    assert by_name(own) == by_name(mapped) and len(own) > 100
    order = [own.CLASSES.index(name) for name in AFFECTNET]
    for i in range(len(own)):
        np.testing.assert_array_equal(
            mapped.get_data_info(i)['gt_score'],
            own.get_data_info(i)['gt_score'][order])


def test_soft_targets_are_renormalised(tmp_path):
    # neutral 2, happiness 6, contempt 2: the last has no counterpart.
    (tmp_path / 'FER2013Train').mkdir()
    (tmp_path / 'FER2013Train' / 'a.png').touch()
    with open(tmp_path / 'fer2013new.csv', 'w', newline='') as file:
        csv.writer(file).writerows(
            [['Usage'], ['Training', 'a.png', 2, 6, 0, 0, 0, 0, 0, 2, 0, 0]])
    with pytest.warns(UserWarning, match=r'leaves out 0 .*contempt \(0\)'):
        dataset = load(
            type='FERPlus',
            data_root=str(tmp_path),
            soft_targets=True,
            target_classes=RAFDB)
    info = dataset.get_data_info(0)
    np.testing.assert_allclose(info['gt_score'], [0, 0, 0, .75, 0, 0, .25])
    assert info['gt_score'].dtype == np.float32 and info['gt_label'] == 3


def test_rafdb_after_the_split(tmp_path):
    (tmp_path / 'EmoLabel').mkdir()
    (tmp_path / 'Image' / 'aligned').mkdir(parents=True)
    lines = [f'train_{i:05d}.jpg {i % 7 + 1}' for i in range(70)]
    (tmp_path / 'EmoLabel' / 'list_patition_label.txt').write_text(
        '\n'.join(lines))
    for i in range(70):
        (tmp_path / 'Image' / 'aligned' / f'train_{i:05d}_aligned.jpg').touch()
    kwargs = dict(
        type='RAFDB', data_root=str(tmp_path), split='val', val_split=.2)
    own = load(**kwargs)
    with pytest.warns(UserWarning, match='without images: contempt.$'):
        mapped = load(**kwargs, target_classes=AFFECTNET)
    # The split is the same, whatever the labels mean.
    assert by_name(own) == by_name(mapped) and len(own) == 14
    assert own.get_gt_labels().tolist() != mapped.get_gt_labels().tolist()


def test_folders_and_drawn_faces(tmp_path):
    for name in 'Happy', 'glad', 'Sad':
        (tmp_path / 'mine' / name).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(f'{tmp_path}/mine/{name}/{i}.png', draw_face(i))
    with pytest.warns(UserWarning, match=r'leaves out 3 .*: glad \(3\). Targ'):
        dataset = load(
            type='FERFolder',
            data_root=f'{tmp_path}/mine',
            target_classes=AFFECTNET)
    assert dataset.own_classes == ('Happy', 'Sad', 'glad')
    for path, name in by_name(dataset).items():
        assert name == dict(
            Happy='happiness', Sad='sadness')[osp.basename(osp.dirname(path))]
    assert len(dataset) == 6  # of 3 x 3 for training

    kwargs = dict(
        type='SynthFace', data_root=f'{tmp_path}/drawn', num_identities=1)
    own = load(**kwargs, size=32)
    mapped = load(**kwargs, size=32, target_classes=AFFECTNET)
    assert by_name(own) == by_name(mapped) and len(mapped) == 8
    assert mapped.metainfo['classes'] == AFFECTNET
