# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import posixpath
import sys
from collections import defaultdict
from functools import partial
from glob import escape, glob
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from conversion import (UNREADABLE, Plan, find_file, parse_number, read_csv,
                        read_image, run)
from rich.progress import track

from dan_mm.datasets import AffectNet, LoadCheckedImage
from dan_mm.datasets.folder import find_classes, find_splits
from dan_mm.reading.folders import list_folders, list_images

FORMS = ('`train/<0 to 7>/*` and `val/<0 to 7>/*`; `train_set/images/*` and '
         '`train_set/annotations/*_exp.npy`, and the same in `val_set`; '
         '`training.csv` and `validation.csv`, with the images that these '
         'name in a folder such as `Manually_Annotated_Images`')
CLASSES = AffectNet.METAINFO['classes']
EXPRESSIONS = (*CLASSES, 'none', 'uncertain', 'no face')
# Of the CSV files; some releases have no header.
COLUMNS = ('subdirectory_filepath', 'face_x', 'face_y', 'face_width',
           'face_height', 'facial_landmarks', 'expression', 'valence',
           'arousal')
SIZE = 224  # of the shorter side of a face, at most


def has_class(plan: Plan, source: str, expression: int) -> bool:
    """Whether an expression is one of the classes; it is left out if not."""
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
                has_class(plan, osp.relpath(path, plan.src), expression)
    plan.add_folders(split, folder, found)


def read_expression(path: str) -> int:
    """Read an expression from a file of NumPy."""
    try:
        array = np.load(path, allow_pickle=False)
        number = array.item()
        if array.dtype.kind not in 'iufSU':
            raise TypeError(array.dtype)
    except Exception as error:  # a broken header raises nearly anything
        raise ValueError(f'{path}: {error!r}, expected one number') from error
    return parse_number(
        number.decode() if isinstance(number, bytes) else str(number))


def add_annotated(plan: Plan, split: str, folder: str) -> None:
    """Plan to copy the images of a split with a label file for each."""
    images = plan.find_images(osp.join(folder, 'images'))
    annotations = osp.join(folder, 'annotations')
    stems = {osp.splitext(osp.basename(path))[0] for path in images}
    for file in sorted(os.listdir(annotations)):
        if (file.endswith('_exp.npy') and not file.startswith('.')
                and file[:-len('_exp.npy')] not in stems):
            plan.leave_out(
                osp.relpath(osp.join(annotations, file), plan.src), 'missing',
                'there is no image for this label')
    for path in track(images, f'Reading the labels of {split!r}'):
        source, name = osp.relpath(path, plan.src), osp.basename(path)
        label = f'{osp.splitext(name)[0]}_exp.npy'
        try:
            expression = read_expression(osp.join(annotations, label))
        except ValueError as error:
            plan.leave_out(source, 'unreadable label', str(error))
            continue
        if has_class(plan, source, expression):
            plan.add(split, CLASSES[expression], name, source,
                     partial(read_image, path))


def find_images(src: str, path: str, names: Sequence[str]) -> str:
    """Find the folder that the file names in a CSV file are relative to."""
    found = [
        folder for pattern in ('', '*', '*/*')
        for folder in glob(osp.join(escape(src), pattern, '')) if any(
            osp.isfile(osp.join(folder, name)) for name in names)
    ]
    found = [folder for folder in found
             if folder.lower().endswith('/manually_annotated_images/')
             ] or found  # yapf: disable
    if len(found) != 1:
        raise ValueError(
            f'{path} names images such as {names[:1]}, and of the folders in '
            f'{osp.abspath(src)} {found or "none"} has some of them, expected '
            'one. Put `Manually_Annotated_Images` there, and move others '
            'away.')
    return found[0]


def crop(path: str, box: Tuple[int, ...]) -> bytes:
    """Crop the face of an image, given left, top, width and height in stored
    pixels: an orientation in the file's EXIF is ignored."""
    load = LoadCheckedImage(color_type='color_ignore_orientation')
    img = load(dict(img_path=path))['img']
    x, y, width, height = box
    face = img[max(y, 0):max(y + height, 0), max(x, 0):max(x + width, 0)]
    if not face.size:
        raise ValueError(f'the face box {box} is outside of the '
                         f'{img.shape[1]}x{img.shape[0]} pixels')
    scale = SIZE / min(face.shape[:2])
    if scale < 1:
        size = [round(side * scale) for side in face.shape[1::-1]]
        face = cv2.resize(face, size, interpolation=cv2.INTER_AREA)
    if path.lower().endswith(('.jpg', '.jpeg')):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        return cv2.imencode('.jpg', face, quality)[1].tobytes()
    return cv2.imencode('.png', face)[1].tobytes()


def add_csv(plan: Plan, split: str, path: str) -> None:
    """Plan to crop the faces that a CSV file lists."""
    lines = list(read_csv(path, (*COLUMNS[:5], 'expression'), COLUMNS))
    names = [row[0].replace('\\', '/') for _, row in lines]
    images = find_images(plan.src, path, names[::len(names) // 100 + 1])
    faces: Dict[tuple, List[Tuple[str, int]]] = defaultdict(list)
    for (number, row), name in zip(lines, names):
        source = f'{osp.basename(path)}, line {number}: {name}'
        try:
            _, *box, expression = row
            expression = parse_number(expression)
            if expression >= len(CLASSES) and {'', 'NULL'} & set(box):
                box = [number]  # without a face, there is no box
            else:
                box = [parse_number(text, whole=False) for text in box]
        except ValueError:
            plan.leave_out(source, UNREADABLE, str(row))
            continue
        key = posixpath.normpath(name), tuple(box)
        faces[key].append((source, expression))
    for (name, box), listed in faces.items():
        (source, expression), *others = listed
        if any(other != expression for _, other in others):
            for source, _ in listed:
                plan.leave_out(source, 'face with several expressions')
            continue
        for other, _ in others:
            plan.leave_out(other, 'same face as in an earlier line', '', False)
        if not has_class(plan, source, expression):
            continue
        # Hidden files are no part of datasets; this refuses `..`, too.
        if any(part.startswith('.') or not part for part in name.split('/')):
            plan.leave_out(source, 'path outside of the image folder')
            continue
        stem, extension = osp.splitext(name)
        jpeg = extension.lower() in ('.jpg', '.jpeg')
        plan.add(split, CLASSES[expression], name if jpeg else f'{stem}.png',
                 source, partial(crop, osp.join(images, name), box))


def make_plan(src: str) -> Optional[Plan]:
    """Plan to convert AffectNet."""
    plan, splits = Plan(src, AffectNet), find_splits(src)
    for split, folder in splits.items():
        if {'images', 'annotations'} <= set(list_folders(folder)):
            add_annotated(plan, split, folder)
        else:
            add_folders(plan, split, folder)
    if not splits:
        for split, name in (('train', 'training'), ('val', 'validation')):
            path = find_file(src, f'{name}.csv')
            if path:
                add_csv(plan, split, path)
                splits[split] = path
    contempt = any(sample.label == CLASSES[7] for sample in plan.samples)
    plan.settings['num_classes'] = 8 if contempt else 7
    return plan if splits else None


main = partial(
    run, make_plan, FORMS,
    'Convert AffectNet, without the expressions none, uncertain and no face. '
    f'Faces of the CSV form are cropped, and shrunk to at most {SIZE} pixels '
    'at their shorter side.')

if __name__ == '__main__':
    sys.exit(main())
