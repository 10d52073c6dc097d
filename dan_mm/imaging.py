# Copyright (c) dan_mm contributors. All rights reserved.
"""Images of faces as arrays, with NumPy and OpenCV alone."""
from typing import Optional, Sequence, Tuple, Union

import cv2
import numpy as np

# Eyes, tip of the nose and corners of the mouth in a crop of 112x112, as
# https://arxiv.org/abs/1801.07698 (ArcFace) aligns faces; here as ratios.
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [
    56.0252, 71.7366
], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112
# The files that `dan-mm align` puts beside the faces: how it aligned them, and
# what happened to each image.
ALIGNMENT, REPORT = 'alignment.json', 'faces.csv'
# OpenCV cannot warp an image with a longer side.
MAX_WARP = 2**15 - 1
INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    lanczos=cv2.INTER_LANCZOS4)
LANDMARKS = ('left eye', 'right eye', 'nose tip', 'left mouth corner',
             'right mouth corner')


def face_template(size: Tuple[int, int],
                  margin: float = 0.,
                  template: Sequence = TEMPLATE) -> np.ndarray:
    """Place the five landmarks in an aligned crop.

    ``size`` is its width and height in pixels, ``margin`` what is added on
    each side, as a ratio of the crop without it, and ``template`` where the
    landmarks are in a square crop without margin, as ratios of its side.
    Returns pixels, float64 of shape ``(5, 2)``, in the order of ``LANDMARKS``
    (left and right as seen in the image); in a crop that is not square they
    are centred.
    """
    size = np.asarray(size, np.float64)
    side = size.min()
    ratio = (np.asarray(template, np.float64) + margin) / (1 + 2 * margin)
    return ratio * side + (size - side) / 2


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    r"""The similarity transform (rotation, scale and shift, no reflection)
    that takes points to others with the least sum of squared distances.

    With points as complex numbers :math:`z` and :math:`w`, centred, it is the
    multiplication with :math:`\sum \bar z w / \sum |z|^2` (`Umeyama, 1991
    <https://doi.org/10.1109/34.88573>`_, in the plane).

    Args:
        source (ndarray): The points, of shape ``(N, 2)``, N >= 2.
        target (ndarray): Where they should be, of the same shape.

    Returns:
        ndarray: The matrix, float64 of shape ``(2, 3)``.

    Raises:
        ValueError: If the points have another shape, are not finite, or
            coincide.
    """
    source, target = (
        np.asarray(points, np.float64) for points in (source, target))
    if (source.ndim != 2 or source.shape[1:] != (2, ) or len(source) < 2
            or source.shape != target.shape):
        raise ValueError(
            f'Got points of the shapes {source.shape} and {target.shape}, '
            'expected (N, 2) twice, with at least 2 points.')
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError('Got points that are not finite, expected '
                         f'coordinates: {source.tolist()}.')
    z, w = (points @ np.array([1, 1j]) for points in (source, target))
    z_mean, w_mean = z.mean(), w.mean()
    spread = (np.abs(z - z_mean)**2).sum()
    if spread < 1e-6 or (np.abs(w - w_mean)**2).sum() < 1e-6:
        raise ValueError('Got points that coincide, expected different ones: '
                         f'{source.tolist()}.')
    factor = (np.conj(z - z_mean) * (w - w_mean)).sum() / spread
    shift = w_mean - factor * z_mean
    return np.array([[factor.real, -factor.imag, shift.real],
                     [factor.imag, factor.real, shift.imag]])


def box_transform(bbox: Sequence[float],
                  size: Tuple[int, int],
                  margin: float = 0.) -> np.ndarray:
    """The transform, float64 of shape ``(2, 3)``, that brings a face of which
    only the box (left, top, right, bottom) is known into the middle of a crop,
    upright, with a margin as a ratio of the longer side of the box. ValueError
    is raised if the box is invalid."""
    left, top, right, bottom = np.asarray(bbox, np.float64)
    if not (right > left and bottom > top):
        raise ValueError(f'Got the box {list(bbox)}, expected left < right '
                         'and top < bottom, in pixels.')
    side = max(right - left, bottom - top) * (1 + 2 * margin)
    scale = min(size) / side
    return np.array([[scale, 0, size[0] / 2 - scale * (left + right) / 2],
                     [0, scale, size[1] / 2 - scale * (top + bottom) / 2]])


def align_face(img: np.ndarray,
               keypoints: Optional[np.ndarray] = None,
               bbox: Optional[Sequence[float]] = None,
               size: Union[int, Tuple[int, int]] = 112,
               margin: float = 0.,
               interpolation: str = 'bilinear',
               template: Optional[Sequence] = None) -> np.ndarray:
    """Cut out a face, turned and scaled so that its landmarks are where a
    template has them. What is outside the image is black.

    Args:
        img (ndarray): The image, uint8 of shape ``(H, W, 3)`` or ``(H, W)``.
        keypoints (ndarray, optional): The landmarks in pixels, of shape
            ``(5, 2)``, in the order of ``LANDMARKS``.
        bbox (Sequence[float], optional): The left, top, right and bottom of
            the face in pixels, used where there are no landmarks.
        size (int | tuple[int, int]): The side of the crop, or its width and
            height, in pixels. Defaults to 112.
        margin (float): What is added on each side, as a ratio of the crop
            (of the box, where there are no landmarks). Defaults to 0.
        interpolation (str): 'nearest', 'bilinear', 'bicubic' or 'lanczos'. A
            image that shrinks to less than a half is averaged first.
            Defaults to 'bilinear'.
        template (Sequence, optional): See :func:`face_template`. Defaults to
            None, that of ArcFace.

    Returns:
        ndarray: The crop, of the same type.

    Raises:
        ValueError: If there is neither a box nor landmarks, or they are none.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if keypoints is not None:
        if np.shape(keypoints) != (5, 2):
            raise ValueError(
                f'Got landmarks of the shape {np.shape(keypoints)}, expected '
                f'(5, 2): {", ".join(LANDMARKS)}.')
        template = TEMPLATE if template is None else template
        matrix = similarity_transform(keypoints,
                                      face_template(size, margin, template))
    elif bbox is not None:
        matrix = box_transform(bbox, size, margin)
    else:
        raise ValueError('Got neither landmarks nor a box, expected one of '
                         'them.')
    # Bilinear interpolation of an image that shrinks skips pixels.
    scale = np.hypot(matrix[0, 0], matrix[1, 0])
    if scale < 0.5:
        img, matrix = _cut_out(img, matrix, size, 4 / scale)
        height, width = img.shape[:2]
        small = max(round(width * scale), 1), max(round(height * scale), 1)
        img = cv2.resize(img, small, interpolation=cv2.INTER_AREA)
        # For OpenCV the centre of the first pixel is at (0, 0).
        x, y = width / small[0], height / small[1]
        matrix = matrix @ np.array([[x, 0,
                                     (x - 1) / 2], [0, y,
                                                    (y - 1) / 2], [0, 0, 1]])
    if max(img.shape[:2]) >= MAX_WARP:
        img, matrix = _cut_out(img, matrix, size, 4)
    return cv2.warpAffine(
        img, matrix, size, flags=INTERPOLATIONS[interpolation])


def _cut_out(img: np.ndarray, matrix: np.ndarray, size: Tuple[int, int],
             border: float) -> Tuple[np.ndarray, np.ndarray]:
    """Cut out the part of an image that a crop needs, with a border that
    interpolation reaches, in pixels."""
    # From edge to edge, as the centre of the first pixel is at (0, 0): the
    # part of a turned image is then the part of the upright one, turned.
    right, bottom = size[0] - 0.5, size[1] - 0.5
    corners = np.array([[-0.5, -0.5, 1], [right, -0.5, 1], [-0.5, bottom, 1],
                        [right, bottom, 1]])
    needed = corners @ cv2.invertAffineTransform(matrix).T
    first = np.floor(needed.min(0) - border).astype(int)
    last = np.ceil(needed.max(0) + border).astype(int) + 1
    first = np.clip(first, 0, np.array(img.shape[1::-1]) - 1)
    last = np.clip(last, first + 1, first + MAX_WARP - 1)
    part = img[first[1]:last[1], first[0]:last[0]]
    shift = matrix[:, :2] @ first
    return part, np.column_stack([matrix[:, :2], matrix[:, 2] + shift])


class FaceAligner:
    """Align faces in one way: see :func:`align_face`.

    Args:
        size (int | tuple[int, int]): The side of the crop, or its width and
            height, in pixels. Defaults to 112.
        margin (float): In [0, 10]. Defaults to 0.
        interpolation (str): Defaults to 'bilinear'.
        template (Sequence, optional): Defaults to None.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self,
                 size: Union[int, Tuple[int, int]] = 112,
                 margin: float = 0.,
                 interpolation: str = 'bilinear',
                 template: Optional[Sequence] = None) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError('AlignFace got interpolation='
                             f'{interpolation!r:.100}, expected one of '
                             f'{", ".join(INTERPOLATIONS)}.')
        if not 0 <= margin <= 10:
            raise ValueError(f'AlignFace got margin={margin}, expected at '
                             'least 0, and at most 10.')
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(
                type(side) is int and 1 <= side <= 4096 for side in sides):
            raise ValueError(
                f'AlignFace got size={size!r:.100}, expected one '
                'or two numbers of pixels, at least 1 and at most 4096.')
        if template is not None:
            if np.shape(template) != (5, 2):
                raise ValueError('AlignFace got a template of the shape '
                                 f'{np.shape(template)}, expected (5, 2): '
                                 f'{", ".join(LANDMARKS)}.')
            # It refuses points that are not finite, or coincide.
            similarity_transform(TEMPLATE, template)
        self.size = size
        self.margin = margin
        self.interpolation = interpolation
        self.template = template

    @property
    def settings(self) -> dict:
        """The arguments of :func:`align_face` that are set."""
        settings = dict(
            size=self.size,
            margin=self.margin,
            interpolation=self.interpolation)
        if self.template is not None:
            settings['template'] = [[float(x), float(y)]
                                    for x, y in self.template]
        return settings

    def align(self,
              img: np.ndarray,
              keypoints: Optional[np.ndarray] = None,
              bbox: Optional[Sequence[float]] = None) -> np.ndarray:
        """Align a face: see :func:`align_face`."""
        return align_face(img, keypoints, bbox, **self.settings)

    def __repr__(self) -> str:
        settings = ', '.join(f'{k}={v!r}' for k, v in self.settings.items())
        return f'{type(self).__name__}({settings})'


def prepare_image(
        img: np.ndarray,
        max_side: Optional[int] = None
) -> Tuple[np.ndarray, Tuple[float, float]]:
    """Make an image one that detectors take: BGR, and not too large.

    It is uint8 of shape ``(H, W)``, or with 1, 3 (BGR) or 4 (BGRA) channels
    last: grey ones get three equal channels, the fourth is dropped, and one
    whose longer side has more pixels than ``max_side`` is shrunk to that.
    Returns the image, uint8 of shape ``(H, W, 3)``, and by how much its width
    and height were scaled. ValueError is raised if the array is no image.
    """
    if (img.dtype != np.uint8 or img.ndim not in (2, 3) or 0 in img.shape
            or img.shape[2:] not in ((), (1, ), (3, ), (4, ))):
        raise ValueError(
            f'Got an array of {img.dtype} and of shape {img.shape} as an '
            'image, expected uint8 of shape (height, width), or with 1, 3 '
            '(BGR) or 4 (BGRA) channels last. Convert it.')
    if img.shape[2:] in ((), (1, )):
        img = cv2.cvtColor(img, cv2.COLOR_GRAY2BGR)
    elif img.shape[2] == 4:
        img = cv2.cvtColor(img, cv2.COLOR_BGRA2BGR)
    height, width = img.shape[:2]
    if max_side and max(height, width) > max_side:
        # A side of a strip must not vanish.
        size = [
            max(round(side * max_side / max(height, width)), 1)
            for side in (width, height)
        ]
        img = cv2.resize(img, size, interpolation=cv2.INTER_AREA)
    return img, (img.shape[1] / width, img.shape[0] / height)


def box_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The intersections over unions of boxes (left, top, right, bottom).

    ``one`` has the shape ``(N, 4)`` and ``other`` ``(M, 4)``. Returns float64
    of shape ``(N, M)``, 0 where neither box has an area.
    """
    one, other = (boxes.astype(np.float64) for boxes in (one, other))
    shared = (np.minimum(one[:, None, 2:], other[:, 2:]) -
              np.maximum(one[:, None, :2], other[:, :2])).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
