# Copyright (c) dan_mm contributors. All rights reserved.
"""Paste portraits with known landmarks into other images, in the format of
RetinaFace's WIDER FACE; no person is in both training and validation."""
import argparse
import csv
import os
import os.path as osp
from collections import defaultdict
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import sklearn.datasets
from rich.progress import track

from dan_mm.datasets import LoadCheckedImage
from dan_mm.files import check_tree, write_bytes
from dan_mm.reading.folders import list_images

INDEX = 'index.csv'
NUMBERS = [
    f'{name}_{axis}'
    for name in ('left_eye', 'right_eye', 'nose', 'left_mouth', 'right_mouth')
    for axis in 'xy'
]
# Left, top, right and bottom of a face, from the middle between its eyes and
# mouth, in means of the distances of eye to eye and of eyes to mouth. Of 51
# frontal photographs (Face Research Lab London Set) the public RetinaFace's
# boxes are so on average; the IoU with them is 0.93, and at least 0.86.
BOX = (-1.02, -1.68, 1.04, 1.21)
# The eye region that is matched in a person's other portraits
STRIP = (-1.0, -0.7, 1.0, 0.7)
# The ratio of each background for training; validation gets the rest.
BACKGROUND_RATIO = 2 / 3
# The minimum ratio of a face inside the image, in training
VISIBLE = 0.6
ATTEMPTS = 50


class Portrait(NamedTuple):
    """A photograph of one face, BGR, uint8 of shape ``(H, W, 3)``; its left,
    top, right and bottom; and its landmarks, of shape ``(5, 2)``, if known."""
    img: np.ndarray
    bbox: np.ndarray
    landmarks: Optional[np.ndarray]


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'src',
        help=f'the folder of portraits with {INDEX}, which has the columns '
        'file, person, expression, left_eye_x, left_eye_y and so on; nothing '
        'in it is changed')
    parser.add_argument('dst', help='the folder to write')
    parser.add_argument(
        '--backgrounds',
        metavar='FOLDER',
        help='images without faces (default: those of scikit-learn)')
    parser.add_argument(
        '--images',
        type=int,
        nargs=2,
        default=(1000, 200),
        metavar=('TRAIN', 'VAL'),
        help='how many to make (default: 1000 200)')
    parser.add_argument(
        '--faces',
        type=int,
        default=3,
        help='how many portraits an image has at most, where they fit '
        '(default: %(default)s)')
    parser.add_argument(
        '--val-ratio',
        type=float,
        default=0.3,
        help='the ratio of the persons for validation (default: %(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        default=640,
        help='the side of an image in pixels (default: %(default)s)')
    parser.add_argument(
        '--scales',
        type=float,
        nargs=2,
        default=(0.2, 1.0),
        metavar=('MIN', 'MAX'),
        help='the range of the scales of portraits, log-uniform '
        '(default: 0.2 1)')
    parser.add_argument(
        '--seed', type=int, default=0, help='(default: %(default)s)')
    args = parser.parse_args(argv)
    if min(args.images) < 1 or args.faces < 1 or args.size < 1:
        parser.error('--images, --faces and --size have to be at least 1')
    if not 0 < args.val_ratio < 1:
        parser.error(f'--val-ratio is {args.val_ratio}, expected a number '
                     'between 0 and 1')
    if not 0 < args.scales[0] <= args.scales[1]:
        parser.error(f'--scales is {args.scales}, expected the smaller first, '
                     'and both above 0')
    return args


def measure(landmarks: np.ndarray) -> Tuple[np.ndarray, float]:
    """Measure a face: the middle between its eyes and mouth, and the mean of
    the distances of eye to eye and of eyes to mouth."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    size = (np.linalg.norm(landmarks[1] - landmarks[0]) +
            np.linalg.norm(mouth - eyes)) / 2
    return (eyes + mouth) / 2, float(size)


def find_box(landmarks: np.ndarray) -> np.ndarray:
    """Find the box of a face, from the forehead to the chin."""
    centre, size = measure(landmarks)
    return np.tile(centre, 2) + size * np.array(BOX)


def find_shift(landmarks: np.ndarray, img: np.ndarray,
               other: np.ndarray) -> np.ndarray:
    """Find how far a person's face is shifted in another portrait.

    People move their heads as they smile, by a tenth of the face and more. The
    eyes are matched, since they change the least."""
    size = measure(landmarks)[1]
    strip = np.tile(landmarks[:2].mean(0), 2) + size * np.array(STRIP)
    height, width = img.shape[:2]
    left, top, right, bottom = np.clip(
        strip, 0, [width, height, width, height]).astype(int)
    match = cv2.matchTemplate(other, img[top:bottom, left:right],
                              cv2.TM_CCOEFF_NORMED)
    return np.array(cv2.minMaxLoc(match)[3]) - [left, top]


def load_image(path: str) -> np.ndarray:
    """Load an image, BGR."""
    return LoadCheckedImage()(dict(img_path=path))['img']


def read_landmarks(row: dict, size: Sequence[int]) -> Optional[np.ndarray]:
    """Read the landmarks of a row, None where there are none."""
    values = [row[name].strip() for name in NUMBERS]
    if not any(values):
        return None
    landmarks = np.array([float(value) for value in values]).reshape(5, 2)
    inside = (landmarks >= 0) & (landmarks <= size)
    # Less than two pixels are no face.
    if not inside.all() or measure(landmarks)[1] < 2:
        raise ValueError
    return landmarks


def read_index(path: str) -> Iterator[Tuple[int, dict]]:
    """Read the rows of the list of portraits, with the number of the line."""
    expected = ['file', 'person', *NUMBERS]
    if not osp.isfile(path):
        raise FileNotFoundError(f'Found no {path}, expected a list of the '
                                f'portraits: {", ".join(expected)}.')
    with open(path, newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = sorted(set(expected).difference(reader.fieldnames or ()))
        if missing:
            raise ValueError(f'{path} has no column {", ".join(missing)}, '
                             f'expected {", ".join(expected)}.')
        yield from enumerate(reader, 2)


def load_portraits(src: str) -> Dict[str, List[Portrait]]:
    """Load the portraits of each person."""
    path = osp.join(src, INDEX)
    persons = defaultdict(list)
    for number, row in read_index(path):
        img = load_image(osp.join(src, row['file']))
        try:
            landmarks = read_landmarks(row, img.shape[1::-1])
        except (AttributeError, ValueError):
            raise ValueError(
                f'{path}, line {number}: found {list(row.values())}, expected '
                'ten numbers of five different places in the image after '
                'the names, or none.') from None
        persons[row['person']].append((img, landmarks))
    for person, found in persons.items():
        sizes = sorted({img.shape[1::-1] for img, _ in found})
        if len(sizes) > 1:
            raise ValueError(f'{path} has portraits of {person} of {sizes} '
                             'pixels, expected one size. Resize them.')
    unmarked = [
        person for person, found in persons.items()
        if all(landmarks is None for _, landmarks in found)
    ]
    if unmarked or len(persons) < 2:
        raise ValueError(
            f'{path} has {len(persons)} persons, without landmarks of '
            f'{unmarked}, expected at least two, with landmarks.')
    return {
        person: list(find_faces(persons[person]))
        for person in sorted(persons)
    }


def find_faces(images: List[tuple]) -> Iterator[Portrait]:
    """Find the faces of one person, from one whose landmarks are known."""
    img, known = next(item for item in images if item[1] is not None)
    for other, landmarks in images:
        if landmarks is not None:
            yield Portrait(other, find_box(landmarks), landmarks)
        else:
            shift = find_shift(known, img, other)
            yield Portrait(other, find_box(known) + np.tile(shift, 2), None)


def load_backgrounds(folder: Optional[str]) -> List[np.ndarray]:
    """Load the backgrounds."""
    if folder is None:
        # BGR
        return [
            img[..., ::-1].copy()
            for img in sklearn.datasets.load_sample_images().images
        ]
    if not osp.isdir(folder):
        raise FileNotFoundError(f'Found no folder {osp.abspath(folder)}, '
                                'expected one of images without faces.')
    images = {path: load_image(path) for path in list_images(folder)[0]}
    if not images:
        raise ValueError(f'{osp.abspath(folder)} has no image by its '
                         'extension, expected some without faces.')
    for path, img in images.items():
        # Training and validation get different parts of it.
        if img.shape[1] < 3:
            raise ValueError(f'{path} is {img.shape[1]} pixels wide, expected '
                             'at least 3. Remove it.')
    return list(images.values())


def draw_background(rng: np.random.Generator, img: np.ndarray,
                    size: int) -> np.ndarray:
    """Draw a turned, scaled and mirrored part of a background; beyond its
    borders it is reflected."""
    height, width = img.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        rng.uniform(0, (width, height)).tolist(), rng.uniform(-180, 180),
        np.exp(rng.uniform(*np.log([0.7, 3.0]))))
    matrix[:, 2] += rng.uniform(0, size, 2)
    if rng.random() < 0.5:
        matrix[0] *= -1
        matrix[0, 2] += size
    return cv2.warpAffine(
        img, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)


def draw_mask(rng: np.random.Generator, bbox: np.ndarray,
              shape: Tuple[int, int]) -> np.ndarray:
    """Draw what is pasted of a portrait: all, or an oval with soft edges
    around the head."""
    if rng.random() < 0.5:
        return np.ones(shape, np.float32)
    centre = (bbox[:2] + bbox[2:]) / 2
    radii = (bbox[2:] - bbox[:2]) * rng.uniform(0.65, 1.0, 2)
    y, x = np.mgrid[:shape[0], :shape[1]] + 0.5
    distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
    edge = rng.uniform(0.02, 0.2)
    return np.clip((1 - distance) / edge, 0, 1).astype(np.float32)


def ratio_inside(bbox: np.ndarray, size: int) -> float:
    """Get the ratio of a box that is inside of an image."""
    sides = np.clip(bbox[2:], 0, size) - np.clip(bbox[:2], 0, size)
    return float(np.prod(sides) / np.prod(bbox[2:] - bbox[:2]))


def paste(rng: np.random.Generator, image: np.ndarray, portrait: Portrait,
          others: List[Portrait], scales: Sequence[float],
          cut: bool) -> Optional[Portrait]:
    """Paste a portrait at a random scale and place."""
    size = len(image)
    for _ in range(ATTEMPTS):
        scale = np.exp(rng.uniform(*np.log(scales)))
        bbox = portrait.bbox * scale
        sides = bbox[2:] - bbox[:2]
        # A part of the face outside, on each side
        margin = sides * (1 - VISIBLE) * (cut and rng.random() < 0.3)
        room = size - sides + margin
        if (room < -margin).any():
            continue
        first = np.floor(rng.uniform(-margin, room) - bbox[:2]).astype(int)
        bbox = bbox + np.tile(first, 2)
        if ratio_inside(bbox, size) < (VISIBLE if margin.any() else 1):
            continue
        shape = [max(round(side * scale), 1) for side in portrait.img.shape]
        height, width = shape[:2]
        mask = draw_mask(rng, portrait.bbox, portrait.img.shape[:2])
        mask, img = (
            cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)
            for array in (mask, portrait.img))
        # The mask and the image, each where they meet
        left, top = np.maximum(first, 0)
        right, bottom = np.minimum(first + [width, height], size)
        place = np.s_[top:bottom, left:right]
        part = np.s_[top - first[1]:bottom - first[1],
                     left - first[0]:right - first[0]]
        covered = np.zeros((size, size), bool)
        covered[place] = mask[part] > 0
        if any(covered[box_slice(face.bbox)].any() for face in others):
            continue
        weights = mask[part][..., None]
        image[place] = np.rint(img[part] * weights + image[place] *
                               (1 - weights)).astype(np.uint8)
        # Scales of both axes, since sides are whole pixels
        factor = np.array([width, height]) / portrait.img.shape[1::-1]
        landmarks = portrait.landmarks
        if landmarks is not None:
            landmarks = landmarks * factor + first
        bbox = portrait.bbox * np.tile(factor, 2) + np.tile(first, 2)
        return Portrait(image, np.clip(bbox, 0, size), landmarks)
    return None


def box_slice(bbox: np.ndarray) -> Tuple[slice, slice]:
    """Get the pixels of a box."""
    left, top = np.floor(bbox[:2]).astype(int)
    right, bottom = np.ceil(bbox[2:]).astype(int)
    return np.s_[top:bottom, left:right]


def format_face(face: Portrait, size: int) -> str:
    """Format the line of a face; landmarks that are unknown or outside of the
    image are -1."""
    left, top, right, bottom = face.bbox
    values = [
        f'{value:.2f}' for value in (left, top, right - left, bottom - top)
    ]
    for number in range(5):
        point = None if face.landmarks is None else face.landmarks[number]
        if point is None or (point < 0).any() or (point > size).any():
            values += ['-1'] * 3
        else:
            values += [*(f'{value:.2f}' for value in point), '0.0']
    return ' '.join([*values, '0.9'])


def deal(rng: np.random.Generator,
         portraits: List[Portrait]) -> Iterator[Portrait]:
    """Deal portraits at random, each as often as any other."""
    while True:
        yield from (portraits[i] for i in rng.permutation(len(portraits)))


def write_split(dst: str, split: str, portraits: List[Portrait],
                backgrounds: List[np.ndarray], number: int,
                args: argparse.Namespace) -> int:
    """Write the images of a split."""
    training = split == 'train'
    rng = np.random.default_rng([args.seed, int(training)])
    folder = osp.join(dst, split, 'images')
    os.makedirs(folder, exist_ok=True)
    dealt = deal(rng, portraits)
    lines, total = [], 0
    for i in track(range(number), f'Pasting {split}'):
        background = backgrounds[rng.integers(len(backgrounds))]
        image = draw_background(rng, background, args.size)
        faces: List[Portrait] = []
        for _ in range(rng.integers(1, args.faces + 1)):
            face = paste(rng, image, next(dealt), faces, args.scales, training)
            if face is not None:
                faces.append(face)
        name = f'{i:05d}.jpg'
        content = cv2.imencode('.jpg', image,
                               [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        write_bytes(osp.join(folder, name), content.tobytes())
        lines += [f'# {name}', *(format_face(f, args.size) for f in faces)]
        total += len(faces)
    # Last: without it the dataset is refused.
    write_bytes(
        osp.join(dst, split, 'label.txt'), '\n'.join([*lines, '']).encode())
    return total


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    try:
        check_tree(args.dst, filter(None, [args.src, args.backgrounds]), [
            osp.join(args.dst, split, 'images', '')
            for split in ('train', 'val')
        ])
        if osp.isdir(args.dst) and os.listdir(args.dst):
            raise FileExistsError(f'{osp.abspath(args.dst)} has files, '
                                  'expected a new or empty folder.')
        make_splits(args, load_portraits(args.src),
                    load_backgrounds(args.backgrounds))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error))


def make_splits(args: argparse.Namespace, persons: Dict[str, List[Portrait]],
                backgrounds: List[np.ndarray]) -> None:
    """Deal persons and parts of backgrounds to the splits, and write them."""
    names = list(persons)
    order = np.random.default_rng(args.seed).permutation(len(names))
    held_out = min(max(round(args.val_ratio * len(names)), 1), len(names) - 1)
    members = dict(
        train=sorted(names[i] for i in order[held_out:]),
        val=sorted(names[i] for i in order[:held_out]))
    for number, (split, people) in zip(args.images, members.items()):
        portraits = [face for person in people for face in persons[person]]
        parts = []
        for img in backgrounds:
            edge = max(round(img.shape[1] * BACKGROUND_RATIO), 1)
            parts.append(img[:, :edge] if split == 'train' else img[:, edge:])
        total = write_split(args.dst, split, portraits, parts, number, args)
        if not total:
            raise ValueError(
                f'No portrait fits into images of {args.size} pixels. Give a '
                'larger --size, or smaller --scales.')
        print(f'{osp.join(args.dst, split)}: {number} images, {total} faces '
              f'of {len(people)} persons: {", ".join(people)}')


if __name__ == '__main__':
    main()
