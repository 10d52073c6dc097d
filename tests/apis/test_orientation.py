# Copyright (c) dan_mm contributors. All rights reserved.
"""Faces that lie on their side or upside down; tests/detection has
photographs."""
import cv2
import numpy as np
import pytest

from dan_mm.apis.faces import Face
from dan_mm.apis.orientation import (MAX_DEVIATION, UPRIGHT, find_faces,
                                     landmark_deviation)

SIDE = 60  # of a face
MARKS = SIDE * (UPRIGHT + (0.5, 0.6))


def draw(turns=0, places=((20, 30), ), size=(160, 200)):
    """An image of squares for the stub, whose bright band says which way is
    up."""
    img = np.zeros((*size, 3), np.uint8)
    for x, y in places:
        face = np.full((SIDE, SIDE, 3), 60, np.uint8)
        face[:SIDE // 3] = 255
        img[y:y + SIDE, x:x + SIDE] = np.rot90(face, -turns)
    return img


class Stub:
    """See squares, and put landmarks into them; into those that are not
    upright, wrong ones near the middle."""

    def __init__(self, shrink=0.3, turns=(0, )):
        self.calls = []
        self.shrink = shrink
        self.turns = turns

    def __call__(self, images):
        self.calls.append(images)
        return [self.find(img) for img in images]

    def find(self, img):
        faces = []
        contours = cv2.findContours((img[..., 0]
                                     > 30).astype(np.uint8), cv2.RETR_EXTERNAL,
                                    cv2.CHAIN_APPROX_SIMPLE)[0]
        for left, top, width, height in map(cv2.boundingRect, contours):
            box = np.array([left, top, left + width, top + height], 'f4')
            part = img[top:top + height, left:left + width, 0].astype(float)
            bands = [
                np.rot90(part, turns)[:height // 4].mean()
                for turns in range(4)
            ]
            upright = int(np.argmax(bands)) in self.turns
            marks = MARKS / SIDE * (width, height)
            if not upright:
                marks = marks.mean(0) + self.shrink * (marks - marks.mean(0))
            faces.append(Face(box, 0.99, (marks + box[:2]).astype('f4')))
        return faces


def turn_back(points, turns, shape):
    """Points of np.rot90(img, turns) in img, by the pixels themselves."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    turned = np.rot90(index, turns)
    x, y = np.round(points).astype(int).T
    y, x = np.unravel_index(turned[y, x], shape)
    return np.column_stack([x, y])


def test_upright_faces_are_left_alone():
    detector = Stub()
    img = draw(places=((20, 30), (110, 60)))
    faces = find_faces(detector, [img, np.zeros_like(img)])
    assert [len(found) for found in faces] == [2, 0]
    for face, expected in zip(faces[0], detector.find(img)):
        assert np.array_equal(face.keypoints, expected.keypoints)
        assert np.array_equal(face.bbox, expected.bbox)
        assert face.landmarks_plausible is True
    assert len(detector.calls) == 1
    assert find_faces(detector, []) == []


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_a_turned_image(turns):
    img = draw(places=((20, 30), (110, 60)))
    detector = Stub()
    expected = detector.find(img)
    [faces] = find_faces(detector,
                         [np.ascontiguousarray(np.rot90(img, turns))])
    assert len(faces) == 2
    shape = np.rot90(img, turns).shape[:2]
    for face in faces:
        assert face.landmarks_plausible
        marks = turn_back(face.keypoints, turns, img.shape[:2])
        errors = [np.abs(marks - other.keypoints).max() for other in expected]
        assert min(errors) <= 1, errors
        assert (face.bbox[:2] < face.bbox[2:]).all()
        assert (face.bbox[2:] < shape[::-1]).all()


def test_one_turned_face_among_upright_ones():
    img = draw(places=((20, 30), ))
    img = np.maximum(img, draw(2, places=((110, 60), )))
    [faces] = find_faces(Stub(), [img])
    first, second = sorted(faces, key=lambda face: face.bbox[0])
    assert first.keypoints[0, 1] < first.keypoints[3, 1]
    # Upside down, the left eye is on the right, below the mouth.
    assert second.keypoints[0, 0] > second.keypoints[1, 0]
    assert second.keypoints[0, 1] > second.keypoints[3, 1]


def test_what_fits_no_orientation_says_so():
    img = draw()
    for shrink in (0.3, np.nan, 0):
        detector = Stub(shrink, turns=())
        [[face]] = find_faces(detector, [img])
        assert face.landmarks_plausible is False
        assert np.array_equal(face.bbox, detector.find(img)[0].bbox)


def test_many_faces_are_looked_at_in_parts():
    places = [(10 + 70 * i, 10 + 70 * j) for i in range(9) for j in range(9)]
    img = draw(2, places, (700, 700))
    detector = Stub()
    [faces] = find_faces(detector, [img])
    assert len(faces) == 81
    assert all(face.landmarks_plausible for face in faces)
    assert max(map(len, detector.calls)) <= 48


def test_a_face_at_the_border():
    img = draw(2)
    detector = Stub()
    find = detector.find

    def beyond(img):
        return [
            face._replace(bbox=face.bbox + np.float32([-40, -40, 0, 0]))
            for face in find(img)
        ]

    detector.find = beyond
    [[face]] = find_faces(detector, [img[20:, 10:]])
    assert np.isfinite(face.keypoints).all()


@pytest.mark.parametrize('angle', range(-45, 46, 15))
def test_deviation(angle):
    """Of a face that leans; against a plain rotation of points."""
    matrix = cv2.getRotationMatrix2D((0, 0), angle, 100)[:, :2]
    marks = UPRIGHT @ matrix.T + (400, 300)
    box = np.array([350, 250, 450, 350], np.float32)
    assert landmark_deviation(box, marks) < 1e-6
    upside_down = (800, 600) - marks
    assert landmark_deviation(box, upside_down) > MAX_DEVIATION


def test_deviation_is_a_distance():
    box = np.array([0, 0, 200, 50], np.float32)
    marks = UPRIGHT * 100
    marks[2, 0] += 10
    # The centre moves by 2, the nose by 8, in sides of 100.
    expected = np.sqrt((0.08**2 + 4 * 0.02**2) / 5)
    assert landmark_deviation(box, marks) == pytest.approx(expected, rel=0.02)
