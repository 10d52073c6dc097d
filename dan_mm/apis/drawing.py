# Copyright (c) dan_mm contributors. All rights reserved.
import colorsys
import os.path as osp
from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from typing import Iterator, Sequence, Tuple

import numpy as np

try:
    from anyascii import anyascii
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise ImportError(
        f'Drawing needs {error.name}, which is missing. Run `pip install '
        'anyascii fonttools matplotlib pillow zhplot`.') from error

from .inferencer import FaceResult

# Packages with fonts: European scripts and Arabic, Chinese and Japanese
FONTS = (('matplotlib', 'mpl-data/fonts/ttf/DejaVuSans.ttf'),
         ('zhplot', 'fonts/NotoSansSC-Regular.ttf'))
# A label over another one is worse than one over another face.
LABEL_WEIGHT = 10


def draw_faces(img: np.ndarray, faces: Sequence[FaceResult]) -> np.ndarray:
    """Draw boxes with the expressions and their probabilities.

    Args:
        img (ndarray): The image, BGR, uint8 of shape ``(H, W, 3)``.
        faces (Sequence[FaceResult]): Its faces. They are numbered from 1 in
            their order, or by their tracks in a video with smoothing.

    Returns:
        ndarray: A copy of the image with the boxes, of the same type.
    """
    image = Image.fromarray(np.ascontiguousarray(img[..., ::-1]))
    canvas = ImageDraw.Draw(image)
    # The smaller of many faces would vanish below large letters.
    unit = max(min(image.size) / 600, 1)
    found = [(number if face.track is None else face.track, face)
             for number, face in enumerate(faces, 1) if face.bbox is not None]
    boxes = np.array([face.bbox for _, face in found], float).reshape(-1, 4)
    # From the last on, so that the most certain are on top.
    for (_, face), box in zip(found[::-1], boxes[::-1]):
        canvas.rectangle(box.tolist(), None, _color(face), round(2 * unit))
    labels = np.zeros_like(boxes)
    for i, (number, face) in enumerate(found):
        text = (f'{number} {face.expression} '
                f'{face.scores[face.expression]:.0%}')
        size = np.clip((boxes[i, 2] - boxes[i, 0]) / 8, 9 * unit, 18 * unit)
        path = find_font(face.expression)
        # Some script that no font here has
        text = text if path else anyascii(text)
        font = _load_font(path or find_font(''), round(size, 1))
        # All labels of a size are of one height.
        left, _, right, _ = font.getbbox(text)
        width, height = right - left + 2 * unit, sum(font.getmetrics()) + unit
        places = _places(boxes[i], width, height, image.size)
        cost = _overlap(places, boxes) - _overlap(places, boxes[i:i + 1])
        cost += LABEL_WEIGHT * _overlap(places, labels[:i])
        labels[i] = places[cost.argmin()]
        canvas.rectangle(labels[i].tolist(), _color(face))
        canvas.text((labels[i, 0] + unit - left, labels[i, 1]), text,
                    (0, 0, 0), font)
    return np.ascontiguousarray(np.asarray(image)[..., ::-1])


def _color(face: FaceResult) -> Tuple[int, int, int]:
    """A light colour for each class, the same in every image."""
    place = list(face.scores).index(face.expression) / len(face.scores)
    # Red is no colour for the first one, often neutral.
    red, green, blue = colorsys.hls_to_rgb((place + 0.55) % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _places(box: np.ndarray, width: float, height: float,
            size: Tuple[int, int]) -> np.ndarray:
    """Places for the label of a box in an image, of shape ``(12, 4)``, the
    best first: above, below and in it, at its left, its right and its
    middle."""
    left, top, right, bottom = box
    corners = np.array([*product(
        (left, right - width, (left + right - width) / 2),
        (top - height, bottom, top, bottom - height))])  # yapf: disable
    corners = corners.reshape(3, 4, 2).swapaxes(0, 1).reshape(-1, 2)
    last = np.maximum(np.subtract(size, (width, height)), 0)
    corners = np.clip(corners, 0, last)
    return np.hstack([corners, corners + (width, height)])


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area of each box that others cover, in pixels."""
    width, height = (
        np.minimum(boxes[:, None, 2 + axis], others[:, 2 + axis]) -
        np.maximum(boxes[:, None, axis], others[:, axis]) for axis in (0, 1))
    return (width.clip(0) * height.clip(0)).sum(1)


@lru_cache
def find_font(text: str) -> str:
    """Find the file of a font that has all letters of a text, and digits: one
    that comes with this package or one of the system, or give ''."""
    return next((path for path in _font_files()
                 if set(map(ord, f'{text}0123456789%')) <= _letters(path)), '')


def _font_files() -> Iterator[str]:
    for package, name in FONTS:
        spec = find_spec(package)
        if spec:
            yield osp.join(spec.submodule_search_locations[0], name)
    from matplotlib.font_manager import findSystemFonts
    yield from sorted(findSystemFonts())


_load_font = lru_cache(ImageFont.truetype)


@lru_cache
def _letters(path: str) -> frozenset:
    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            # Fonts of bitmaps, such as those of emoji, have one size.
            if not {'CFF ', 'CFF2', 'glyf'} & set(font.keys()):
                return frozenset()
            return frozenset(font.getBestCmap() or ())
    except Exception:
        # Fonts of the system may be of any kind.
        return frozenset()
