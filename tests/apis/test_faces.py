# Copyright (c) dan_mm contributors. All rights reserved.
"""The faces of photographs, with the default detector."""
import csv
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, shared

from dan_mm.apis import FaceDetector


def photograph(name='001_neutral'):
    return cv2.imread(shared('data', 'faces_london', f'{name}.jpg'))


@pytest.mark.parametrize('name', [
    'faces_london/001_neutral.jpg', 'faces_london/001_happiness.jpg',
    'faces_london/011_neutral.jpg', 'group_photo/solvay_1927.jpg'
])
def test_equals_the_original(face_detector, name):
    with open(shared('golden', 'retinaface_original.json')) as file:
        expected = json.load(file)[name]['detections']
    [found] = face_detector([cv2.imread(shared('data', *name.split('/')))])
    assert len(found) == len(expected)
    for face, other in zip(found, expected):
        assert np.abs(face.bbox - other['bbox']).max() < 1e-2
        assert np.abs(face.keypoints - other['landmarks']).max() < 1e-2
        assert abs(face.score - other['score']) < 1e-4


def test_without_mmdet_and_ops(detector_weights):
    """In a process where neither can be imported."""
    path = shared('data', 'group_photo', 'solvay_1927.jpg')
    code = f'''
import sys

class Missing:
    """Finder of modules that are not there."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'mmdet' or name == 'mmcv._ext':
            raise ModuleNotFoundError(f'no {{name}}', name=name)

sys.meta_path.insert(0, Missing())
import cv2
from dan_mm.apis import FaceDetector
faces, = FaceDetector(device='cpu')([cv2.imread({path!r})])
try:
    FaceDetector('config.py', 'checkpoint.pth')
except ImportError as error:
    print('Refused', error.name, error)
print(len(faces), 'faces', min(face.score for face in faces))
print([name for name in sys.modules if name.split('.')[0] == 'mmdet'])
'''
    process = subprocess.run([sys.executable, '-c', code],
                             cwd=ROOT,
                             capture_output=True,
                             text=True)
    assert process.returncode == 0, process.stderr
    refused, faces, modules = process.stdout.splitlines()[-3:]
    assert refused.startswith('Refused') and 'mmdet' in refused
    assert faces.startswith('29 faces 0.')
    assert modules == '[]'


def test_landmarks_of_photographs(face_detector):
    """Near those that were marked by hand."""
    folder = shared('data', 'faces_london')
    with open(f'{folder}/index.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['nose_x']][:8]
    found = face_detector(
        [cv2.imread(f'{folder}/{row["file"]}') for row in rows])
    for row, (face, ) in zip(rows, found):
        assert face.score > 0.9
        expected = np.array(list(row.values())[3:], float).reshape(5, 2)
        eyes = np.linalg.norm(expected[0] - expected[1])
        errors = np.linalg.norm(face.keypoints - expected, axis=1)
        assert errors.mean() < 0.12 * eyes, row['file']
        left, top, right, bottom = face.bbox
        assert ((expected > (left, top)) & (expected < (right, bottom))).all()


def test_a_batch_of_several_sizes(face_detector):
    group = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    images = [photograph(), group, photograph('011_neutral')]
    together = face_detector(images)
    assert [len(found) for found in together] == [1, 29, 1]
    for image, found in zip(images, together):
        for one, other in zip(found, face_detector([image])[0]):
            assert np.allclose(one.bbox, other.bbox, atol=0.02)
            assert np.allclose(one.keypoints, other.keypoints, atol=0.02)
    assert face_detector([]) == []


def test_a_large_image_is_shrunk(face_detector):
    """To what it was, so that the face is where it was, twice as large."""
    small = FaceDetector(device='cpu', max_side=640)
    image = photograph()
    large = cv2.resize(image, (1280, 1280), interpolation=cv2.INTER_NEAREST)
    one, other = face_detector([image])[0][0], small([large])[0][0]
    assert np.allclose(2 * one.bbox, other.bbox, atol=0.1)
    assert np.allclose(2 * one.keypoints, other.keypoints, atol=0.1)


@pytest.mark.parametrize(
    'img', [
        np.zeros((64, 48, 3), np.uint8),
        np.full((1, 1, 3), 7, np.uint8),
        np.full((1, 700, 3), 7, np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8),
    ],
    ids=['black', 'pixel', 'line', 'noise'])
def test_no_face(face_detector, img):
    assert face_detector([img]) == [[]]


def test_grey_and_transparent_images(face_detector):
    img = photograph()
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)
    transparent = np.dstack([img, np.zeros(img.shape[:2], np.uint8)])
    images = img, transparent, grey, grey[..., None]
    one, other, two, three = (
        found[0].keypoints for found in face_detector(images))
    assert np.allclose(one, other, atol=0.01)
    assert np.allclose(two, three, atol=0.01)
    assert np.allclose(one, two, atol=8)


def test_refuses_other_arrays(face_detector):
    with pytest.raises(ValueError, match=r'float32.*\(8, 8, 3\)'):
        face_detector([np.zeros((8, 8, 3), np.float32)])


def test_half_of_a_detector():
    for arguments in ('config.py', None), (None, 'checkpoint.pth'):
        with pytest.raises(ValueError, match='expected both or none'):
            FaceDetector(*arguments)


def test_a_processor_takes_few_pixels_together(face_detector, astronaut,
                                               monkeypatch):
    """Eight images of 512x512 are two batches, with the same faces."""
    model, sizes = face_detector._find.model, []
    predict = model.predict

    def noting(batch, factors):
        sizes.append(len(batch))
        return predict(batch, factors)

    monkeypatch.setattr(model, 'predict', noting)
    img = cv2.imread(astronaut)
    images = [np.roll(img, 8 * i, 1) for i in range(8)]
    found = face_detector(images)
    assert sizes == [6, 2]
    for one, faces in zip(images, found):
        [expected], [face] = face_detector([one])[0][:1], faces[:1]
        np.testing.assert_allclose(face.bbox, expected.bbox, atol=1e-2)
