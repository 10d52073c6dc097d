# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import cv2
import numpy as np

from dan_mm.imaging import box_iou
from dan_mm.reading import InputImage
from .faces import Face

MAX_MISSED = 15  # frames
# For the flow, a face is shrunk to this side in pixels, and cut out with its
# surroundings: so many longer sides of its box.
FLOW_SIDE, FLOW_SCALE = 64, 2.5
GRID = 7  # points in each direction, in the middle of the box
# Of the face's side: how far from where it was a point that is followed to the
# next frame and back may be, and one from where the whole face moves it.
MAX_DRIFT = 1 / 64
MAX_CHANGE = 1.25  # of the size, from frame to frame
MAX_DIFFERENCE = 20  # of brightness around a point, in [0, 255]
MIN_FOLLOWED = 0.5  # of the points


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
                 max_missed: int = MAX_MISSED) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f'Got smoothing={smoothing}, expected the weight '
                             'of the past in [0, 1), such as 0.8.')
        self.smoothing = smoothing
        self.min_iou = min_iou
        self.max_missed = max_missed
        self.tracks: Dict[int, Track] = {}
        self.next_number = 1

    def update(self, boxes: Sequence[np.ndarray],
               scores: Sequence[np.ndarray]) -> List[int]:
        """Take the boxes (left, top, right and bottom), of shape ``(4, )``, of
        the faces of the next frame, and their class scores, of shape
        ``(num_classes, )``. Returns the number of the track of each face;
        ``tracks`` has their smoothed scores. Numbers begin at 1."""
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


class FaceFollower:
    """Find the faces of images, and of every n-th frame of videos; between,
    follow them by optical flow.

    Points on a face are followed to the next frame and back by the pyramidal
    method of Lucas and Kanade, and those that come back move its box and its
    landmarks by a similarity transform, as in `MedianFlow
    <https://doi.org/10.1109/ICPR.2010.675>`_. A frame where a face cannot be
    followed is searched for faces. New faces wait for the next search.

    Args:
        every (int): Faces are searched in frames that are so far from each
            other. Defaults to 1, every frame.

    Raises:
        ValueError: If ``every`` is less than 1.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f'Got every={every}, expected at least 1: faces '
                             'are searched in every n-th frame.')
        self.every = every
        self.wait = 0  # frames
        self.last = InputImage(None)
        self.faces: List[Face] = []

    def __call__(self, images: Sequence[InputImage],
                 find: Callable[[list], list]) -> list:
        """Get the faces of the next images or frames.

        Args:
            images (Sequence[InputImage]): None is broken.
            find (Callable): Finds the faces of a list of images; where it
                fails, there is an exception.

        Returns:
            list[list[Face] | Exception]: The faces of each image.
        """
        due, path = [], self.last.path
        for image in images:
            if image.frame is None or image.path != path or not image.frame:
                self.wait = 0
            path = image.path
            due.append(not self.wait)
            self.wait = (self.wait or self.every) - 1
        found = iter(
            find([image.img for image, one in zip(images, due) if one]))
        results = []
        for image, one in zip(images, due):
            faces = next(found) if one else self._follow(image.img)
            if faces is None:
                [faces] = find([image.img])
            results.append(faces)
            if self.every > 1:
                self.last = image
                self.faces = [] if isinstance(faces, Exception) else faces
        return results

    def _follow(self, img: np.ndarray) -> Optional[List[Face]]:
        """Follow all faces to a frame. None if one is lost."""
        faces = []
        for face in self.faces:
            followed = follow_face(face, self.last.img, img)
            if followed is None:
                return None
            faces.append(followed)
        return faces


def follow_face(face: Face, last: np.ndarray,
                img: np.ndarray) -> Optional[Face]:
    """Follow a face from a frame to the next one.

    Args:
        face (Face): The face in ``last``.
        last (ndarray): BGR, uint8 of shape ``(H, W, 3)``.
        img (ndarray): The next frame, of the same type.

    Returns:
        Face, optional: The face in ``img``: its score is that before. None if
        it is lost, or the frames differ in size.
    """
    corners = face.bbox.reshape(2, 2)
    side = (corners[1] - corners[0]).max()
    if img.shape != last.shape or not side >= 1:
        return None
    centre, reach = corners.mean(0), FLOW_SCALE / 2 * side
    size = np.array(img.shape[1::-1])
    low = np.clip(centre - reach, 0, size - 1).astype(int)
    high = np.clip(centre + reach, low + 1, size).astype(int)
    scale = min(FLOW_SIDE / side, 1)
    shape = tuple(np.maximum((high - low) * scale, 1).round().astype(int))
    one, other = (
        cv2.resize(
            cv2.cvtColor(frame[low[1]:high[1], low[0]:high[0]],
                         cv2.COLOR_BGR2GRAY),
            shape,
            interpolation=cv2.INTER_AREA) for frame in (last, img))
    # For OpenCV the centre of the first pixel is at (0, 0).
    ratio = np.array(shape) / (high - low)
    shift = (ratio - 1) / 2 - low * ratio
    grid = np.linspace(0.15, 0.85, GRID)
    places = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    points = corners[0] + places * (corners[1] - corners[0])
    points = np.vstack([points, face.keypoints])
    start = (points * ratio + shift).astype(np.float32)
    options = dict(winSize=(15, 15), maxLevel=3)
    end, found, difference = cv2.calcOpticalFlowPyrLK(one, other, start, None,
                                                      **options)
    back, again, _ = cv2.calcOpticalFlowPyrLK(other, one, end, None, **options)
    drift = MAX_DRIFT * side * scale
    good = ((found & again).ravel()
            > 0) & (np.hypot(*(back - start).T) <= drift) & (
                difference.ravel() <= MAX_DIFFERENCE)
    good &= ((end >= 0) & (end <= np.array(shape) - 1)).all(1)
    if good.sum() < MIN_FOLLOWED * len(points):
        return None
    matrix, inliers = cv2.estimateAffinePartial2D(
        points[good], (end[good] - shift) / ratio,
        ransacReprojThreshold=max(2 * drift / scale, 1))
    if matrix is None or inliers.sum() < MIN_FOLLOWED * len(points):
        return None
    change = np.hypot(*matrix[:, 0])
    if not 1 / MAX_CHANGE <= change <= MAX_CHANGE:
        return None
    centre = matrix[:, :2] @ centre + matrix[:, 2]
    half = change * (corners[1] - corners[0]) / 2
    return face._replace(
        bbox=np.concatenate([centre - half, centre + half]).astype('f4'),
        keypoints=(face.keypoints @ matrix[:, :2].T +
                   matrix[:, 2]).astype('f4'))
