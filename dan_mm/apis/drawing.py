# Copyright (c) dan_mm contributors. All rights reserved.
import colorsys
from typing import Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .inferencer import FaceResult


def draw_faces(img: np.ndarray, faces: Sequence[FaceResult]) -> np.ndarray:
    """Draw boxes with the expressions and their probabilities.

    Args:
        img (ndarray): The picture, BGR, uint8 of shape ``(H, W, 3)``.
        faces (Sequence[FaceResult]): Its faces. They are numbered from 1 in
            their order, or by their tracks in a video with smoothing.

    Returns:
        ndarray: A copy of the picture with the boxes, of the same type.
    """
    picture = Image.fromarray(np.ascontiguousarray(img[..., ::-1]))
    canvas = ImageDraw.Draw(picture)
    # The smaller of many faces would vanish below large letters.
    unit = max(min(picture.size) / 600, 1)
    # From the last on, so that the most certain are on top.
    for number, face in reversed(list(enumerate(faces, 1))):
        if face.bbox is None:
            continue
        number = number if face.track is None else face.track
        left, top, right, bottom = map(float, face.bbox)
        size = np.clip((right - left) / 8, 9 * unit, 18 * unit)
        font = ImageFont.load_default(size)
        color = _color(face)
        canvas.rectangle((left, top, right, bottom),
                         outline=color,
                         width=round(2 * unit))
        text = (f'{number} {face.expression} '
                f'{face.scores[face.expression]:.0%}')
        label = canvas.textbbox((0, 0), text, font)
        x = min(max(left, 0), max(picture.width - label[2], 0))
        y = top - label[3] - unit
        # A face at the upper border has its label inside.
        y = y if y >= 0 else max(top, 0) + unit
        canvas.rectangle((x, y, x + label[2] + 2 * unit, y + label[3] + unit),
                         fill=color)
        canvas.text((x + unit, y), text, (0, 0, 0), font)
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def _color(face: FaceResult) -> Tuple[int, int, int]:
    """A light colour for each class, the same in every picture."""
    place = list(face.scores).index(face.expression) / len(face.scores)
    # Red is no colour for the first one, often neutral.
    red, green, blue = colorsys.hls_to_rgb((place + 0.55) % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
