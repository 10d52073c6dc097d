# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from dan_mm.imaging import box_iou


class Track(NamedTuple):
    """A face that is followed: where it was last, float32 of shape ``(4, )``,
    its smoothed class scores, float32 of shape ``(num_classes, )``, and for
    how many frames it has not been seen."""
    bbox: np.ndarray
    scores: np.ndarray
    missed: int


class FaceTracker:
    """Follow faces from frame to frame, and smooth their class scores.

    Boxes are matched so that the sum of their intersections over unions is
    the largest (:func:`scipy.optimize.linear_sum_assignment`). The smoothed
    scores of a track are ``smoothing`` times those before plus
    ``1 - smoothing`` times those of the frame: an exponential moving average,
    whose memory is about ``1 / (1 - smoothing)`` frames.

    Args:
        smoothing (float): The weight of the past, in [0, 1).
        min_iou (float): The least intersection over union of the boxes of a
            face in two frames. Defaults to 0.3.
        max_missed (int): For how many frames a face may be missing. Defaults
            to 15.

    Raises:
        ValueError: If ``smoothing`` is out of its range.
    """

    def __init__(self,
                 smoothing: float,
                 min_iou: float = 0.3,
                 max_missed: int = 15) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f'Got smoothing={smoothing}, expected the weight '
                             'of the past in [0, 1), such as 0.8.')
        self.smoothing = smoothing
        self.min_iou = min_iou
        self.max_missed = max_missed
        self.tracks: Dict[int, Track] = {}
        self.next_number = 0

    def update(self, boxes: Sequence[np.ndarray],
               scores: Sequence[np.ndarray]) -> List[int]:
        """Take the boxes (left, top, right and bottom), of shape ``(4, )``, of
        the faces of the next frame, and their class scores, of shape
        ``(num_classes, )``. Returns the number of the track of each face;
        ``tracks`` has their smoothed scores."""
        numbers = self._match(boxes)
        for number, bbox, score in zip(numbers, boxes, scores):
            if number in self.tracks:
                past = self.tracks[number].scores
                score = self.smoothing * past + (1 - self.smoothing) * score
            self.tracks[number] = Track(bbox, score, 0)
        seen = set(numbers)
        self.tracks = {
            number:
            track if number in seen else track._replace(missed=track.missed +
                                                        1)
            for number, track in self.tracks.items()
            if number in seen or track.missed < self.max_missed
        }
        return numbers

    def _match(self, boxes: Sequence[np.ndarray]) -> List[int]:
        known = list(self.tracks)
        numbers = [-1] * len(boxes)
        if known and len(boxes):
            last = np.stack([self.tracks[number].bbox for number in known])
            iou = box_iou(np.stack(boxes), last)
            # The pair that overlaps most comes first.
            for i, j in zip(*np.unravel_index(
                    np.argsort(-iou, None, kind='stable'), iou.shape)):
                if iou[i, j] < self.min_iou:
                    break
                if numbers[i] < 0 and known[j] not in numbers:
                    numbers[i] = known[j]
        for i, number in enumerate(numbers):
            if number < 0:
                numbers[i] = self.next_number
                self.next_number += 1
        return numbers
