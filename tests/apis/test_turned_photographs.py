# Copyright (c) dan_mm contributors. All rights reserved.
"""Photographs that lie on their side or upside down."""
import glob

import cv2
import numpy as np
import pytest
from conftest import shared

from dan_mm.apis import FERInferencer
from dan_mm.apis.orientation import find_faces
from dan_mm.datasets import align_face


@pytest.fixture
def detector(face_detector):
    return face_detector


def portraits(step):
    paths = sorted(glob.glob(shared('data', 'faces_london') + '/*.jpg'))
    return [cv2.imread(path) for path in paths[::step]]


def turn(img, turns):
    return np.ascontiguousarray(np.rot90(img, turns))


def test_turned_portraits_give_the_crops_of_the_upright_ones(detector):
    """The same pixels, so that any classifier gives the same answer."""
    for img in portraits(12):
        [[face]] = find_faces(detector, [img])
        assert face.landmarks_plausible
        expected = align_face(img, face.keypoints).astype(int)
        for turns in (1, 2, 3):
            turned = turn(img, turns)
            found = find_faces(detector, [turned])[0]
            [crop] = [align_face(turned, other.keypoints) for other in found]
            assert np.abs(crop - expected).mean() < 1


@pytest.mark.parametrize('angle', [-30, -15, 15, 30])
def test_leaning_portraits_are_left_alone(detector, angle):
    for img in portraits(30):
        height, width = img.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 0.7)
        leaning = cv2.warpAffine(
            img, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        [[before]], [[after]] = detector([leaning
                                          ]), find_faces(detector, [leaning])
        assert after.landmarks_plausible
        assert np.array_equal(before.keypoints, after.keypoints)


def test_portraits_that_lie_at_any_angle(detector):
    """Landmarks are where they are in the upright image, turned."""
    img = portraits(102)[0]
    height, width = img.shape[:2]
    [[face]] = detector([img])
    eyes = 0.7 * np.linalg.norm(face.keypoints[0] - face.keypoints[1])
    for angle in range(45, 316, 45):
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 0.7)
        turned = cv2.warpAffine(
            img, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        [[found]] = find_faces(detector, [turned])
        expected = face.keypoints @ matrix[:, :2].T + matrix[:, 2]
        errors = np.linalg.norm(found.keypoints - expected, axis=1)
        assert errors.max() < 0.3 * eyes, angle


def test_a_group(detector):
    """Upright, all its faces stay; upside down, all are found again."""
    img = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    [before], [after] = detector([img]), find_faces(detector, [img])
    assert len(after) == 29
    for one, other in zip(before, after):
        assert other.landmarks_plausible
        assert np.array_equal(one.keypoints, other.keypoints)
    assert len(detector([turn(img, 2)])[0]) < 5
    [turned] = find_faces(detector, [turn(img, 2)])
    assert len(turned) == 29
    last = np.array(img.shape[1::-1]) - 1
    for one, other in zip(after, turned):
        assert np.allclose(last - other.keypoints, one.keypoints, atol=0.05)


def test_upright_portraits_are_looked_at_once(detector):
    """Nothing is detected again, so that they take no more time."""
    calls = []

    def count(images):
        calls.append(len(images))
        return detector(images)

    images = portraits(13)
    assert all(len(faces) == 1 for faces in find_faces(count, images))
    assert calls == [len(images)]


def test_the_answer_is_that_of_the_upright_photograph(detector, astronaut):
    inferencer = FERInferencer(detector=detector)
    image = cv2.imread(astronaut)
    [[face]] = [result.faces for result in inferencer(image)]
    for turns in (1, 2, 3):
        [[other]] = [result.faces for result in inferencer(turn(image, turns))]
        assert other.landmarks_plausible
        assert other.scores == pytest.approx(face.scores, abs=0.02)
