# Copyright (c) dan_mm contributors. All rights reserved.
import itertools

import cv2
import numpy as np
import pytest

from dan_mm.apis.faces import Face
from dan_mm.apis.orientation import find_faces
from dan_mm.apis.tracking import FaceFollower, FaceTracker, follow_face
from dan_mm.reading import InputImage


def box(x, y=0., side=10.):
    return np.array([x, y, x + side, y + side], np.float32)


def scores(*values):
    return np.array(values, np.float32)


def test_smoothing():
    """An exponential moving average, written out."""
    tracker = FaceTracker(0.8)
    values = [scores(1, 0), scores(0, 1), scores(0, 1)]
    for value in values:
        [number] = tracker.update([box(0)], [value])
        assert number == 1
    expected = (0.8**2 * values[0] + 0.8 * 0.2 * values[1] + 0.2 * values[2])
    assert np.allclose(tracker.tracks[1].scores, expected)
    assert tracker.tracks[1].scores.sum() == pytest.approx(1)


def test_faces_keep_their_numbers():
    tracker = FaceTracker(0.5)
    assert tracker.update([box(0), box(50)], [scores(1, 0)] * 2) == [1, 2]
    # In another order, moved, and with a new one
    boxes = [box(52), box(90), box(2)]
    assert tracker.update(boxes, [scores(1, 0)] * 3) == [2, 3, 1]
    # One that is gone for a while comes back, with its scores.
    for _ in range(15):
        assert tracker.update([box(2)], [scores(0, 1)]) == [1]
    assert tracker.update([box(53)], [scores(0, 1)]) == [2]
    # One that is gone for longer is another one.
    for _ in range(16):
        assert tracker.update([], []) == []
    assert tracker.update([box(2)], [scores(0, 1)]) == [4]


def test_the_pair_that_overlaps_most_comes_first():
    """Against pairs that are taken one after the other from a list."""

    def iou(one, other):
        low = np.maximum(one[:2], other[:2])
        high = np.minimum(one[2:], other[2:])
        common = np.prod(np.maximum(high - low, 0))
        areas = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])
        return common / (areas - common)

    rng = np.random.default_rng(0)
    for _ in range(30):
        last = [box(*rng.uniform(0, 12, 2)) for _ in range(4)]
        new = [box(*rng.uniform(0, 12, 2)) for _ in range(4)]
        tracker = FaceTracker(0.5, min_iou=0.2)
        tracker.update(last, [scores(1, 0)] * 4)
        found = tracker.update(new, [scores(1, 0)] * 4)
        expected, free = [-1] * 4, set(range(4))
        for i, j in sorted(
                itertools.product(range(4), range(4)),
                key=lambda pair: -iou(new[pair[0]], last[pair[1]])):
            if iou(new[i], last[j]) >= 0.2 and expected[i] < 0 and j in free:
                expected[i] = j
                free.remove(j)
        assert [number - 1 if number <= 4 else -1
                for number in found] == expected


def test_refusals():
    for value in (-0.1, 1., 2.):
        with pytest.raises(ValueError, match=r'expected the weight .* \[0, 1'):
            FaceTracker(value)
    with pytest.raises(ValueError, match='every=0, expected at least 1'):
        FaceFollower(0)


def texture(seed, height=240, width=320):
    """Noise on all scales, as photographs have it"""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    parts = [sigma * cv2.GaussianBlur(noise, (0, 0), sigma)
             for sigma in (2, 5, 15)]  # yapf: disable
    return np.clip(128 + 40 * sum(parts), 0, 255).astype(np.uint8)


def face_at(left=100, top=80, side=64):
    points = np.array([[20, 25], [44, 25], [32, 38], [22, 50], [42, 50]])
    corners = [left, top, left + side, top + side]
    return Face(
        np.array(corners, 'f4'), 0.9,
        (points * side / 64 + (left, top)).astype('f4'))


@pytest.mark.parametrize('side', [20, 64, 110])
@pytest.mark.parametrize('angle, scale, shift', [(0, 1, (9, -6)),
                                                 (6, 1.05, (-4, 7)),
                                                 (-4, 0.95, (0, 0))])
def test_a_face_is_followed(side, angle, scale, shift):
    """By the transform that moved the image."""
    face, img = face_at(side=side), texture(0)
    matrix = cv2.getRotationMatrix2D((130., 110.), angle, scale)
    matrix[:, 2] += shift
    found = follow_face(face, img, cv2.warpAffine(img, matrix,
                                                  img.shape[1::-1]))
    expected = face.keypoints @ matrix[:, :2].T + matrix[:, 2]
    assert found.keypoints.dtype == found.bbox.dtype == np.float32
    assert np.abs(found.keypoints - expected).max() < 0.3
    assert found.bbox[2] - found.bbox[0] == pytest.approx(
        side * scale, rel=0.02)
    assert found.score == face.score


def test_a_face_is_lost():
    """In another scene, behind something, at the edge, with another size."""
    face, img = face_at(), texture(0)
    covered = img.copy()
    covered[70:150, 90:170] = 128
    out = cv2.warpAffine(img, np.float64([[1, 0, -130], [0, 1, 0]]),
                         (320, 240))
    for other in texture(1), covered, out, img[:200]:
        assert follow_face(face, img, other) is None


def test_every_n_th_frame_is_searched():
    """And one where a face is lost; other videos and images at once."""
    searched = []

    def find(images):
        searched.extend(int(img[0, 0, 0]) for img in images)
        return [[face_at()] for _ in images]

    def frames(path, seeds):
        for i, seed in enumerate(seeds):
            img = texture(seed)
            img[0, 0] = i
            yield InputImage(img, path, i, i / 25)

    follower = FaceFollower(4)
    first = list(frames('a', [0] * 6 + [1] * 4))
    results = follower(first[:3], find) + follower(first[3:], find)
    # The 6th shows something else.
    assert sorted(searched) == [0, 4, 6, 8] and len(results) == 10
    for faces in results:
        assert np.abs(faces[0].keypoints - face_at().keypoints).max() < 0.1
    searched.clear()
    follower([*frames('b', [0, 0]), InputImage(texture(0), 'c.png')] * 2, find)
    assert len(searched) == 4
    searched.clear()
    FaceFollower()(first, find)
    assert searched == list(range(10))
    # One that cannot be searched stops no other.
    results = FaceFollower(4)(first[:5],
                              lambda images: [OSError()] * len(images))
    assert [type(item)
            for item in results] == [OSError, list, list, list, OSError]


def test_a_moving_face(face_detector, astronaut):
    """A real face of known positions: following agrees with searching."""
    face = cv2.imread(astronaut)[:230, 110:340]
    frames, moves = [], []
    for t in np.arange(20) / 20:
        matrix = cv2.getRotationMatrix2D((115, 115), 10 * np.sin(4 * t),
                                         1 + 0.2 * t)
        matrix[:, 2] += (20 + 200 * t, 60 + 40 * np.sin(5 * t))
        moves.append(matrix)
        frames.append(
            cv2.warpAffine(
                face,
                matrix, (640, 360),
                texture(0, 360, 640),
                borderMode=cv2.BORDER_TRANSPARENT))
    images = [InputImage(img, 'a', i, i / 20) for i, img in enumerate(frames)]
    searched = []

    def find(several):
        searched.extend(several)
        return find_faces(face_detector, several)

    followed = FaceFollower(5)(images, find)
    assert len(searched) == 4
    home = cv2.invertAffineTransform(moves[0])
    for img, matrix, faces in zip(frames, moves, followed):
        [one], [[other]] = faces, find([img])
        # Searching is itself uncertain by a few pixels of 100.
        distances = np.hypot(*(one.keypoints - other.keypoints).T)
        assert distances.mean() < 4 and distances.max() < 7
        # The place in the portrait, moved
        still = followed[0][0].keypoints @ home[:, :2].T + home[:, 2]
        expected = still @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(one.keypoints - expected).max() < 5
