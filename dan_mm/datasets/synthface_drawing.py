# Copyright (c) dan_mm contributors. All rights reserved.
"""The drawing of synthetic faces, from action units."""
from typing import Dict, Sequence, Tuple

import cv2
import numpy as np

# Action units of the Facial Action Coding System, as in EMFACS, with the least
# intensity of each; those of contempt are on one side.
PROTOTYPES: Dict[str, Dict[str, float]] = dict(
    anger=dict(AU4=.6, AU5=.3, AU7=.5, AU23=.6),
    disgust=dict(AU9=.6, AU10=.4, AU15=.3, AU16=.3),
    fear=dict(AU1=.6, AU2=.4, AU4=.4, AU5=.5, AU20=.6, AU25=.4, AU26=.2),
    happiness=dict(AU6=.5, AU12=.6),
    sadness=dict(AU1=.6, AU4=.4, AU15=.6, AU17=.3),
    surprise=dict(AU1=.6, AU2=.6, AU5=.5, AU26=.7),
    neutral=dict(),
    contempt=dict(AU12=.4, AU14=.6))
ACTION_UNITS = ('AU1', 'AU2', 'AU4', 'AU5', 'AU6', 'AU7', 'AU9', 'AU10',
                'AU12', 'AU14', 'AU15', 'AU16', 'AU17', 'AU20', 'AU23', 'AU25',
                'AU26')
PARTS = ('brows', 'eyes', 'nose', 'mouth')

# Drawn larger, then shrunk: smooth edges
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
    """Sample the intensities of the action units, in [0, 1], of one of
    ``PROTOTYPES``."""
    # No face is quite still.
    units = {unit: rng.uniform(0, .12) for unit in ACTION_UNITS}
    units['AU14'] = units['AU26'] = 0.
    for unit, least in PROTOTYPES[expression].items():
        units[unit] = rng.uniform(least, 1)
    if expression == 'happiness' and rng.random() < .6:
        units['AU25'] = rng.uniform(.4, 1)
    return units


def sample_identity(rng: np.random.Generator) -> dict:
    """Sample the looks of a person."""

    def around(mean: float, spread: float) -> float:
        return mean + spread * np.clip(rng.standard_normal(), -2, 2)

    def choice(**weights: float) -> str:
        return rng.choice(list(weights), p=list(weights.values()))

    tone = rng.uniform(0, len(SKIN) - 1)
    dark = int(tone)
    darker = SKIN[min(dark + 1, len(SKIN) - 1)]
    skin = SKIN[dark] + (tone - dark) * (darker - SKIN[dark])
    hair = HAIR[rng.choice(len(HAIR), p=[.3, .25, .18, .1, .05, .12])]
    hair = np.clip(hair * rng.uniform(.8, 1.2), 8, 240)
    return dict(
        skin=np.clip(skin + rng.normal(0, 5, 3), 20, 252),
        hair=hair,
        hair_style=choice(short=.4, long=.3, fringe=.2, bald=.1),
        hairline=around(-.84, .05),
        parting=rng.uniform(-.5, .5),
        brow_color=hair * rng.uniform(.45, .8),
        beard=choice(none=.7, stubble=.12, full=.1, moustache=.08),
        glasses=choice(none=.78, round=.11, square=.11),
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


def superellipse(angle: np.ndarray,
                 power: Sequence[float] = 1) -> Tuple[np.ndarray, np.ndarray]:
    """Get x and y of a superellipse of radius 1 at angles."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.sign(cos) * np.abs(cos)**power, np.sign(sin) * np.abs(sin)**power


def fixed(points: np.ndarray) -> np.ndarray:
    """Convert pixels to OpenCV's fixed-point coordinates."""
    return np.round(points * (1 << SHIFT)).astype(np.int32)


class FacePainter:
    """Draws one image.

    Face coordinates: x to the right of the image, y down, the face about 2
    wide and 2.7 high, 0 between nose and eyes; z is that of an ellipsoid.

    Args:
        identity (dict): The looks, from :func:`sample_identity`.
        units (dict[str, float]): The intensities of the action units.
        rng (np.random.Generator): Of pose, light, background, occlusion and
            noise.
        size (int): Height and width of the image in pixels.
    """

    def __init__(self, identity: dict, units: Dict[str, float],
                 rng: np.random.Generator, size: int) -> None:
        self.identity = identity
        self.rng = rng
        self.size = size
        self.side = size * SUPERSAMPLING

        self.units = units
        # Contempt is on one side, 1 or -1; other expressions are a little
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
        self.gaze = None

        self.canvas = np.empty((self.side, self.side, 3), np.uint8)
        self.creases = np.zeros((self.side, self.side), np.uint8)
        self.masks = np.zeros((len(PARTS), self.side, self.side), np.uint8)

    def unit(self, name: str, side: int) -> float:
        """The intensity of an action unit on a side of the image."""
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

    def fill(self, points: np.ndarray, color: Sequence) -> None:
        cv2.fillPoly(self.canvas, [fixed(points)],
                     np.float64(color).tolist(), cv2.LINE_AA, SHIFT)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """The coverage of each pixel by a polygon, uint8 in [0, 255]."""
        mask = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(mask, [fixed(points)], 255, cv2.LINE_AA, SHIFT)
        return mask

    def line(self, points: np.ndarray, color: Sequence, width: float) -> None:
        cv2.polylines(self.canvas, [fixed(points)], False,
                      np.float64(color).tolist(), self.thickness(width),
                      cv2.LINE_AA, SHIFT)

    def crease(self,
               points: Sequence,
               strength: float,
               width: float,
               lift: float = 0) -> None:
        """Add a line between two points or a curve through three."""
        if strength > .05:
            points = curve(points) if len(points) == 3 else points
            layer = np.zeros_like(self.creases)
            cv2.polylines(layer, [fixed(self.project(points, lift))], False,
                          min(255 * strength, 255), self.thickness(width),
                          cv2.LINE_AA, SHIFT)
            np.maximum(self.creases, layer, out=self.creases)

    def thickness(self, width: float) -> int:
        return max(1, round(width * self.scale))

    def mark(self, part: str, points: np.ndarray, margin: float) -> None:
        """Add a polygon and a margin to the mask of a part."""
        mask = self.masks[PARTS.index(part)]
        polygon = [fixed(points)]
        cv2.fillPoly(mask, polygon, 255, shift=SHIFT)
        cv2.polylines(
            mask, polygon, True, 255, self.thickness(2 * margin), shift=SHIFT)

    def dot(self, point: np.ndarray, radius: float, color: Sequence) -> None:
        cv2.circle(self.canvas,
                   fixed(point).tolist(),
                   int(radius * self.scale * (1 << SHIFT)),
                   np.float64(color).tolist(), -1, cv2.LINE_AA, SHIFT)

    def blob(self, center: np.ndarray, axes: np.ndarray) -> None:
        """Draw an ellipse of any angle and color."""
        cv2.ellipse(self.canvas,
                    center.astype(int).tolist(),
                    axes.astype(int).tolist(), self.rng.uniform(0, 180), 0,
                    360,
                    self.rng.uniform(20, 235, 3).tolist(), -1, cv2.LINE_AA)

    def paint(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw everything.

        Returns:
            tuple[ndarray, ndarray, ndarray]: The image, BGR uint8 of shape
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
        self.paint_creases()
        self.paint_hair()
        self.paint_glasses()
        self.shade(head)
        self.occlude()
        size = (self.size, self.size)
        masks = [
            cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 127
            for mask in self.masks
        ]
        x, y = self.identity['eye_x'], self.identity['eye_y']
        landmarks = np.concatenate([
            self.project([[-x, y], [x, y]]),
            self.nose_tip,
            self.corners,
        ]) / SUPERSAMPLING
        return self.expose(), np.stack(masks), landmarks

    def paint_background(self) -> None:
        rng, side = self.rng, self.side
        colors = rng.uniform(20, 235, (2, 2, 3)).astype(np.float32)
        self.canvas[:] = cv2.resize(colors, (side, side))
        for _ in range(rng.integers(0, 4)):
            self.blob(rng.uniform(0, side, 2), rng.uniform(.05, .3, 2) * side)

    def paint_head(self) -> np.ndarray:
        """Draw shoulders, neck, ears and skin; get the head's outline."""
        look, skin = self.identity, self.identity['skin']
        jaw = .24 * self.units['AU26'] - .04 * self.units['AU17']
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        x, y = superellipse(
            angle, 2 / np.where(np.sin(angle) > 0, look['squareness'], 2))
        y = np.where(y > 0, (1.28 + jaw) * y, 1.42 * y)
        x = x * (1 - look['taper'] * np.clip(y / 1.3, 0, 1)**2)
        head = self.flat(np.stack([x, y], 1))

        if look['hair_style'] == 'long':
            back = np.stack([1.25 * np.cos(angle), 1.6 * np.sin(angle)], 1)
            back[np.sin(angle) > 0, 1] *= 1.15
            self.fill(self.flat(back), look['hair'] * .8)
        shoulders = [[-.45, .8], [.45, .8], [.55, 1.7], [2, 2.2], [2.2, 4],
                     [-2.2, 4], [-2, 2.2], [-.55, 1.7]]
        neck = [[-.45, .8], [.45, .8], [.5, 1.75], [0, 2], [-.5, 1.75]]
        self.fill(self.flat(shoulders), look['shirt'])
        self.fill(self.flat(neck), skin * .8)
        for ear in (-1, 1):
            center = np.array([ear * 1.0 - .25 * np.sin(self.yaw), .02])
            outline = center + np.stack(
                [.13 * np.cos(angle), .26 * np.sin(angle)], 1)
            self.fill(self.flat(outline), skin * .93)
        self.fill(head, skin)
        if look['beard'] in ('stubble', 'full'):
            self.paint_beard(head, head[y > -.1])
        if look['beard'] in ('moustache', 'full'):
            top = look['nose_y'] + .12
            moustache = [
                curve([[-.33, top + .16], [0, top - .02], [.33, top + .16]]),
                curve([[.33, top + .16], [0, top + .16], [-.33, top + .16]])
            ]
            self.fill(self.project(np.concatenate(moustache)), look['hair'])
        return head

    def paint_beard(self, head: np.ndarray, jaw: np.ndarray) -> None:
        cheeks = np.concatenate([
            curve([[-.95, -.1], [-.6, .45], [-.2, .48]]),
            curve([[.2, .48], [.6, .45], [.95, -.1]])
        ])
        outline = np.concatenate([jaw, self.project(cheeks)])
        # In the order of the angle around a point of the chin
        x, y = (outline - self.project([[0, .9]])).T
        outline = outline[np.argsort(np.arctan2(y, x))]
        beard = cv2.GaussianBlur(
            self.inside(outline), (0, 0), .05 * self.scale)
        share = np.minimum(beard, self.inside(head))[...,
                                                     None] / np.float32(255)
        share = share * (.25 if self.identity['beard'] == 'stubble' else .75)
        self.canvas = (self.canvas * (1 - share) +
                       self.identity['hair'] * share).astype(np.uint8)

    def paint_nose(self) -> None:
        look = self.identity
        skin, width = look['skin'], look['nose_width']
        wrinkle = self.units['AU9']
        width = width * (1 + .15 * wrinkle)
        y = look['nose_y'] - .05 * wrinkle
        self.nose_tip = self.project([[0, y - .04]], .3)
        for side in (-1, 1):
            bridge = [[side * .09, -.22], [side * .07, .02], [side * .1, y]]
            self.crease(bridge, .25, .05, .12)
            wing = [[side * (width - .04), y - .1], [side * width, y],
                    [side * (width - .07), y + .07]]
            self.crease(wing, .7, .03, .12)
            nostril = self.project([[side * .075, y + .05]], .15)[0]
            self.dot(nostril, .036, skin * .35)
        tip = self.project([[0, y - .06]], .3)[0]
        self.dot(tip, .07, np.clip(skin * 1.07, 0, 255))
        for row in range(3):  # wrinkles across the root of the nose
            level = -.2 + .075 * row
            self.crease([[-.12, level + .04], [0, level], [.12, level + .04]],
                        wrinkle, .025, .12)
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
        self.crease(lid - [0, .055], .5, .025)
        before = self.canvas.copy()
        self.fill(polygon, [225, 232, 235])
        if self.gaze is None:
            self.gaze = self.rng.uniform(-1, 1, 2) * [.05, .015]
        gaze = self.project([[x + self.gaze[0], y - .01 + self.gaze[1]]])[0]
        self.dot(gaze, .094, look['iris'])
        self.dot(gaze, .045, [10, 10, 10])
        self.dot(gaze + [-.03 * self.scale, -.03 * self.scale], .016,
                 [250, 250, 250])
        low = np.floor(polygon.min(0) - 12).astype(int).clip(0)
        high = np.ceil(polygon.max(0) + 12).astype(int)
        box = slice(low[1], high[1]), slice(low[0], high[0])
        share = self.inside(polygon)[box][..., None] / np.float32(255)
        before[box] = share * self.canvas[box] + (1 - share) * before[box]
        self.canvas = before
        self.line(self.project(lid), look['skin'] * .2, .035)
        self.line(self.project(outline[16:]), look['skin'] * .55, .014)
        # The bag below the eye, and crow's feet
        bag = [[x - width, y + .1], [x, y + lower + .09], [x + width, y + .1]]
        self.crease(bag, .2 + .7 * cheek + .3 * narrow, .022)
        for ray in (-1, 0, 1):
            start = np.array([x + side * (width + .06), y + .05 * ray])
            self.crease([start, start + [side * .12, .06 * ray]], cheek, .018)
        self.mark('eyes', polygon, .07)

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
        # The fold between the brows, and lines on the forehead
        self.crease([[side * .06, base - .1], [side * .045, base],
                     [side * .07, base + .1]], frown, .028)
        raised = min(inner_up, outer_up)
        for row in range(3):
            level = base - .3 - .09 * row - .06 * inner_up
            self.crease([[0, level], [side * .25, level - .02],
                         [side * .5, level + .04]],
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
            # Dimple, nasolabial fold, the fold below a lowered corner
            self.crease([[side * (x + .05), y - .08], [side * (x + .1), y],
                         [side * (x + .05), y + .08]], max(smirk, .4 * smile),
                        .035)
            fold = max(smile, raise_upper, .25 * look['age'])
            wing = [side * (look['nose_width'] + .04), look['nose_y'] - .04]
            self.crease([
                wing, [side *
                       (.33 + .06 * smile), .42], [side * (x + .08), y - .03]
            ], .8 * fold, .028)
            self.crease([[side * x, y + .04], [side * (x + .05), y + .16]],
                        down, .028)
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
                self.paint_teeth(inner_top * [.85, 1], teeth, [215, 228, 232])
            if max(drop_lower, stretch) > .35:
                self.paint_teeth(inner_bottom * [.7, 1], -teeth,
                                 [200, 215, 220])
        else:
            self.line(
                self.project(inner_top, .03), color * .45, .022 + .012 * tight)
        self.crease(
            [[-.2, bottom + .12], [0, bottom + .07], [.2, bottom + .12]],
            .2 + .8 * chin, .035)
        self.mark('mouth', lips, .08)

    def paint_teeth(self, edge: np.ndarray, height: float,
                    color: Sequence) -> None:
        row = np.concatenate([edge, (edge + [0, height])[::-1]])
        self.fill(self.project(row, .03), color)

    def paint_creases(self) -> None:
        soft = cv2.GaussianBlur(self.creases, (0, 0), .8)
        darker = 1 - .5 * soft[..., None] / np.float32(255)
        self.canvas = (self.canvas * darker).astype(np.uint8)

    def paint_hair(self) -> None:
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
            points = [[look['parting'], -1.45], [shift * .8, -1.3],
                      [shift, line - .05]]
            self.line(self.flat(curve(points)), look['hair'] * .75, .03)

    def paint_glasses(self) -> None:
        look = self.identity
        if look['glasses'] == 'none':
            return
        x, y = superellipse(
            np.linspace(0, 2 * np.pi, 33),
            1 if look['glasses'] == 'round' else .45)
        eye_x, eye_y = look['eye_x'], look['eye_y']
        lines = []
        for side in (-1, 1):
            rim = [side * eye_x, eye_y + .03] + np.stack([.29 * x, .22 * y], 1)
            temple = [[side * (eye_x + .29), eye_y], [side * 1.02, eye_y]]
            lines += [self.project(rim, .08), self.project(temple, .05)]
        bridge = [[-eye_x + .29, eye_y], [0, eye_y - .03],
                  [eye_x - .29, eye_y]]
        for points in [*lines, self.project(curve(bridge), .15)]:
            self.line(points, look['glasses_color'], .035)

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
        gain = 1 + self.inside(head) / np.float32(255) * (shading - 1)
        self.canvas = np.clip(self.canvas * gain[..., None], 0,
                              255).astype(np.uint8)

    def occlude(self) -> None:
        """Now and then, cover a part of the face."""
        rng = self.rng
        if rng.random() > .2:
            return
        angle = rng.uniform(0, 2 * np.pi)
        place = self.flat([[np.cos(angle), 1.1 * np.sin(angle)]])[0]
        place += (self.center - place) * rng.uniform(0, .6)
        self.blob(place, rng.uniform([.18, .12], [.45, .25]) * self.scale)

    def expose(self) -> np.ndarray:
        """Shrink the canvas to the image, with blur, light and noise."""
        rng = self.rng
        img = cv2.resize(
            self.canvas, (self.size, self.size),
            interpolation=cv2.INTER_AREA).astype(np.float32)
        blur = rng.uniform(0, 1) * self.size / 112
        if blur > .4:
            img = cv2.GaussianBlur(img, (0, 0), blur)
        img = 255 * (img / 255)**rng.uniform(.75, 1.35)
        img *= rng.uniform(.85, 1.1) * rng.uniform(.93, 1.07, 3)
        img += rng.normal(0, rng.uniform(1, 7), img.shape)
        return np.clip(img, 0, 255).astype(np.uint8)


def draw_face(expression: str,
              identity: int,
              variant: int = 0,
              seed: int = 0,
              size: int = 112) -> dict:
    """Draw a face.

    Args:
        expression (str): One of ``PROTOTYPES``.
        identity (int): The number of the person, at least 0: the same number
            has the same looks.
        variant (int): The number of the image of this person with this
            expression, at least 0. Defaults to 0.
        seed (int): The same seed draws the same images. Defaults to 0.
        size (int): Height and width of the image in pixels, at least 16.
            Defaults to 112.

    Returns:
        dict: ``img``, BGR uint8 of shape ``(size, size, 3)``; ``parts``, the
        masks of brows, eyes, nose and mouth, bool of shape
        ``(4, size, size)``; ``landmarks``, the left eye, right eye, nose tip,
        left and right mouth corner as seen in the image, in pixels (x, y),
        float64 of shape ``(5, 2)``; ``action_units``, their intensities in
        [0, 1].

    Raises:
        ValueError: If there is no such expression, or the image is too small.
    """
    if expression not in PROTOTYPES:
        raise ValueError(f'Got the expression {expression!r}, expected one of '
                         f'{list(PROTOTYPES)}.')
    if size < 16:
        raise ValueError(f'Got size={size}, expected at least 16 pixels.')
    looks = sample_identity(np.random.default_rng([seed, identity]))
    number = list(PROTOTYPES).index(expression)
    rng = np.random.default_rng([seed, identity, number, variant])
    units = sample_action_units(expression, rng)
    img, parts, landmarks = FacePainter(looks, units, rng, size).paint()
    return dict(img=img, parts=parts, landmarks=landmarks, action_units=units)
