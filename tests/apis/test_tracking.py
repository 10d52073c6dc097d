# Copyright (c) dan_mm contributors. All rights reserved.
import itertools

import numpy as np
import pytest

from dan_mm.apis.tracking import FaceTracker


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
        assert number == 0
    expected = (0.8**2 * values[0] + 0.8 * 0.2 * values[1] + 0.2 * values[2])
    assert np.allclose(tracker.tracks[0].scores, expected)
    assert tracker.tracks[0].scores.sum() == pytest.approx(1)


def test_faces_keep_their_numbers():
    tracker = FaceTracker(0.5)
    assert tracker.update([box(0), box(50)], [scores(1, 0)] * 2) == [0, 1]
    # In another order, moved, and with a new one
    boxes = [box(52), box(90), box(2)]
    assert tracker.update(boxes, [scores(1, 0)] * 3) == [1, 2, 0]
    # One that is gone for a while comes back, with its scores.
    for _ in range(15):
        assert tracker.update([box(2)], [scores(0, 1)]) == [0]
    assert tracker.update([box(53)], [scores(0, 1)]) == [1]
    # One that is gone for longer is another one.
    for _ in range(16):
        assert tracker.update([], []) == []
    assert tracker.update([box(2)], [scores(0, 1)]) == [3]


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
        assert [number if number < 4 else -1 for number in found] == expected


def test_refusals():
    for value in (-0.1, 1., 2.):
        with pytest.raises(ValueError, match=r'expected the weight .* \[0, 1'):
            FaceTracker(value)
