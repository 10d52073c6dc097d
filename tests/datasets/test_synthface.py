# Copyright (c) dan_mm contributors. All rights reserved.
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmpretrain.registry import DATASETS, TRANSFORMS

from dan_mm.datasets import synthface
from dan_mm.datasets.synthface import SynthFace
from dan_mm.datasets.synthface_drawing import PARTS, draw_face


def draw(root, split='train', num_identities=3, **kwargs):
    return DATASETS.build(
        dict(
            type='SynthFace',
            data_root=str(root),
            split=split,
            num_identities=num_identities,
            **kwargs))


def test_draw_face_shapes_and_seed():
    face = draw_face('fear', identity=3)
    assert face['img'].shape == (112, 112, 3)
    assert face['img'].dtype == np.uint8
    assert face['parts'].shape == (4, 112, 112)
    assert face['parts'].dtype == bool
    assert face['landmarks'].shape == (5, 2)
    again = draw_face('fear', identity=3)
    assert np.array_equal(face['img'], again['img'])
    assert np.array_equal(face['parts'], again['parts'])
    for other in dict(variant=1), dict(seed=1), dict(identity=4):
        options = dict(identity=3)
        options.update(other)
        assert not np.array_equal(face['img'],
                                  draw_face('fear', **options)['img'])
    assert draw_face('fear', 3, size=48)['img'].shape == (48, 48, 3)


@pytest.mark.parametrize('expression', SynthFace.METAINFO['classes'])
def test_landmarks_lie_in_their_parts(expression):
    for identity in range(12):
        face = draw_face(expression, identity)
        masks = dict(zip(PARTS, face['parts']))
        for point, part in zip(face['landmarks'],
                               ('eyes', 'eyes', 'nose', 'mouth', 'mouth')):
            x, y = point.astype(int)
            assert masks[part][y, x], (identity, part)
        left_eye, right_eye, nose, left, right = face['landmarks']
        assert left_eye[0] < right_eye[0] and left[0] < right[0]
        ys, _ = np.nonzero(masks['brows'])
        assert ys.mean() < (left_eye + right_eye)[1] / 2 < nose[1]
        assert all(0 < mask.mean() < .15 for mask in masks.values())


def test_action_units_move_the_face():
    # In units of the eye distance, along the face: a smile raises the corners
    # of the mouth, grief lowers them, surprise opens the mouth.
    heights, openings = {}, {}
    for expression in SynthFace.METAINFO['classes']:
        height, opening = [], []
        for identity in range(20):
            face = draw_face(expression, identity)
            marks = face['landmarks']
            right = marks[1] - marks[0]
            unit = np.linalg.norm(right)
            down = np.array([-right[1], right[0]]) / unit
            eyes = marks[:2].mean(0)
            height.append((marks[3:].mean(0) - eyes) @ down / unit)
            ys, xs = np.nonzero(face['parts'][PARTS.index('mouth')])
            along = (np.stack([xs, ys], 1) - eyes) @ down / unit
            opening.append(np.ptp(along))
        heights[expression] = np.mean(height)
        openings[expression] = np.mean(opening)
    assert heights['happiness'] < heights['neutral'] < heights['sadness']
    assert max(openings, key=openings.get) in ('surprise', 'disgust')
    assert openings['surprise'] > 1.5 * openings['neutral']


def test_contempt_is_on_one_side():
    for identity in range(10):
        units = draw_face('contempt', identity)['action_units']
        assert units['AU14'] >= .6
        assert draw_face('happiness', identity)['action_units']['AU14'] == 0


def test_refusals():
    with pytest.raises(ValueError, match="expression 'joy', expected one of"):
        draw_face('joy', 0)
    with pytest.raises(ValueError, match='size=8, expected at least 16'):
        draw_face('fear', 0, size=8)
    with pytest.raises(ValueError, match='num_identities=0, expected 1'):
        SynthFace('unused', num_identities=0)
    with pytest.raises(ValueError, match="Use split='val', which has other"):
        SynthFace('unused', val_split=.1)


def test_dataset(tmp_path):
    datasets = {
        split: draw(tmp_path, split, number)
        for split, number in (('train', 4), ('val', 2), ('test', 3))
    }
    persons = {}
    for split, dataset in datasets.items():
        labels = dataset.get_gt_labels()
        assert np.bincount(labels).tolist() == [len(labels) // 8] * 8
        persons[split] = {
            dataset.get_data_info(i)['identity']
            for i in range(len(dataset))
        }
    assert [len(group) for group in persons.values()] == [4, 2, 3]
    assert len(set().union(*persons.values())) == 9

    # The file is the drawing, and its masks are those of the drawing.
    info = datasets['test'].get_data_info(5)
    face = draw_face(datasets['test'].metainfo['classes'][5], info['identity'])
    assert info['gt_label'] == 5
    assert np.array_equal(cv2.imread(info['img_path']), face['img'])
    bits = cv2.imread(info['parts_path'], cv2.IMREAD_UNCHANGED)
    for i in range(len(PARTS)):
        assert np.array_equal(bits >> i & 1, face['parts'][i])
    assert np.allclose(info['landmarks'], face['landmarks'], atol=.01)


def test_drawn_once(tmp_path, monkeypatch):
    draw(tmp_path)
    monkeypatch.setattr(SynthFace, '_draw', lambda *args: pytest.fail())
    draw(tmp_path)


def test_interrupted(tmp_path, monkeypatch):

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthface, 'track_progress_rich', interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path)
    assert [files for _, _, files in os.walk(tmp_path) if files] == []
    assert len(draw(tmp_path)) == 24


@pytest.mark.parametrize('name, content', [
    ('0000000_fear.png', None),
    ('0000001_anger_parts.png', None),
    ('annotations.json', None),
    ('annotations.json', '[{'),
    ('annotations.json', '[{}]'),
])
def test_broken_cache(tmp_path, name, content):
    folder = os.path.dirname(draw(tmp_path).get_data_info(0)['img_path'])
    path = os.path.join(folder, name)
    os.remove(path)
    if content is not None:
        with open(path, 'w') as file:
            file.write(content)
    with pytest.raises(
            ValueError, match=f'misses 1 files .*{name}.*draw it again'):
        draw(tmp_path)


def test_another_version_is_drawn_anew():
    # Where this fails the drawing has changed: give `SynthFace.VERSION`
    # another number, since faces that are kept on disks are of the old one.
    face = draw_face('surprise', identity=5)
    assert SynthFace.VERSION == 1
    assert np.allclose(
        face['landmarks'],
        [[39.6, 54.1], [68.8, 51.5], [55.8, 70.4], [46.2, 83.8], [67.4, 81.9]],
        atol=.06)
    assert abs(face['action_units']['AU26'] - .814) < .001


def test_leftovers_of_killed_processes_go(tmp_path):
    folder = os.path.dirname(
        os.path.dirname(draw(tmp_path).get_data_info(0)['img_path']))
    for name in 'old', 'new':
        os.makedirs(f'{folder}/.drawing-{name}')
    os.utime(f'{folder}/.drawing-old', (0, 0))
    draw(tmp_path, 'val', 1)
    assert sorted(os.listdir(folder)) == ['.drawing-new', 'train-3', 'val-1']


@pytest.mark.slow
def test_two_processes(tmp_path):
    code = ('import torch.distributed as dist, dan_mm; '
            'from dan_mm.datasets import SynthFace; '
            "dist.init_process_group('gloo'); "
            f"print('found', len(SynthFace('{tmp_path}', num_identities=2)))")
    process = subprocess.run([
        sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2',
        '--master-port=29517', '--no-python', sys.executable, '-c', code
    ],
                             text=True,
                             capture_output=True)
    assert process.stdout.count('found 16') == 2, process.stderr


def test_cover_parts(tmp_path):
    info = draw(tmp_path).get_data_info(3)
    info['img'] = img = cv2.imread(info['img_path'])
    masks = draw_face('happiness', info['identity'])['parts']
    cover = TRANSFORMS.build(dict(type='CoverParts', parts=['brows', 'mouth']))
    covered = cover(dict(info))['img']
    changed = (covered != img).any(axis=2)
    expected = masks[PARTS.index('brows')] | masks[PARTS.index('mouth')]
    assert not (changed & ~expected).any()
    assert changed.sum() > .95 * expected.sum()
    assert len(np.unique(covered[expected], axis=0)) == 1
    assert np.array_equal(img, cv2.imread(info['img_path']))

    with pytest.raises(ValueError, match="expected a list of some of"):
        TRANSFORMS.build(dict(type='CoverParts', parts=['ears']))
    with pytest.raises(ValueError, match='found none for an image'):
        cover(dict(img=img))
    with pytest.raises(ValueError, match='right after the image is loaded'):
        cover(dict(info, img=img[:50]))


@pytest.mark.slow
def test_pixels_do_not_tell(tmp_path):
    # A linear model of the pixels is far from enough.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def load(split, number):
        dataset = draw(tmp_path, split, number)
        images = [
            cv2.resize(
                cv2.imread(dataset.get_data_info(i)['img_path']), (24, 24),
                interpolation=cv2.INTER_AREA).ravel()
            for i in range(len(dataset))
        ]
        return np.array(images, np.float32), dataset.get_gt_labels()

    model = make_pipeline(StandardScaler(), LogisticRegression(C=.01))
    model.fit(*load('train', 50))
    accuracy = model.score(*load('test', 20))
    assert .15 < accuracy < .6
