# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import posixpath
import sys
from collections import Counter, defaultdict
from functools import partial
from itertools import islice
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from rich.progress import track

from dan_mm.datasets import AffectNet, LoadCheckedImage
from dan_mm.datasets.conversion import (Plan, copy_picture, find_file,
                                        parse_line, parse_number, run,
                                        unknown_form)
from dan_mm.datasets.folder import (find_classes, find_splits, list_folders,
                                    list_images)

FORMS = ('`train/<0 to 7>/*` and `val/<0 to 7>/*`; `train_set/images/*` and '
         '`train_set/annotations/*_exp.npy`, and the same in `val_set`; '
         '`training.csv` and `validation.csv`, with the pictures that these '
         'name in a folder such as `Manually_Annotated_Images`')
CLASSES = AffectNet.METAINFO['classes']
EXPRESSIONS = (*CLASSES, 'none', 'uncertain', 'no face')
# Of the csv files; some releases have no header.
COLUMNS = ('subdirectory_filepath', 'face_x', 'face_y', 'face_width',
           'face_height', 'facial_landmarks', 'expression', 'valence',
           'arousal')
USED = (*COLUMNS[:5], 'expression')
SIZE = 224  # of the shorter side of a face, at most


def has_class(plan: Plan, source: str, expression: int) -> bool:
    """Tell whether an expression is one of the classes, and leave the picture
    out otherwise."""
    if expression in range(len(CLASSES)):
        return True
    if expression in range(len(EXPRESSIONS)):
        plan.leave_out(source,
                       f'expression {expression} ({EXPRESSIONS[expression]})',
                       '', False)
    else:
        plan.leave_out(source, 'unknown expression', str(expression))
    return False


def add_folders(plan: Plan, split: str, folder: str) -> None:
    """Plan to copy the folders of the expressions of a split."""
    found = find_classes(folder, EXPRESSIONS, numbered=True)
    for expression, name in enumerate(EXPRESSIONS[8:], 8):
        if name in found:
            for path in list_images(found.pop(name))[0]:
                has_class(plan, plan.relative(path), expression)
    plan.add_folders(split, folder, found)


def read_expression(path: str) -> int:
    """Read an expression from a file of NumPy.

    Raises:
        OSError: If the file can not be read.
        ValueError: If it has anything but one number.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a broken header raises nearly anything
        raise ValueError(f'{path}: {error!r}, expected one number') from error
    if (not isinstance(array, np.ndarray) or array.size != 1
            or array.dtype.kind not in 'iufSU'):
        raise ValueError(f'{path} has {array!r}, expected one number')
    number = array.item()
    return parse_number(
        number.decode() if isinstance(number, bytes) else str(number))


def add_annotated(plan: Plan, split: str, folder: str) -> None:
    """Plan to copy the pictures of a split with a label file for each."""
    pictures = plan.find_pictures(osp.join(folder, 'images'))
    annotations = osp.join(folder, 'annotations')
    stems = {osp.splitext(osp.basename(path))[0] for path in pictures}
    for file in sorted(os.listdir(annotations)):
        if file.startswith('.') or not file.endswith('_exp.npy'):
            continue
        if file[:-len('_exp.npy')] not in stems:
            plan.leave_out(
                plan.relative(osp.join(annotations, file)), 'missing',
                'there is no picture for this label')
    for path in track(pictures, f'Reading the labels of {split!r}'):
        source = plan.relative(path)
        stem, extension = osp.splitext(osp.basename(path))
        try:
            expression = read_expression(
                osp.join(annotations, f'{stem}_exp.npy'))
        except (OSError, ValueError) as error:
            plan.leave_out(source, 'label that can not be read', str(error))
            continue
        if has_class(plan, source, expression):
            plan.add(split, CLASSES[expression], stem + extension, source,
                     partial(copy_picture, path))


def read_rows(path: str) -> Iterator[Tuple[int, List[str]]]:
    """Read the used columns of a csv file.

    Yields:
        tuple[int, list[str]]: The number of a line and what it has, of one
        that is no csv just its text.

    Raises:
        ValueError: If columns are missing.
    """
    with open(
            path, newline='', encoding='utf-8-sig',
            errors='surrogateescape') as file:
        columns = COLUMNS
        for number, text in enumerate(file, 1):
            try:
                line = parse_line(text)
            except ValueError as error:
                if number == 1:  # which may have the order of the columns
                    raise ValueError(
                        f'{path} has the line {text!r} ({error}), expected '
                        'columns. Restore it from the data set.') from error
                yield number, [text.strip(), *[''] * len(USED[1:])]
                continue
            names = [name.strip().lower() for name in line]
            if number == 1 and COLUMNS[0] in names:
                columns = names
                missing = [name for name in USED if name not in names]
                if missing:
                    raise ValueError(
                        f'{path} has the columns {line}, expected all of '
                        f'{USED}; {missing} are not there. Restore it from '
                        'the data set.')
            elif line:
                yield number, [
                    line[i].strip() if i < len(line) else ''
                    for i in map(columns.index, USED)
                ]


def find_images(src: str, path: str) -> str:
    """Find the folder that the paths in a csv file are relative to.

    Raises:
        ValueError: If there is none, or more than one.
    """
    paths = [
        row[0].replace('\\', '/') for _, row in islice(read_rows(path), 999)
    ]
    level, found = [src], []
    for _ in range(4):
        found += [
            folder for folder in level if any(
                osp.isfile(osp.join(folder, name)) for name in paths)
        ]
        # The pictures are in a thousand numbered folders.
        level = [
            osp.join(folder, name) for folder in level
            for name in list_folders(folder) if not name.isdecimal()
        ]
    named = [
        folder for folder in found
        if osp.basename(folder).lower() == 'manually_annotated_images'
    ]
    found = named or found
    if len(found) != 1:
        raise ValueError(
            f'{path} names pictures such as {paths[:1]}, and of the folders '
            f'in {osp.abspath(src)} {found or "none"} has some of them, '
            'expected one. Put '
            '`Manually_Annotated_Images` there, and move others away.')
    return found[0]


def crop(path: str, box: Tuple[int, ...]) -> bytes:
    """Crop the face of a picture.

    The box is one of the stored pixels: an orientation in the file's EXIF is
    ignored.

    Args:
        path (str): The path of the picture.
        box (tuple[int]): Left, top, width and height of the face in pixels.

    Returns:
        bytes: JPEG of a JPEG, PNG of anything else.

    Raises:
        OSError: If the picture can not be read.
        ValueError: If it can not be decoded, or the box is not in it.
    """
    load = LoadCheckedImage(color_type='color_ignore_orientation')
    img = load(dict(img_path=path))['img']
    x, y, width, height = box
    face = img[max(y, 0):max(y + height, 0), max(x, 0):max(x + width, 0)]
    if not face.size:
        raise ValueError('face box outside of the picture',
                         f'{box} in {img.shape[1]}x{img.shape[0]} pixels')
    scale = SIZE / min(face.shape[:2])
    if scale < 1:
        size = [round(side * scale) for side in face.shape[1::-1]]
        face = cv2.resize(face, size, interpolation=cv2.INTER_AREA)
    if path.lower().endswith(('.jpg', '.jpeg')):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        return cv2.imencode('.jpg', face, quality)[1].tobytes()
    return cv2.imencode('.png', face)[1].tobytes()


def parse_box(row: List[str]) -> Optional[Tuple[int, ...]]:
    """Parse the face box of a line, if it has one."""
    try:
        return tuple(parse_number(text, whole=False) for text in row[1:5])
    except ValueError:
        return None


def add_csv(plan: Plan, split: str, path: str, images: str) -> None:
    """Plan to crop the faces that a csv file lists."""
    lines = []
    expressions: Dict[tuple, set] = defaultdict(set)
    for number, row in read_rows(path):
        name = row[0].replace('\\', '/')
        source = f'{osp.basename(path)}, line {number}: {name}'
        name = posixpath.normpath(name)
        try:
            expression = parse_number(row[-1])
        except ValueError:
            plan.leave_out(source, 'line that can not be read', str(row))
            continue
        box = parse_box(row)
        lines.append((source, name, box, expression, row))
        if box:
            expressions[name, box].add(expression)
    done = set()
    for source, name, box, expression, row in lines:
        found = expressions.get((name, box), ())
        if len(found) > 1:
            plan.leave_out(source, 'face with several expressions',
                           str(sorted(found)))
            continue
        if not has_class(plan, source, expression):
            continue
        if not box:
            plan.leave_out(source, 'line that can not be read', str(row))
            continue
        if (name, box) in done:
            plan.leave_out(source, 'same face as in a line before', '', False)
            continue
        done.add((name, box))
        if osp.isabs(name) or '..' in name.split('/'):
            plan.leave_out(source, 'path out of the folder of the pictures')
            continue
        stem, extension = osp.splitext(name)
        jpeg = extension.lower() in ('.jpg', '.jpeg')
        plan.add(split, CLASSES[expression], name if jpeg else f'{stem}.png',
                 source, partial(crop, osp.join(images, name), box))


def make_plan(src: str) -> Plan:
    """Plan to convert AffectNet."""
    plan = Plan(src)
    splits = find_splits(src)
    for split, folder in splits.items():
        if {'images', 'annotations'} <= set(list_folders(folder)):
            add_annotated(plan, split, folder)
        else:
            add_folders(plan, split, folder)
    if splits:
        return plan
    files: Dict[str, str] = {}
    for split, name in (('train', 'training.csv'), ('val', 'validation.csv')):
        path = find_file(src, name)
        if path:
            files[split] = path
    if not files:
        raise unknown_form(src, FORMS)
    for split, path in files.items():
        add_csv(plan, split, path, find_images(src, path))
    return plan


def make_config(counts: Counter) -> dict:
    """Get the config of the data set, of 7 classes where there is no
    contempt."""
    contempt = any(label == 'contempt' for _, label in counts)
    return dict(type='AffectNet', num_classes=8 if contempt else 7)


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run(
        make_plan, make_config,
        'Convert AffectNet, without the expressions none, uncertain and no '
        f'face: {FORMS}. Faces of the csv form are cropped, and shrunk to at '
        f'most {SIZE} pixels at their shorter side.', argv)


if __name__ == '__main__':
    sys.exit(main())
