# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Callable, List, NamedTuple, Sequence, Set, Tuple

import cv2
import numpy as np

from dan_mm.errors import CheckpointLoadError
from dan_mm.imaging import box_iou
from .faces import Face

# Where RetinaFace finds the landmarks of upright faces: the mean over the
# portraits of the Face Research Lab London Set, the group photograph of
# Solvay 1927 and 300 images of FER+ (left and right averaged), relative to the
# mean of the five points, in units of the square root of the area of the box.
UPRIGHT = np.array([[-0.202, -0.217], [0.202, -0.217], [0, 0.02],
                    [-0.163, 0.207], [0.163, 0.207]])
# RetinaFace finds the landmarks of faces that lean to a side by so much.
MAX_ROLL = np.pi / 4
# A score of 0 is as doubtful as a deviation of 0.2. What is more doubtful than
# this is looked at in other orientations: of the portraits, no upright and all
# turned ones; of the 29 upright faces of the group photograph, one; of the
# upright images of FER+, one in five. It was chosen on these images: chosen on
# half of the persons, 1.4 % of the other upright portraits were looked at
# again, and up to 0.7 % of the turned ones were not.
SCORE_WEIGHT = 0.2
MAX_DOUBT = 0.046
# With a larger deviation landmarks are wrong, or those of a profile: 1 % of
# the upright images of FER+.
MAX_DEVIATION = 0.1
# The side of a crop: in longer sides of the box, and in pixels at most
CROP_SCALE, CROP_SIDE = 2, 192
# How many faces are looked at together, in three crops each
MAX_FACES = 16
MIN_IOU = 0.3  # of a face with itself in another orientation
TURNS = 1, 2, 3  # to the left, by 90 degrees each

Detector = Callable[[Sequence[np.ndarray]], List[List[Face]]]


def landmark_deviation(bbox: np.ndarray, keypoints: np.ndarray) -> float:
    """Measure how far landmarks, of shape ``(5, 2)``, are from those of an
    upright face with the box left, top, right and bottom, both in pixels.

    It is the root mean square distance to those of an upright face, which may
    lean to a side by up to 45 degrees, centre on centre, in units of the
    square root of the area of the box: 0.01 to 0.05 for most upright faces.
    Infinite where they are no numbers.
    """
    # Points as complex numbers, whose product is a rotation
    expected = UPRIGHT @ (1, 1j)
    with np.errstate(invalid='ignore', divide='ignore'):
        found = keypoints.astype(np.float64) @ (1, 1j)
        found = (found - found.mean()) / np.sqrt(np.prod(bbox[2:] - bbox[:2]))
        roll = np.angle(found @ expected.conj()).clip(-MAX_ROLL, MAX_ROLL)
        distances = np.abs(found - expected * np.exp(1j * roll))
    return float(np.nan_to_num(np.sqrt((distances**2).mean()), nan=np.inf))


class _Found(NamedTuple):
    """A face, in pixels of the image as it is, that was found with the image
    turned to the left by 90 degrees so often, and how unlike an upright face
    it was then."""
    face: Face
    turns: int
    doubt: float


def find_faces(detector: Detector,
               images: Sequence[np.ndarray]) -> List[List[Face]]:
    """Find faces and their landmarks, whichever way up the faces are.

    RetinaFace finds faces that lie on their side or upside down, but not
    their landmarks. Faces that are not like upright ones, by their landmarks
    and score, are cut out and detected again turned by 90, 180 and 270
    degrees. Where one is more like an upright face then, the whole image is
    searched that way up, and each face is taken from where it is most upright.

    Args:
        detector (Callable): Such as :class:`FaceDetector`.
        images (Sequence[ndarray]): BGR, uint8 of shape ``(H, W, 3)``.

    Returns:
        list[list[Face]]: The faces of each image, the most certain first.
        Left and right are those of the face seen upright. A face whose
        landmarks are plausible in no orientation says so.
    """
    found = [[_judge(face, 0, img.shape) for face in faces]
             for img, faces in zip(images, detector(images))]
    doubtful = [(i, one) for i, several in enumerate(found) for one in several
                if one.doubt > MAX_DOUBT]
    better: Set[Tuple[int, int]] = set()
    for start in range(0, len(doubtful), MAX_FACES):
        better |= _better_turns(detector, images,
                                doubtful[start:start + MAX_FACES])
    if better:
        turned = detector([_turn(images[i], turns) for i, turns in better])
        for (i, turns), faces in zip(better, turned):
            again = (_judge(face, turns, images[i].shape) for face in faces)
            found[i] += [one for one in again if one.face.landmarks_plausible]
        for i, _ in better:
            found[i] = _drop_repeated(found[i])
    return [[one.face for one in several] for several in found]


def try_each(function: Callable[[list], list], items: list) -> list:
    """Call a function of a batch; where it fails, call it for each item, and
    take the exception for the result of what fails alone."""
    try:
        return function(items)
    except CheckpointLoadError:
        raise  # the same for all
    except Exception as error:
        if len(items) == 1:
            return [error]
    return [try_each(function, [item])[0] for item in items]


def _judge(face: Face, turns: int, shape: Sequence[int]) -> _Found:
    """Judge a face of an image of that shape that was found with the image
    turned."""
    deviation = landmark_deviation(face.bbox, face.keypoints)
    doubt = deviation + SCORE_WEIGHT * (1 - face.score)
    points = np.vstack([face.keypoints, face.bbox.reshape(2, 2)])
    for turn in range(turns, 0, -1):
        # The width with one turn less; as in align_face, the first pixel is at
        # (0, 0).
        last = shape[turn % 2] - 1
        points = np.column_stack([last - points[:, 1], points[:, 0]])
    corners = points[5:]
    return _Found(
        face._replace(
            bbox=np.concatenate([corners.min(0),
                                 corners.max(0)]),
            keypoints=points[:5],
            landmarks_plausible=deviation <= MAX_DEVIATION), turns, doubt)


def _turn(img: np.ndarray, turns: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(img, turns))


def _better_turns(detector: Detector, images: Sequence[np.ndarray],
                  doubtful: Sequence[Tuple[int, _Found]]) -> Set[tuple]:
    """Look at faces of numbered images in the other orientations."""
    crops, boxes = zip(*(_cut_out(images[i], one.face.bbox)
                         for i, one in doubtful))
    results = iter(
        detector([_turn(crop, turns) for crop in crops for turns in TURNS]))
    better = set()
    for (i, one), crop, box in zip(doubtful, crops, boxes):
        again = [
            _judge(face, turns, crop.shape)
            for turns, faces in zip(TURNS, results) for face in faces
        ]
        best = min(
            [one] + [
                other for other in again if other.face.landmarks_plausible
                and box_iou(other.face.bbox[None], box[None]).item() >= MIN_IOU
            ],
            key=lambda one: one.doubt)
        if best.turns:
            better.add((i, best.turns))
    return better


def _cut_out(img: np.ndarray,
             bbox: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Cut out a face with its surroundings."""
    size = np.array(img.shape[1::-1])
    centre = (bbox[:2] + bbox[2:]) / 2
    reach = CROP_SCALE / 2 * (bbox[2:] - bbox[:2]).max()
    first = np.clip(np.floor(centre - reach), 0, size - 1).astype(int)
    last = np.clip(np.ceil(centre + reach), first + 1, size).astype(int)
    longer = (last - first).max()
    shrunk = min(longer, CROP_SIDE)
    scale = shrunk / longer
    # Few sides, since images of different sides are no batch
    side = int(np.ceil(shrunk / 32)) * 32
    width, height = np.maximum(scale * (last - first), 1).round().astype(int)
    crop = np.zeros((side, side, 3), np.uint8)
    crop[:height, :width] = cv2.resize(
        img[first[1]:last[1], first[0]:last[0]], (int(width), int(height)),
        interpolation=cv2.INTER_AREA)
    return crop, (bbox - np.tile(first, 2)) * scale


def _drop_repeated(found: Sequence[_Found]) -> List[_Found]:
    """Keep the most upright one of what was found at the same place in
    several orientations."""
    kept: List[_Found] = []
    for one in sorted(found, key=lambda one: one.doubt):
        if not any(one.turns != other.turns
                   and _same_place(one.face.bbox, other.face.bbox)
                   for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: -one.face.score)


def _same_place(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether one of two boxes has the centre of the other in it."""
    centres = (one[:2] + one[2:]) / 2, (other[:2] + other[2:]) / 2
    return any((box[:2] < centre).all() and (centre < box[2:]).all()
               for box, centre in zip((one, other), centres[::-1]))
