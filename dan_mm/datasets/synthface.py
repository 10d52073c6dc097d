# Copyright (c) dan_mm contributors. All rights reserved.
"""Drawn faces: a data set of expressions that needs no download."""
import json
import os
import os.path as osp
import shutil
import tempfile
import time
from functools import partial
from typing import Dict, List, Sequence, Tuple

import cv2
import mmengine.dist as dist
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.utils import track_progress_rich
from mmpretrain.registry import DATASETS, TRANSFORMS

from .base import FERDataset

# Action units of the Facial Action Coding System, as in EMFACS. Each maps to
# its least intensity where it occurs; those of contempt are on one side.
PROTOTYPES: Dict[str, Dict[str, float]] = dict(
    anger={
        'AU4': .6,
        'AU5': .3,
        'AU7': .5,
        'AU23': .6
    },
    disgust={
        'AU9': .6,
        'AU10': .4,
        'AU15': .3,
        'AU16': .3
    },
    fear={
        'AU1': .6,
        'AU2': .4,
        'AU4': .4,
        'AU5': .5,
        'AU20': .6,
        'AU25': .4,
        'AU26': .2
    },
    happiness={
        'AU6': .5,
        'AU12': .6
    },
    sadness={
        'AU1': .6,
        'AU4': .4,
        'AU15': .6,
        'AU17': .3
    },
    surprise={
        'AU1': .6,
        'AU2': .6,
        'AU5': .5,
        'AU26': .7
    },
    neutral={},
    contempt={
        'AU12': .4,
        'AU14': .6
    })
ACTION_UNITS = ('AU1', 'AU2', 'AU4', 'AU5', 'AU6', 'AU7', 'AU9', 'AU10',
                'AU12', 'AU14', 'AU15', 'AU16', 'AU17', 'AU20', 'AU23', 'AU25',
                'AU26')
PARTS = ('brows', 'eyes', 'nose', 'mouth')

PREFIX = '.drawing-'  # of folders that are not finished
# Drawn larger and shrunk: smooth edges.
SUPERSAMPLING = 2
SHIFT = 4  # fractional bits of OpenCV's coordinates
# BGR, from light to dark
SKIN = np.float32([[205, 222, 250], [175, 200, 240], [140, 175, 225],
                   [100, 140, 195], [70, 100, 155], [45, 65, 105]])
HAIR = np.float32([[25, 22, 20], [35, 45, 70], [50, 80, 125], [95, 155, 205],
                   [50, 75, 160], [165, 165, 165]])
IRIS = np.float32([[40, 55, 85], [120, 95, 65], [75, 110, 80], [30, 35, 45]])


def sample_action_units(expression: str,
                        rng: np.random.Generator) -> Dict[str, float]:
    """Draw the intensities of the action units of one expression.

    Args:
        expression (str): One of the keys of ``PROTOTYPES``.
        rng (np.random.Generator): The source of chance.

    Returns:
        dict[str, float]: The intensity of each action unit, in [0, 1].
    """
    # Nobody's face is quite still.
    units = {unit: rng.uniform(0, .12) for unit in ACTION_UNITS}
    units['AU14'] = units['AU26'] = 0.
    for unit, least in PROTOTYPES[expression].items():
        units[unit] = rng.uniform(least, 1)
    if expression == 'happiness' and rng.random() < .6:
        units['AU25'] = rng.uniform(.4, 1)
    return units


def sample_identity(rng: np.random.Generator) -> dict:
    """Draw the looks of a person."""

    def around(mean: float, spread: float) -> float:
        return mean + spread * np.clip(rng.standard_normal(), -2, 2)

    tone = rng.uniform(0, len(SKIN) - 1)
    dark = int(tone)
    skin = SKIN[dark] + (tone - dark) * (
        SKIN[min(dark + 1,
                 len(SKIN) - 1)] - SKIN[dark])
    hair = HAIR[rng.choice(len(HAIR), p=[.3, .25, .18, .1, .05, .12])]
    hair = np.clip(hair * rng.uniform(.8, 1.2), 8, 240)
    return dict(
        skin=np.clip(skin + rng.normal(0, 5, 3), 20, 252),
        hair=hair,
        hair_style=rng.choice(['short', 'long', 'fringe', 'bald'],
                              p=[.4, .3, .2, .1]),
        hairline=around(-.84, .05),
        parting=rng.uniform(-.5, .5),
        brow_color=hair * rng.uniform(.45, .8),
        beard=rng.choice(['none', 'stubble', 'full', 'moustache'],
                         p=[.7, .12, .1, .08]),
        glasses=rng.choice(['none', 'round', 'square'], p=[.78, .11, .11]),
        glasses_color=rng.uniform(10, 110, 3),
        shirt=rng.uniform(20, 230, 3),
        iris=IRIS[rng.choice(len(IRIS))] * rng.uniform(.8, 1.2),
        lips=rng.uniform([.62, .55, .78], [.78, .72, .98]),
        width=around(1, .04),
        taper=rng.uniform(.12, .38),
        squareness=rng.uniform(2, 2.6),
        eye_x=around(.42, .02),
        eye_y=around(-.18, .02),
        eye_width=around(.19, .012),
        eye_open=around(1, .1),
        brow_y=around(0, .02),
        brow_tilt=around(0, .02),
        brow_thickness=around(.075, .014),
        nose_width=around(.17, .02),
        nose_y=around(.26, .03),
        mouth_y=around(.64, .025),
        mouth_width=around(.34, .025),
        mouth_bend=around(0, .015),
        lip=around(.085, .014),
        age=rng.uniform(0, 1))


def curve(points: Sequence, number: int = 16) -> np.ndarray:
    """Sample the quadratic curve through three points, (number, 2)."""
    start, middle, end = np.float64(points)
    t = np.linspace(0, 1, number)[:, None]
    control = 2 * middle - (start + end) / 2
    return (1 - t)**2 * start + 2 * t * (1 - t) * control + t**2 * end


class FacePainter:
    """Draws one picture.

    Face coordinates: x to the right of the picture, y down, the face about 2
    wide and 2.7 high, 0 between nose and eyes; z is that of an ellipsoid.

    Args:
        identity (dict): The looks, of :func:`sample_identity`.
        units (dict[str, float]): The intensities of the action units.
        rng (np.random.Generator): The source of chance: pose, light,
            background, occlusion, noise.
        size (int): Height and width of the picture in pixels.
    """

    def __init__(self, identity: dict, units: Dict[str, float],
                 rng: np.random.Generator, size: int) -> None:
        self.identity = identity
        self.rng = rng
        self.size = size
        self.side = size * SUPERSAMPLING

        self.units = units
        # Expressions of contempt are on one side, 1 or -1; others are a little
        # stronger on one.
        self.strong_side = rng.choice([-1, 1])
        self.unilateral = units['AU14'] > .2
        self.lean = rng.uniform(0, .15)

        yaw, pitch, roll = np.radians(
            np.clip(rng.normal(0, [10, 6, 7]), -22, 22))
        cos, sin = np.cos, np.sin
        turn = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0],
                         [-sin(yaw), 0, cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)],
                        [0, sin(pitch), cos(pitch)]])
        tilt = np.array([[cos(roll), -sin(roll), 0], [sin(roll),
                                                      cos(roll), 0], [0, 0,
                                                                      1]])
        self.rotation = tilt @ nod @ turn
        self.yaw, self.roll = yaw, roll
        self.scale = self.side * rng.uniform(.3, .365)
        self.center = self.side * (
            np.array([.5, .5]) + rng.uniform(-.05, .05, 2))

        self.canvas = np.empty((self.side, self.side, 3), np.uint8)
        self.creases = np.zeros((self.side, self.side), np.uint8)
        self.masks = np.zeros((len(PARTS), self.side, self.side), np.uint8)

    def unit(self, name: str, side: int) -> float:
        """The intensity of an action unit on a side of the picture."""
        value = self.units[name]
        if name in ('AU12', 'AU14') and self.unilateral:
            return value if side == self.strong_side else .1 * value
        return value * (1 - self.lean) if side != self.strong_side else value

    def project(self, points: Sequence, lift: float = 0) -> np.ndarray:
        """Map face coordinates (N, 2) to pixels of the canvas (N, 2)."""
        x, y = np.float64(points).reshape(-1, 2).T
        z = np.sqrt(np.clip(1 - (x / 1.25)**2 - (y / 1.8)**2, 0, 1)) + lift
        x, y, z = self.rotation @ np.stack([x * self.identity['width'], y, z])
        return self.center + self.scale * (1 + .1 * (z[:, None] - 1)) * (
            np.stack([x, y], 1))

    def flat(self, points: Sequence) -> np.ndarray:
        """Map points of the head's outline, which yaw and pitch hardly
        move, to pixels."""
        x, y = np.float64(points).reshape(-1, 2).T
        x = x * self.identity['width'] + .12 * np.sin(self.yaw)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        return self.center + self.scale * np.stack(
            [cos * x - sin * y, sin * x + cos * y], 1)

    @staticmethod
    def fixed(points: np.ndarray) -> np.ndarray:
        return np.round(points * (1 << SHIFT)).astype(np.int32)

    def fill(self, points: np.ndarray, color: Sequence) -> None:
        cv2.fillPoly(self.canvas, [self.fixed(points)],
                     np.float64(color).tolist(), cv2.LINE_AA, SHIFT)

    def line(self, points: np.ndarray, color: Sequence, width: float) -> None:
        cv2.polylines(self.canvas, [self.fixed(points)], False,
                      np.float64(color).tolist(), self.thickness(width),
                      cv2.LINE_AA, SHIFT)

    def crease(self, points: np.ndarray, strength: float,
               width: float) -> None:
        if strength > .05:
            layer = np.zeros_like(self.creases)
            cv2.polylines(layer, [self.fixed(points)], False,
                          min(255 * strength, 255), self.thickness(width),
                          cv2.LINE_AA, SHIFT)
            np.maximum(self.creases, layer, out=self.creases)

    def thickness(self, width: float) -> int:
        return max(1, round(width * self.scale))

    def mark(self, part: str, points: np.ndarray, margin: float) -> None:
        """Add a polygon and a margin to the mask of a part."""
        mask = self.masks[PARTS.index(part)]
        polygon = [self.fixed(points)]
        cv2.fillPoly(mask, polygon, 255, shift=SHIFT)
        cv2.polylines(
            mask, polygon, True, 255, self.thickness(2 * margin), shift=SHIFT)

    def dot(self, point: np.ndarray, radius: float, color: Sequence) -> None:
        cv2.circle(self.canvas,
                   self.fixed(point).tolist(),
                   int(radius * self.scale * (1 << SHIFT)),
                   np.float64(color).tolist(), -1, cv2.LINE_AA, SHIFT)

    def paint(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw everything.

        Returns:
            tuple[ndarray, ndarray, ndarray]: The picture, BGR uint8 of shape
            (size, size, 3), the masks of ``PARTS``, bool of shape (4, size,
            size), and five landmarks in pixels, of shape (5, 2).
        """
        self.paint_background()
        head = self.paint_head()
        self.paint_nose()
        for side in (-1, 1):
            self.paint_eye(side)
            self.paint_brow(side)
        self.paint_mouth()
        self.paint_lines()
        self.paint_hair(head)
        self.paint_glasses()
        self.shade(head)
        self.occlude()
        size = (self.size, self.size)
        masks = [
            cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 127
            for mask in self.masks
        ]
        landmarks = np.concatenate([
            self.project([[-self.identity['eye_x'], self.identity['eye_y']],
                          [self.identity['eye_x'], self.identity['eye_y']]]),
            self.nose_tip,
            self.corners,
        ]) / SUPERSAMPLING
        return self.expose(), np.stack(masks), landmarks

    def paint_background(self) -> None:
        rng, side = self.rng, self.side
        colors = rng.uniform(20, 235, (2, 2, 3)).astype(np.float32)
        self.canvas[:] = cv2.resize(colors, (side, side))
        for _ in range(rng.integers(0, 4)):
            center = rng.uniform(0, side, 2).astype(int).tolist()
            axes = rng.uniform(.05, .3, 2) * side
            cv2.ellipse(self.canvas, center,
                        axes.astype(int).tolist(), rng.uniform(0, 180), 0, 360,
                        rng.uniform(20, 235, 3).tolist(), -1, cv2.LINE_AA)

    def paint_head(self) -> np.ndarray:
        """Draw shoulders, neck, ears and skin; get the head's outline."""
        look, skin = self.identity, self.identity['skin']
        jaw = .24 * self.units['AU26'] - .04 * self.units['AU17']
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        power = 2 / np.where(np.sin(angle) > 0, look['squareness'], 2)
        x = np.sign(np.cos(angle)) * np.abs(np.cos(angle))**power
        y = np.sign(np.sin(angle)) * np.abs(np.sin(angle))**power
        y = np.where(y > 0, (1.28 + jaw) * y, 1.42 * y)
        x = x * (1 - look['taper'] * np.clip(y / 1.3, 0, 1)**2)
        head = self.flat(np.stack([x, y], 1))

        if look['hair_style'] == 'long':
            back = np.stack([1.25 * np.cos(angle), 1.6 * np.sin(angle)], 1)
            back[np.sin(angle) > 0, 1] *= 1.15
            self.fill(self.flat(back), look['hair'] * .8)
        self.fill(
            self.flat([[-.45, .8], [.45, .8], [.55, 1.7], [2, 2.2], [2.2, 4],
                       [-2.2, 4], [-2, 2.2], [-.55, 1.7]]), look['shirt'])
        self.fill(
            self.flat([[-.45, .8], [.45, .8], [.5, 1.75], [0, 2],
                       [-.5, 1.75]]), skin * .8)
        for ear in (-1, 1):
            center = np.array([ear * 1.0 - .25 * np.sin(self.yaw), .02])
            outline = center + np.stack(
                [.13 * np.cos(angle), .26 * np.sin(angle)], 1)
            self.fill(self.flat(outline), skin * .93)
        self.fill(head, skin)

        if look['beard'] in ('stubble', 'full'):
            below = np.concatenate([
                head[y > -.1],
                self.project(
                    np.concatenate([
                        curve([[-.95, -.1], [-.6, .45], [-.2, .48]]),
                        curve([[.2, .48], [.6, .45], [.95, -.1]])
                    ]))
            ])
            # In the order of the angle around a point of the chin.
            x, y = (below - self.project([[0, .9]])).T
            below = below[np.argsort(np.arctan2(y, x))]
            beard = np.zeros((self.side, self.side), np.uint8)
            cv2.fillPoly(beard, [self.fixed(below)], 255, cv2.LINE_AA, SHIFT)
            beard = cv2.GaussianBlur(beard, (0, 0), .05 * self.scale)
            inside = np.zeros_like(beard)
            cv2.fillPoly(inside, [self.fixed(head)], 255, cv2.LINE_AA, SHIFT)
            share = np.minimum(beard, inside)[..., None] / np.float32(255)
            share = share * (.25 if look['beard'] == 'stubble' else .75)
            self.canvas = (self.canvas * (1 - share) +
                           look['hair'] * share).astype(np.uint8)
        if look['beard'] in ('moustache', 'full'):
            top = look['nose_y'] + .12
            self.fill(
                self.project(
                    np.concatenate([
                        curve([[-.33, top + .16], [0, top - .02],
                               [.33, top + .16]]),
                        curve([[.33, top + .16], [0, top + .16],
                               [-.33, top + .16]])
                    ])), look['hair'])
        return head

    def paint_nose(self) -> None:
        look = self.identity
        skin, width = look['skin'], look['nose_width']
        wrinkle = self.units['AU9']
        width = width * (1 + .15 * wrinkle)
        y = look['nose_y'] - .05 * wrinkle
        self.nose_tip = self.project([[0, y - .04]], .3)
        for side in (-1, 1):
            bridge = [[side * .09, -.22], [side * .07, .02], [side * .1, y]]
            self.crease(self.project(curve(bridge), .12), .25, .05)
            wing = [[side * (width - .04), y - .1], [side * width, y],
                    [side * (width - .07), y + .07]]
            self.crease(self.project(curve(wing), .12), .7, .03)
            nostril = self.project([[side * .075, y + .05]], .15)[0]
            self.dot(nostril, .036, skin * .35)
        tip = self.project([[0, y - .06]], .3)[0]
        self.dot(tip, .07, np.clip(skin * 1.07, 0, 255))
        # Wrinkles across the root of the nose.
        for row in range(3):
            level = -.2 + .075 * row
            self.crease(
                self.project(
                    curve([[-.12, level + .04], [0, level],
                           [.12, level + .04]]), .12), wrinkle, .025)
        outline = [[-.1, -.12], [.1, -.12], [width, y], [.1, y + .1],
                   [-.1, y + .1], [-width, y]]
        self.mark('nose', self.project(outline, .15), .03)

    def paint_eye(self, side: int) -> None:
        look = self.identity
        wide, narrow = self.unit('AU5', side), self.unit('AU7', side)
        cheek = self.unit('AU6', side)
        x, y = side * look['eye_x'], look['eye_y']
        width = look['eye_width']
        upper = look['eye_open'] * (.085 + .075 * wide - .03 * narrow)
        lower = look['eye_open'] * (.06 + .01 * wide - .035 * narrow -
                                    .04 * cheek)
        t = np.linspace(-1, 1, 16)
        arch = (1 - t**2)**.8
        lid = np.stack([x + width * t, y - upper * arch], 1)
        outline = np.concatenate(
            [lid, np.stack([x + width * t, y + lower * arch], 1)[::-1]])
        polygon = self.project(outline)

        # A socket, then the white with iris and pupil inside it.
        self.crease(self.project(lid - [0, .055]), .5, .025)
        before = self.canvas.copy()
        self.fill(polygon, [225, 232, 235])
        gaze = self.project([[x + self.gaze[0], y - .01 + self.gaze[1]]])[0]
        self.dot(gaze, .094, look['iris'])
        self.dot(gaze, .045, [10, 10, 10])
        self.dot(gaze + [-.03 * self.scale, -.03 * self.scale], .016,
                 [250, 250, 250])
        inside = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(inside, [self.fixed(polygon)], 255, cv2.LINE_AA, SHIFT)
        low = np.floor(polygon.min(0) - 12).astype(int).clip(0)
        high = np.ceil(polygon.max(0) + 12).astype(int)
        box = slice(low[1], high[1]), slice(low[0], high[0])
        share = inside[box][..., None] / np.float32(255)
        before[box] = share * self.canvas[box] + (1 - share) * before[box]
        self.canvas = before
        self.line(self.project(lid), look['skin'] * .2, .035)
        self.line(self.project(outline[16:]), look['skin'] * .55, .014)
        # The bag below the eye, and crow's feet.
        self.crease(
            self.project(
                curve([[x - width, y + .1], [x, y + lower + .09],
                       [x + width, y + .1]])), .2 + .7 * cheek + .3 * narrow,
            .022)
        for ray in (-1, 0, 1):
            start = np.array([x + side * (width + .06), y + .05 * ray])
            self.crease(
                self.project([start, start + [side * .12, .06 * ray]]), cheek,
                .018)
        self.mark('eyes', polygon, .07)

    @property
    def gaze(self) -> np.ndarray:
        if not hasattr(self, '_gaze'):
            self._gaze = self.rng.uniform(-1, 1, 2) * [.05, .015]
        return self._gaze

    def paint_brow(self, side: int) -> None:
        look = self.identity
        inner_up, outer_up = self.unit('AU1', side), self.unit('AU2', side)
        frown = min(self.unit('AU4', side) + .5 * self.units['AU9'], 1)
        base = look['eye_y'] - .25 + look['brow_y']
        tilt = look['brow_tilt']
        together = 1 - .3 * frown
        inner = [
            .2 * together,
            base + .02 + tilt - .2 * inner_up + .13 * frown * (1 - inner_up)
        ]
        middle = [
            .45, base - .07 - .09 * inner_up - .09 * outer_up + .09 * frown
        ]
        outer = [
            .7, base + .03 - tilt - .17 * outer_up + .04 * frown +
            .03 * inner_up * (1 - outer_up)
        ]
        spine = curve([inner, middle, outer])
        spine[:, 0] *= side
        half = look['brow_thickness'] / 2 * np.linspace(1, .35, len(spine))
        offset = np.stack([np.zeros_like(half), half], 1)
        polygon = self.project(
            np.concatenate([spine - offset, (spine + offset)[::-1]]))
        self.fill(polygon, look['brow_color'])
        self.mark('brows', polygon, .06)
        # The fold between the brows, and lines on the forehead.
        self.crease(
            self.project(
                curve([[side * .06, base - .1], [side * .045, base],
                       [side * .07, base + .1]])), frown, .028)
        raised = min(inner_up, outer_up)
        for row in range(3):
            level = base - .3 - .09 * row - .06 * inner_up
            self.crease(
                self.project(
                    curve([[0, level], [side * .25, level - .02],
                           [side * .5, level + .04]])),
                max(raised, .25 * look['age']), .02)

    def paint_mouth(self) -> None:
        look, units = self.identity, self.units
        jaw, part = units['AU26'], units['AU25']
        stretch, tight = units['AU20'], units['AU23']
        raise_upper = max(units['AU10'], .6 * units['AU9'])
        drop_lower, chin = units['AU16'], units['AU17']
        middle = look['mouth_y']

        corners = []
        for side in (-1, 1):
            smile = self.unit('AU12', side)
            smirk = self.unit('AU14', side)
            down = self.unit('AU15', side)
            x = look['mouth_width'] * (1 - .12 * tight - .15 * jaw)
            x += .1 * smile + .13 * stretch + .03 * down + .03 * smirk
            y = middle + look['mouth_bend'] + .05 * jaw
            y += -.17 * smile + .14 * down + .03 * stretch - .02 * smirk
            corners.append([side * x, y])
            # Dimple, nasolabial fold, the fold below a lowered corner.
            self.crease(
                self.project(
                    curve([[side * (x + .05), y - .08], [side * (x + .1), y],
                           [side * (x + .05), y + .08]])),
                max(smirk, .4 * smile), .035)
            fold = max(smile, raise_upper, .25 * look['age'])
            self.crease(
                self.project(
                    curve([[
                        side * (look['nose_width'] + .04), look['nose_y'] - .04
                    ], [side * (.33 + .06 * smile), .42],
                           [side * (x + .08), y - .03]])), .8 * fold, .028)
            self.crease(
                self.project([[side * x, y + .04], [side * (x + .05),
                                                    y + .16]]), down, .028)
        self.corners = self.project(corners)
        left, right = np.array(corners)

        gap_up = .045 * part + .035 * jaw + .075 * raise_upper
        gap_down = .05 * part + .3 * jaw + .09 * drop_lower + .02 * stretch
        # Lips that are closed leave no gap.
        if gap_up + gap_down < .05:
            gap_up = gap_down = 0
        thin = (1 - .6 * tight) * (1 - .3 * stretch)
        bend = (left[1] + right[1]) / 2 - middle
        center = middle + .25 * bend - .04 * chin
        inner_up, inner_down = center - gap_up, center + gap_down
        top = inner_up - look['lip'] * thin
        bottom = inner_down + 1.15 * look['lip'] * thin

        bow = curve([left, [0, top], right], 17)
        dip = np.exp(-(np.linspace(-1, 1, 17) / .16)**2)
        bow[:, 1] += .35 * look['lip'] * thin * dip
        lower = curve([right, [0, bottom], left], 17)
        lips = self.project(np.concatenate([bow, lower]), .03)
        color = look['skin'] * look['lips']
        self.fill(lips, color)
        inner_top = curve([left, [0, inner_up], right], 17)
        inner_bottom = curve([right, [0, inner_down], left], 17)
        if gap_up + gap_down > 0:
            hole = self.project(np.concatenate([inner_top, inner_bottom]), .03)
            self.fill(hole, [25, 20, 45])
            teeth = min(.07, .8 * (gap_up + gap_down))
            if max(units['AU12'], raise_upper, stretch, part) > .35:
                self.fill(
                    self.project(
                        np.concatenate([
                            inner_top * [.85, 1],
                            (inner_top * [.85, 1] + [0, teeth])[::-1]
                        ]), .03), [215, 228, 232])
            if max(drop_lower, stretch) > .35:
                self.fill(
                    self.project(
                        np.concatenate([
                            inner_bottom * [.7, 1],
                            (inner_bottom * [.7, 1] - [0, teeth])[::-1]
                        ]), .03), [200, 215, 220])
        else:
            self.line(
                self.project(inner_top, .03), color * .45, .022 + .012 * tight)
        self.crease(
            self.project(
                curve([[-.2, bottom + .12], [0, bottom + .07],
                       [.2, bottom + .12]])), .2 + .8 * chin, .035)
        self.mark('mouth', lips, .08)

    def paint_lines(self) -> None:
        soft = cv2.GaussianBlur(self.creases, (0, 0), .8)
        darker = 1 - .5 * soft[..., None] / np.float32(255)
        self.canvas = (self.canvas * darker).astype(np.uint8)

    def paint_hair(self, head: np.ndarray) -> None:
        look = self.identity
        if look['hair_style'] == 'bald':
            return
        line = look['hairline']
        if look['hair_style'] == 'fringe':
            line += .1
        x = np.linspace(-1, 1, 13)
        y = line + .5 * np.abs(x)**5 + .06 * np.cos(4 * (x - look['parting']))
        if look['hair_style'] == 'fringe':
            y += self.rng.uniform(-.04, .04, 13)
        front = self.flat(np.stack([1.03 * x, y], 1))
        angle = np.linspace(0, np.pi, 30)
        crown = self.flat(
            np.stack([1.1 * np.cos(angle), .1 - 1.62 * np.sin(angle)**.9], 1))
        self.fill(np.concatenate([front, crown]), look['hair'])
        for strand in range(5):
            shift = .8 * (strand / 2 - 1)
            self.line(
                self.flat(
                    curve([[look['parting'], -1.45], [shift * .8, -1.3],
                           [shift, line - .05]])), look['hair'] * .75, .03)

    def paint_glasses(self) -> None:
        look = self.identity
        if look['glasses'] == 'none':
            return
        angle = np.linspace(0, 2 * np.pi, 33)
        power = 1 if look['glasses'] == 'round' else .45
        x = np.sign(np.cos(angle)) * np.abs(np.cos(angle))**power
        y = np.sign(np.sin(angle)) * np.abs(np.sin(angle))**power
        color = look['glasses_color']
        for side in (-1, 1):
            center = [side * look['eye_x'], look['eye_y'] + .03]
            rim = center + np.stack([.29 * x, .22 * y], 1)
            self.line(self.project(rim, .08), color, .035)
            self.line(
                self.project([[side * (look['eye_x'] + .29), look['eye_y']],
                              [side * 1.02, look['eye_y']]], .05), color, .035)
        self.line(
            self.project(
                curve([[-look['eye_x'] + .29, look['eye_y']],
                       [0, look['eye_y'] - .03],
                       [look['eye_x'] - .29, look['eye_y']]]), .15), color,
            .035)

    def shade(self, head: np.ndarray) -> None:
        """Light the head from a direction, as an ellipsoid."""
        rng = self.rng
        small = np.mgrid[:32, :32].astype(np.float32) + .5
        small *= self.side / 32
        v, u = (small - self.center[::-1, None, None]) / self.scale
        normal = np.stack([u / 1.25, v / 1.75])
        depth = np.sqrt(np.clip(1 - (normal**2).sum(0), 0, 1))
        light = np.array([rng.uniform(-.9, .9), rng.uniform(-.8, .3), 1])
        light /= np.linalg.norm(light)
        diffuse = normal[0] * light[0] + normal[1] * light[1] + (
            depth * light[2])
        ambient = rng.uniform(.45, .7)
        shading = ambient + (1.1 - ambient) * diffuse.clip(0)
        shading = cv2.resize(
            shading.astype(np.float32), (self.side, self.side))
        inside = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(inside, [self.fixed(head)], 255, cv2.LINE_AA, SHIFT)
        gain = 1 + inside / np.float32(255) * (shading - 1)
        self.canvas = np.clip(self.canvas * gain[..., None], 0,
                              255).astype(np.uint8)

    def occlude(self) -> None:
        """Now and then something is before a part of the face."""
        rng = self.rng
        if rng.random() > .2:
            return
        angle = rng.uniform(0, 2 * np.pi)
        place = self.flat([[np.cos(angle), 1.1 * np.sin(angle)]])[0]
        place += (self.center - place) * rng.uniform(0, .6)
        axes = rng.uniform([.18, .12], [.45, .25]) * self.scale
        cv2.ellipse(self.canvas,
                    place.astype(int).tolist(),
                    axes.astype(int).tolist(), rng.uniform(0, 180), 0, 360,
                    rng.uniform(20, 235, 3).tolist(), -1, cv2.LINE_AA)

    def expose(self) -> np.ndarray:
        """Shrink the canvas to the picture, with blur, light and noise."""
        rng = self.rng
        picture = cv2.resize(
            self.canvas, (self.size, self.size),
            interpolation=cv2.INTER_AREA).astype(np.float32)
        blur = rng.uniform(0, 1) * self.size / 112
        if blur > .4:
            picture = cv2.GaussianBlur(picture, (0, 0), blur)
        picture = 255 * (picture / 255)**rng.uniform(.75, 1.35)
        picture *= rng.uniform(.85, 1.1) * rng.uniform(.93, 1.07, 3)
        picture += rng.normal(0, rng.uniform(1, 7), picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8)


def draw_face(expression: str,
              identity: int,
              variant: int = 0,
              seed: int = 0,
              size: int = 112) -> dict:
    """Draw a face.

    Args:
        expression (str): One of the classes of :class:`SynthFace`.
        identity (int): The number of the person, at least 0: the same number
            has the same looks.
        variant (int): The number of the picture of this person with this
            expression, at least 0. Defaults to 0.
        seed (int): The same seed draws the same pictures. Defaults to 0.
        size (int): Height and width of the picture in pixels, at least 16.
            Defaults to 112.

    Returns:
        dict: ``img``, BGR uint8 of shape ``(size, size, 3)``; ``parts``, the
        masks of brows, eyes, nose and mouth, bool of shape
        ``(4, size, size)``; ``landmarks``, the left eye, right eye, nose tip,
        left and right mouth corner as seen in the picture, in pixels (x, y),
        float64 of shape ``(5, 2)``; ``action_units``, their intensities in
        [0, 1].

    Raises:
        ValueError: If there is no such expression, or the picture is too
            small.
    """
    if expression not in PROTOTYPES:
        raise ValueError(f'Found no expression {expression!r}, expected one '
                         f'of {list(PROTOTYPES)}.')
    if size < 16:
        raise ValueError(f'Got size={size}, expected at least 16 pixels.')
    looks = sample_identity(np.random.default_rng([seed, identity]))
    number = list(PROTOTYPES).index(expression)
    rng = np.random.default_rng([seed, identity, number, variant])
    units = sample_action_units(expression, rng)
    img, parts, landmarks = FacePainter(looks, units, rng, size).paint()
    return dict(img=img, parts=parts, landmarks=landmarks, action_units=units)


def _draw_person(identity: int, folder: str, seed: int,
                 size: int) -> List[dict]:
    """Write the pictures of a person, one of each expression."""
    cv2.setNumThreads(0)
    data_list = []
    for label, expression in enumerate(PROTOTYPES):
        face = draw_face(expression, identity, seed=seed, size=size)
        name = f'{identity:07d}_{expression}'
        bits = np.packbits(face['parts'], axis=0, bitorder='little')[0]
        for file, picture in (f'{name}.png',
                              face['img']), (f'{name}_parts.png', bits):
            if not cv2.imwrite(osp.join(folder, file), picture):
                raise OSError(
                    f'Can not write {osp.join(folder, file)}, expected space '
                    'on the disk and the permission to write. Make room, or '
                    'set `data_root` to another folder.')
        data_list.append(
            dict(
                img_path=f'{name}.png',
                parts_path=f'{name}_parts.png',
                gt_label=label,
                identity=identity,
                landmarks=face['landmarks'].round(2).tolist(),
                action_units={
                    unit: round(float(value), 3)
                    for unit, value in face['action_units'].items()
                }))
    return data_list


@DATASETS.register_module()
class SynthFace(FERDataset):
    """Drawn faces with the seven basic expressions and contempt.

    The faces are drawn from prototypes of action units (the Facial Action
    Coding System: happiness is AU6+12, surprise 1+2+5+26) with random
    intensities. Identity, skin, hair, glasses, beard, light, pose, occlusion
    and noise vary; a person has one picture of each expression, and no person
    is in two splits.

    They are drawn when they are asked for, the same ones for the same
    arguments, and kept in a folder of ``data_root``. Each entry of
    the data set has ``identity``, ``action_units``, ``landmarks`` and
    ``parts_path``, a picture whose bits 0 to 3 are the masks of brows, eyes,
    nose and mouth: see :func:`draw_face` and :class:`CoverParts`.

    Args:
        data_root (str): The folder to keep the pictures in. Defaults to
            'data/synthface'.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        num_identities (int): The number of persons. There are 8 times as many
            pictures. Defaults to 600.
        size (int): Height and width of the pictures in pixels. Defaults to
            112.
        seed (int): The seed of all that is random. Defaults to 0.
        **kwargs: See :class:`FERDataset`, also for the errors.
    """

    METAINFO = {
        'classes': tuple(PROTOTYPES),
        'dataset_name': 'synthface, drawn faces',
        'licence': 'none needed'
    }
    OFFICIAL_COUNTS = {'train': None, 'val': None, 'test': None}
    # Other pictures for the same arguments need another number.
    VERSION = 1

    def __init__(self,
                 data_root: str = 'data/synthface',
                 split: str = 'train',
                 num_identities: int = 600,
                 size: int = 112,
                 seed: int = 0,
                 **kwargs) -> None:
        if not 1 <= num_identities <= 10**6:
            raise ValueError(f'SynthFace got num_identities={num_identities}, '
                             'expected 1 to 1,000,000.')
        if kwargs.get('val_split'):
            raise ValueError(
                f'SynthFace got val_split={kwargs["val_split"]}, expected '
                'none: it would part the pictures of a person. Use '
                "split='val', which has other persons.")
        self.num_identities = num_identities
        self.size = size
        self.seed = seed
        super().__init__(data_root, split, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Draw the pictures that are not there yet, and list them."""
        os.makedirs(self.data_root, exist_ok=True)
        return super().load_data_list()

    def load_split(self, split: str) -> List[dict]:
        """Draw a split, or find it drawn."""
        folder = osp.join(self.data_root,
                          f'v{self.VERSION}-{self.size}px-seed{self.seed}',
                          f'{split}-{self.num_identities}')
        # One process of each machine draws, the others wait.
        if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not osp.isdir(folder):
            self._draw(split, folder)
        dist.barrier()
        path = osp.join(folder, 'annotations.json')
        try:
            with open(path) as file:
                data_list = json.load(file)
            files = set(os.listdir(folder))
            missing = [
                info[key] for info in data_list
                for key in ('img_path', 'parts_path') if info[key] not in files
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing = [f'{path} ({error})']
        if missing:
            raise ValueError(
                f'SynthFace misses {len(missing)} files in {folder}, the '
                f'first is {missing[0]}, expected all that it wrote there. '
                'Remove that folder: it is drawn again.')
        for info in data_list:
            for key in 'img_path', 'parts_path':
                info[key] = osp.join(folder, info[key])
        return data_list

    def _draw(self, split: str, folder: str) -> None:
        first = list(self.OFFICIAL_COUNTS).index(split) * 10**6
        os.makedirs(osp.dirname(folder), exist_ok=True)
        # What a killed process left, a day ago or earlier.
        for entry in os.scandir(osp.dirname(folder)):
            if entry.name.startswith(PREFIX) and (entry.stat().st_mtime
                                                  < time.time() - 86400):
                shutil.rmtree(entry.path, ignore_errors=True)
        # The folder is whole or not there.
        temporary = tempfile.mkdtemp(prefix=PREFIX, dir=osp.dirname(folder))
        try:
            persons = track_progress_rich(
                partial(
                    _draw_person,
                    folder=temporary,
                    seed=self.seed,
                    size=self.size),
                range(first, first + self.num_identities),
                nproc=os.cpu_count() or 1,
                chunksize=4,
                description=f'Drawing synthface, {split}')
            with open(osp.join(temporary, 'annotations.json'), 'w') as file:
                json.dump([info for person in persons for info in person],
                          file)
            os.chmod(temporary, 0o755)  # `mkdtemp` makes private ones
            os.rename(temporary, folder)
        except OSError:
            if not osp.isdir(folder):  # another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@TRANSFORMS.register_module()
class CoverParts(BaseTransform):
    """Cover parts of the faces of :class:`SynthFace`, to see what a model
    looks at: they get the mean colour of the picture.

    **Required Keys:**

    - img
    - parts_path

    **Modified Keys:**

    - img

    Args:
        parts (Sequence[str]): Some of 'brows', 'eyes', 'nose' and 'mouth'.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        unknown = sorted(set(parts) - set(PARTS))
        if unknown or isinstance(parts, str):
            raise ValueError(f'CoverParts got parts={parts!r}, expected a '
                             f'list of some of {PARTS}.')
        self.parts = tuple(parts)

    def transform(self, results: dict) -> dict:
        """Cover the parts in ``results['img']``.

        Raises:
            ValueError: If the masks are not there, or of another size.
        """
        bits = cv2.imread(results.get('parts_path', ''), cv2.IMREAD_UNCHANGED)
        img = results['img']
        if bits is None or bits.shape != img.shape[:2]:
            found = 'none' if bits is None else f'masks of shape {bits.shape}'
            raise ValueError(
                f'CoverParts found {found} for a picture of shape '
                f'{img.shape[:2]}, expected the masks of SynthFace, of the '
                'same size. Put it right after the picture is loaded.')
        covered = np.bitwise_and(
            bits, sum(1 << PARTS.index(part) for part in self.parts)) > 0
        img = img.copy()
        img[covered] = img.mean(axis=(0, 1)).astype(img.dtype)
        results['img'] = img
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(parts={self.parts})'
