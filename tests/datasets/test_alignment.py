# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import warnings

import cv2
import numpy as np
import pytest
from conftest import draw_face, shared
from mmpretrain.registry import DATASETS, TRANSFORMS

from dan_mm.datasets import FER2013, RAFDB, SFEW, AffectNet, FERPlus, SynthFace
from dan_mm.imaging import (align_face, box_transform, face_template,
                            similarity_transform)


def least_squares(source, target):
    """The same transform as a linear system, with its four unknowns."""
    x, y = source.T
    zero, one = np.zeros(len(x)), np.ones(len(x))
    system = np.block([[x[:, None], -y[:, None], one[:, None], zero[:, None]],
                       [y[:, None], x[:, None], zero[:, None], one[:, None]]])
    a, b, tx, ty = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


def test_the_transform_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    for number in 2, 5, 9:
        for _ in range(20):
            source, target = rng.uniform(-50, 300, (2, number, 2))
            matrix = similarity_transform(source, target)
            assert np.allclose(matrix, least_squares(source, target))


def test_a_similarity_is_found():
    angle, scale = np.deg2rad(25), 0.4
    matrix = np.array([[scale * np.cos(angle), -scale * np.sin(angle), 12],
                       [scale * np.sin(angle), scale * np.cos(angle), -7]])
    source = face_template((300, 300))
    target = source @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(similarity_transform(source, target), matrix)
    # A mirror image is not one: it is not turned over.
    mirrored = similarity_transform(source, source * (-1, 1))
    assert np.linalg.det(mirrored[:, :2]) >= 0


def test_templates():
    assert np.allclose(face_template((112, 112))[0], (38.2946, 51.6963))
    assert np.allclose(
        face_template((224, 224)), 2 * face_template((112, 112)))
    wide = face_template((212, 112))
    assert np.allclose(wide - face_template((112, 112)), (50, 0))
    # A quarter on each side: two thirds of the size, in the middle.
    margin = face_template((112, 112), margin=0.25)
    assert np.allclose(margin, face_template((112, 112)) * 2 / 3 + 112 / 6)


@pytest.mark.parametrize('points, message', [
    (np.zeros((5, 2)), 'coincide'),
    (np.full((5, 2), np.nan), 'not finite'),
    (np.zeros((1, 2)), 'at least 2'),
    (np.zeros((5, 3)), 'expected .N, 2.'),
])
def test_points_that_have_no_transform(points, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(points, np.ones_like(points))


def dots(points, size, radius=4):
    img = np.zeros((size, size, 3), np.uint8)
    for x, y in points:
        cv2.circle(img, (round(x * 16), round(y * 16)), radius * 16,
                   (255, ) * 3, -1, cv2.LINE_AA, 4)
    return img


def centres(img):
    """The middle of each of five dots, from left to right."""
    number, _, _, found = cv2.connectedComponentsWithStats(
        (img[..., 0] > 127).astype(np.uint8))
    assert number == 6
    return found[1:][np.lexsort(found[1:].T[::-1])]


@pytest.mark.parametrize('scale', [0.1, 0.3, 0.7, 2.5])
def test_landmarks_are_where_the_template_has_them(scale):
    size = (160, 160)
    target = face_template(size, 0.1)
    angle = np.deg2rad(-30)
    turn = np.array([[np.cos(angle), -np.sin(angle)],
                     [np.sin(angle), np.cos(angle)]]) / scale
    points = (target - 80) @ turn.T
    points += 20 / scale - points.min(0)
    img = dots(points, int(points.max() + 20 / scale),
               max(round(4 / scale), 3))
    crop = align_face(img, points, size=160, margin=0.1)
    assert crop.shape == (160, 160, 3) and crop.dtype == np.uint8
    expected = target[np.lexsort(target.T[::-1])]
    assert np.abs(centres(crop) - expected).max() < 0.4


def test_an_image_that_fits_is_left_alone():
    img = draw_face(3, 112)
    for interpolation in 'nearest', 'bilinear':
        same = align_face(
            img, face_template((112, 112)), interpolation=interpolation)
        assert np.array_equal(same, img)


@pytest.mark.parametrize('scale', [0.11, 0.3, 0.45, 0.8])
def test_a_turned_image_gives_the_same_crop(scale):
    """Shrinking averages the same pixels whichever side is up."""
    img = draw_face(3, 600)
    points = (face_template((112, 112)) - 56) / scale + [301.3, 297.8]
    expected = align_face(img, points).astype(int)
    for _ in range(3):
        points = np.stack([points[:, 1], img.shape[1] - 1 - points[:, 0]], 1)
        img = np.ascontiguousarray(np.rot90(img))
        assert np.abs(align_face(img, points) - expected).mean() < 0.1


def test_boxes():
    matrix = box_transform((10, 20, 30, 60), (100, 100), margin=0.25)
    # The longer side of 40 with a half of it around.
    assert np.allclose(matrix @ (20, 40, 1), (50, 50))
    assert np.allclose(matrix @ (20, 10, 1), (50, 0))
    img = dots([(20, 40)], 80)
    crop = align_face(img, bbox=(10, 20, 30, 60), size=(100, 50))
    assert crop.shape == (50, 100, 3)
    assert (crop[25, 50] == 255).all()
    # The part that is outside the image is black.
    white = np.full_like(img, 255)
    assert (align_face(white, bbox=(-40, -40, -2, -2)) == 0).all()
    for box in (5, 5, 5, 9), (0, 0, 9, -1), (0, 0, 9, np.nan):
        with pytest.raises(ValueError, match='left < right'):
            box_transform(box, (10, 10))


def test_the_transform_of_a_pipeline():
    img = draw_face(0, 200)
    results = dict(img=img, img_shape=(200, 200), gt_label=1)
    landmarks = face_template((150, 150)) + 25
    align = TRANSFORMS.build(dict(type='AlignFace', size=64, margin=0.1))
    assert repr(align) == (
        "AlignFace(size=64, margin=0.1, interpolation='bilinear')")
    out = align(dict(results, keypoints=landmarks, bbox=(0, 0, 9, 9)))
    assert out['img_shape'] == (64, 64) and out['gt_label'] == 1
    assert np.array_equal(out['img'],
                          align_face(img, landmarks, **align.settings))
    out = align(dict(results, bbox=(25, 25, 175, 175)))
    assert np.array_equal(
        out['img'], align_face(img, bbox=(25, 25, 175, 175), **align.settings))
    with pytest.raises(ValueError, match='neither landmarks nor a box'):
        align(results)
    with pytest.raises(ValueError, match=r'shape \(4, 2\).*left eye, right'):
        align(dict(results, keypoints=landmarks[:4]))
    for key, value in dict(interpolation='x', margin=-1, size=0).items():
        with pytest.raises(ValueError, match=f'AlignFace got {key}='):
            TRANSFORMS.build({'type': 'AlignFace', key: value})


def test_a_template_of_ones_own():
    """The landmarks are where it has them, by a transform of five points."""
    template = FERPlus.METAINFO['alignment']['template']
    align = TRANSFORMS.build(
        dict(type='AlignFace', size=48, template=template))
    assert align.settings['template'] == template
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120, 3), np.uint8)
    # Shifted by whole pixels, without another scale
    keypoints = np.array(template) * 48 + [30, 20]
    crop = align(dict(img=image, keypoints=keypoints))['img']
    assert (crop == image[20:68, 30:78]).all()
    with pytest.raises(ValueError, match=r'template of the shape \(4, 2\)'):
        TRANSFORMS.build(dict(type='AlignFace', template=template[1:]))


@pytest.mark.parametrize('settings', [
    dict(size=(40, )),
    dict(size=(40, 40, 40)),
    dict(size=True),
    dict(size=10**6),
    dict(margin=np.nan),
    dict(margin=1e308),
    dict(template=[[0.5, 0.5]] * 5),
    dict(template=[[np.nan, 0.5]] * 5),
])
def test_settings_that_can_not_be(settings):
    with pytest.raises(ValueError, match='Got points|AlignFace got'):
        TRANSFORMS.build(dict(type='AlignFace', **settings))


@pytest.mark.parametrize('scale', [0.3, 1., 2.])
def test_a_panorama(scale):
    """Wider than what OpenCV can warp."""
    rng = np.random.default_rng(0)
    face = rng.integers(0, 255, (80, 80, 3), np.uint8)
    image = np.zeros((100, 40000, 3), np.uint8)
    image[10:90, 39000:39080] = face
    points = face_template((80, 80))
    size = round(80 * scale)
    expected = align_face(image[:, 38900:39200], points + [100, 10], size=size)
    found = align_face(image, points + [39000, 10], size=size)
    assert np.abs(found.astype(int) -
                  expected).mean() < (8 if scale < 0.5 else 0.5)


def test_data_sets_say_what_they_are(ferplus_root):
    metainfo = FERPlus(ferplus_root, split='val').metainfo
    for key in 'dataset_name', 'licence', 'alignment', 'color_type':
        assert metainfo[key] == FERPlus.METAINFO[key]
    for data_set in AffectNet, FER2013, FERPlus, RAFDB, SFEW, SynthFace:
        assert data_set.METAINFO['dataset_name']
        assert data_set.METAINFO['licence']


def test_data_sets_note_the_alignment(tmp_path):
    """The checkpoint carries the meta information of the dataset."""
    for name in 'ab':
        (tmp_path / name).mkdir()
        for i in range(6):
            cv2.imwrite(f'{tmp_path}/{name}/{i}.png', draw_face(i))
    folder = dict(type='FERFolder', data_root=str(tmp_path))
    assert 'alignment' not in DATASETS.build(folder).metainfo
    align = dict(type='AlignFace', size=(50, 60), margin=0.2)
    settings = dict(size=(50, 60), margin=0.2, interpolation='bilinear')
    dataset = DATASETS.build(dict(folder, pipeline=[align]))
    assert dataset.metainfo['alignment'] == settings

    path = tmp_path / 'alignment.json'
    path.write_text('{"size": 64, "margin": 0.1, "interpolation": "bicubic"}')
    (tmp_path / 'faces.csv').write_text('path\n')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = DATASETS.build(folder)
    assert dataset.metainfo['alignment'] == dict(
        size=64, margin=0.1, interpolation='bicubic')
    for text in '{"size": -1}', '[1]', '{"x": 1}', '{':
        path.write_text(text)
        with pytest.raises(ValueError, match='alignment.json'):
            DATASETS.build(folder)


def test_real_faces():
    """Faces of many persons lie on the template: their eyes are dark, and
    darker than the cheeks below them."""
    folder = shared('data', 'faces_london')
    with open(f'{folder}/index.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['nose_x']]
    template = face_template((112, 112))
    darker = 0
    for row in rows:
        points = np.array(list(row.values())[3:], float).reshape(5, 2)
        matrix = similarity_transform(points, template)
        moved = points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(moved - template).max() < 8, row['file']
        crop = align_face(cv2.imread(f"{folder}/{row['file']}"), points)
        grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY).astype(float)
        x, y = template[:2].round().astype(int).T
        eyes = [grey[b - 2:b + 3, a - 3:a + 4].mean() for a, b in zip(x, y)]
        cheeks = [
            grey[b + 16:b + 21, a - 3:a + 4].mean() for a, b in zip(x, y)
        ]
        darker += np.mean(eyes) < np.mean(cheeks)
    assert len(rows) == 51 and darker >= 49
