# Copyright (c) dan_mm contributors. All rights reserved.
"""Find the faces of a tree of pictures, and write the same tree of aligned
crops."""
import argparse
import csv
import io
import json
import os.path as osp
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import IO, Dict, Iterator, List, Tuple, Union

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from dan_mm.datasets.alignment import ALIGNMENT, LANDMARKS, REPORT, AlignFace
from dan_mm.files import (check_tree, from_cell, lock_folder, remove_partials,
                          to_cell, write_bytes)
from .faces import Face, FaceDetector
from .find_model import find_model
from .media import describe, list_images, read_image
from .orientation import try_find_faces

HEADER = [
    'path', 'status', 'crop', 'score', 'left', 'top', 'right', 'bottom',
    *(f'{name.replace(" ", "_")}_{axis}' for name in LANDMARKS
      for axis in 'xy'), 'detail'
]
TEXTS = 'path', 'crop', 'detail'
# What happened to a picture
ALIGNED, NO_FACE, BROKEN = 'aligned', 'no face', 'broken'
IMPLAUSIBLE = 'implausible landmarks: look at this crop'


class Picture:
    """A picture of the tree.

    Args:
        root (str): The tree.
        path (str): The path of the picture in it.
    """

    def __init__(self, root: str, path: str) -> None:
        self.root = root
        self.path = path

    def load(self) -> Union[np.ndarray, str]:
        """Load it, or say what is wrong with it."""
        try:
            return read_image(osp.join(self.root, self.path))
        except Exception as error:
            return describe(error)

    def crop_path(self, number: int, several: bool) -> str:
        """Get the path of the crop of a face in the new tree."""
        stem, extension = osp.splitext(self.path)
        if extension.lower() not in ('.png', '.jpg', '.jpeg'):
            stem, extension = self.path, '.png'
        return f'{stem}-face{number}{extension}' if several else (stem +
                                                                  extension)


def check_crops_apart(pictures: List[Picture]) -> None:
    """Refuse images whose crops would overwrite each other."""
    paths: Dict[str, str] = {}
    for picture in pictures:
        crop = picture.crop_path(1, False)
        other = paths.setdefault(crop, picture.path)
        if other != picture.path:
            raise ValueError(
                f'The crops of {other!r} and {picture.path!r} would both be '
                f'{crop!r}, expected names that stay apart. Rename one.')


def choose(faces: List[Face], shape: Tuple[int, int], rule: str) -> List[Face]:
    """Choose the faces of a picture to write.

    Args:
        faces (list[Face]): The faces, the most certain first.
        shape (tuple[int, int]): The height and width of the picture.
        rule (str): 'largest', 'central', 'confident' or 'all'.

    Returns:
        list[Face]: One face, or all.
    """
    if rule == 'all' or not faces:
        return faces
    centre = np.array(shape[::-1]) / 2
    keys = dict(
        largest=lambda face: np.prod(face.bbox[2:] - face.bbox[:2]),
        central=lambda face: -np.hypot(*(
            (face.bbox[:2] + face.bbox[2:]) / 2 - centre)),
        confident=lambda face: face.score)
    return [max(faces, key=keys[rule])]


def read_report(dst: str) -> Dict[str, List[dict]]:
    """Read the rows of pictures that are done, and need not be done again.

    Raises:
        ValueError: If the file is no report of this command.
    """
    path = osp.join(dst, REPORT)
    rows: Dict[str, List[dict]] = {}
    if osp.isfile(path):
        with open(
                path, newline='', encoding='utf-8',
                errors='surrogateescape') as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (None, HEADER):
                raise ValueError(
                    f'{path} has the columns {reader.fieldnames}, expected '
                    f'{HEADER}, those of `dan-mm align`. Remove it, or give '
                    'another folder.')
            for row in read_rows(reader):
                # The last line of a killed run may be a part of one.
                if None not in row.values() and row['status'] != BROKEN:
                    row.update((name, from_cell(row[name])) for name in TEXTS)
                    rows.setdefault(row['path'], []).append(row)
        # Or a part of the rows of a picture.
        rows.pop(next(reversed(rows), None), None)
    return {
        path: found
        for path, found in rows.items() if all(
            row['status'] == NO_FACE or osp.isfile(osp.join(dst, row['crop']))
            for row in found)
    }


def read_rows(reader: csv.DictReader) -> Iterator[dict]:
    """Read rows as far as they are whole: those after a power failure may
    not be, and the images of what is missing are aligned again."""
    with suppress(csv.Error):
        yield from reader


def check_settings(dst: str, settings: dict, pictures: List[Picture],
                   several: bool) -> None:
    """Compare the settings with those of the new tree, if it has some."""
    path = osp.join(dst, ALIGNMENT)
    if osp.isfile(path):
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
        if found != settings:
            raise ValueError(
                f'{path} says that {dst} was made with {found}, this run has '
                f'{settings}, expected the same. Give the same options, or '
                'another folder.')
        return
    for name in (REPORT, *(one.crop_path(1, several) for one in pictures)):
        if osp.lexists(osp.join(dst, name)):
            raise FileExistsError(
                f'{osp.join(dst, name)} exists, and was not written by this '
                f'command: {path} is missing. Give an empty folder, or remove '
                'it.')


def load_ahead(pictures: List[Picture], pool: ThreadPoolExecutor,
               size: int) -> Iterator[List[Tuple[Picture, Future]]]:
    """Load batches, one ahead."""
    remaining = iter(pictures)

    def load() -> List[Tuple[Picture, Future]]:
        return [(picture, pool.submit(picture.load))
                for picture in islice(remaining, size)]

    batch = load()
    while batch:
        following = load()
        yield batch
        batch = following


def align_batch(batch: List[Tuple[Picture, Future]], detector: FaceDetector,
                align: AlignFace, dst: str, rule: str) -> List[list]:
    """Write the crops of a batch.

    Returns:
        list[list]: The rows of the report.
    """
    rows, whole = [], []
    for picture, future in batch:
        img = future.result()
        if isinstance(img, str):
            rows.append([picture.path, BROKEN, *[''] * 16, img])
        else:
            whole.append((picture, img))
    found = try_find_faces(detector, [img for _, img in whole])
    for (picture, img), faces in zip(whole, found):
        if isinstance(faces, Exception):
            reason = f'it can not be searched for faces: {describe(faces)}'
            rows.append([picture.path, BROKEN, *[''] * 16, reason])
            continue
        chosen = choose(faces, img.shape[:2], rule)
        if not chosen:
            rows.append([picture.path, NO_FACE, *[''] * 17])
        try:
            aligned = [
                align(dict(img=img, keypoints=face.keypoints))['img']
                for face in chosen
            ]
        except Exception as error:
            reason = f'a face can not be aligned: {describe(error)}'
            rows.append([picture.path, BROKEN, *[''] * 16, reason])
            continue
        # All crops first: a picture with rows is done.
        crops = []
        for number, crop in enumerate(aligned, 1):
            path = picture.crop_path(number, rule == 'all')
            content = cv2.imencode(
                osp.splitext(path)[1], crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            write_bytes(osp.join(dst, path), content.tobytes())
            crops.append(path)
        for path, face in zip(crops, chosen):
            numbers = [*face.bbox, *face.keypoints.ravel()]
            rows.append([
                picture.path, ALIGNED, path, f'{face.score:.4f}',
                *(f'{number:.2f}' for number in numbers),
                '' if face.landmarks_plausible else IMPLAUSIBLE
            ])
    return rows


def run(args: argparse.Namespace, output: IO[str]) -> int:
    """Align a tree of pictures.

    Args:
        args (Namespace): The options of ``dan-mm align``.
        output (IO[str]): Where to print what happened.

    Returns:
        int: The exit status, 1 if a picture is broken.
    """
    if not osp.isdir(args.src):
        raise FileNotFoundError(
            f'Found no folder {osp.abspath(args.src)}, expected one of '
            'pictures. Check the path.')
    for option in 'batch_size', 'workers':
        if getattr(args, option) < 1:
            raise ValueError(
                f'--{option.replace("_", "-")} got {getattr(args, option)}, '
                'expected at least 1.')
    check_tree(args.dst, [args.src])
    files, others = list_images(args.src)
    if not files:
        raise ValueError(
            f'{osp.abspath(args.src)} has no picture by its extension, '
            'expected some. Check the path.')
    pictures = [
        Picture(args.src, osp.relpath(file, args.src)) for file in files
    ]
    check_crops_apart(pictures)
    check_tree(args.dst, [args.src, *files],
               [osp.join(args.dst, picture.path) for picture in pictures])
    align = AlignFace(args.size, args.margin, args.interpolation)
    if args.like:
        align = align_like(args.like)
    with lock_folder(args.dst):
        check_settings(args.dst, align.settings, pictures, args.faces == 'all')
        done = read_report(args.dst)
        remaining = [one for one in pictures if one.path not in done]
        # What is refused until here changes nothing.
        detector = build_detector(args) if remaining else None
        remove_partials(args.dst)
        write_bytes(
            osp.join(args.dst, ALIGNMENT),
            json.dumps(align.settings).encode())
        report = osp.join(args.dst, REPORT)
        write_report(report, done)
        if done:
            print(
                f'{len(done)} of {len(files)} images are done already.',
                file=output)
        if remaining:
            append_to_report(report, remaining, detector, align, args)
        return summarize(report, others, output)


def write_report(path: str, done: Dict[str, List[dict]]) -> None:
    """Begin the report, with the rows of images that are done."""
    kept = io.StringIO()
    writer = csv.DictWriter(kept, HEADER)
    writer.writeheader()
    for rows in done.values():
        for row in rows:
            writer.writerow({
                **row,
                **{
                    name: to_cell(row[name])
                    for name in TEXTS
                }
            })
    write_bytes(path, kept.getvalue().encode('utf-8', 'surrogateescape'))


def append_to_report(path: str, pictures: List[Picture],
                     detector: FaceDetector, align: AlignFace,
                     args: argparse.Namespace) -> None:
    """Align images, and append their rows to the report."""
    console = Console(stderr=True)
    texts = [HEADER.index(name) for name in TEXTS]
    with ThreadPoolExecutor(args.workers) as pool, open(
            path, 'a', newline='', encoding='utf-8',
            errors='surrogateescape') as file:
        writer = csv.writer(file)
        for batch in track(
                load_ahead(pictures, pool, args.batch_size),
                'Aligning',
                console=console,
                disable=not console.is_terminal,
                total=-(-len(pictures) // args.batch_size)):
            for row in align_batch(batch, detector, align, args.dst,
                                   args.faces):
                for column in texts:
                    row[column] = to_cell(row[column])
                writer.writerow(row)
            file.flush()


def align_like(model: str) -> AlignFace:
    """Align as the faces that a model was trained on.

    Raises:
        ValueError: If the model does not say how.
    """
    settings = find_model(model).metainfo.get('alignment')
    if not isinstance(settings, dict):
        raise ValueError(f'The model {model} does not say how its faces were '
                         'aligned, expected it. Give --size and --margin.')
    return AlignFace(**settings)


def build_detector(args: argparse.Namespace) -> FaceDetector:
    """Build the detector that the options name."""
    return FaceDetector(
        args.config,
        args.checkpoint,
        device=args.device,
        score_thr=args.score_thr)


def summarize(report: str, others: List[str], output: IO[str]) -> int:
    """Print what happened to the pictures.

    Returns:
        int: The exit status.
    """
    with open(
            report, newline='', encoding='utf-8',
            errors='surrogateescape') as file:
        rows = list(csv.DictReader(file))
    status = {from_cell(row['path']): row['status'] for row in rows}
    counts = Counter(status.values())
    crops = [row for row in rows if row['status'] == ALIGNED]
    print(
        f'{counts[ALIGNED]} pictures aligned ({len(crops)} faces), '
        f'{counts[NO_FACE]} without a face, {counts[BROKEN]} broken. All '
        f'are in {report}.',
        file=output)
    for name in NO_FACE, BROKEN:
        paths = [repr(path) for path in status if status[path] == name]
        more = f' and {len(paths) - 10} more' if paths[10:] else ''
        if paths:
            print(f'  {name}: {", ".join(paths[:10])}{more}', file=output)
    unsure = sum(row['detail'] == IMPLAUSIBLE for row in crops)
    if unsure:
        print(
            f'  {unsure} crops of faces with implausible landmarks: they may '
            'be turned or wrong',
            file=output)
    if others:
        print(
            f'  {len(others)} files are no pictures by their extension, '
            f'the first is {others[0]!r}',
            file=output)
    return int(counts[BROKEN] > 0)
