# Copyright (c) dan_mm contributors. All rights reserved.
"""Find the faces of a tree of images, and write the same tree of aligned
crops."""
import argparse
import csv
import errno
import json
import os.path as osp
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import IO, Dict, Iterator, List, Tuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from dan_mm.errors import describe, list_some
from dan_mm.files import (atomic_write, check_tree, from_cell, lock_folder,
                          remove_partials, to_cell, write_bytes)
from dan_mm.imaging import ALIGNMENT, LANDMARKS, REPORT, FaceAligner
from dan_mm.reading import InputImage, MediaReader
from .faces import Face, FaceDetector
from .found_model import find_model
from .media import batches, list_images
from .orientation import find_faces, try_each

HEADER = [
    'path', 'status', 'crop', 'score', 'left', 'top', 'right', 'bottom',
    *(f'{name.replace(" ", "_")}_{axis}' for name in LANDMARKS
      for axis in 'xy'), 'detail'
]
TEXTS = 'path', 'crop', 'detail'
FORMAT = dict(newline='', encoding='utf-8', errors='surrogateescape')
# What happened to an image
ALIGNED, NO_FACE, BROKEN = 'aligned', 'no face', 'broken'
IMPLAUSIBLE = 'implausible landmarks: look at this crop'


def crop_path(path: str, number: int, several: bool) -> str:
    """Get the path of the crop of a face in the new tree."""
    stem, extension = osp.splitext(path)
    if extension.lower() not in ('.png', '.jpg', '.jpeg'):
        stem, extension = path, '.png'
    return f'{stem}-face{number}{extension}' if several else stem + extension


def check_crops_apart(images: List[str]) -> None:
    """Refuse images whose crops would overwrite each other."""
    paths: Dict[str, str] = {}
    for path in images:
        crop = crop_path(path, 1, False)
        other = paths.setdefault(crop, path)
        if other != path:
            raise ValueError(
                f'The crops of {other!r} and {path!r} would both be '
                f'{crop!r}, expected different names. Rename one.')


def choose(faces: List[Face], shape: Tuple[int, int], rule: str) -> List[Face]:
    """Choose the faces of an image to write."""
    if rule == 'all' or not faces:
        return faces
    centre = np.array(shape[::-1]) / 2
    keys = dict(
        largest=lambda face: np.prod(face.bbox[2:] - face.bbox[:2]),
        central=lambda face: -np.hypot(*(
            (face.bbox[:2] + face.bbox[2:]) / 2 - centre)),
        confident=lambda face: face.score)
    return [max(faces, key=keys[rule])]


def read_report(dst: str) -> List[dict]:
    """Read the rows of images that are done, and need not be done again."""
    path = osp.join(dst, REPORT)
    rows: Dict[str, List[dict]] = {}
    if osp.isfile(path):
        with open(path, **FORMAT) as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (None, HEADER):
                raise ValueError(
                    f'{path} has the columns {reader.fieldnames}, expected '
                    'those of `dan-mm align`. Remove it, or give another '
                    'folder.')
            # After a power failure, the end may be anything.
            with suppress(csv.Error):
                for row in reader:
                    # The last line of a killed run may be a part of one.
                    if None not in row.values() and row['status'] != BROKEN:
                        row.update(
                            (name, from_cell(row[name])) for name in TEXTS)
                        rows.setdefault(row['path'], []).append(row)
        # Or a part of the rows of an image.
        rows.pop(next(reversed(rows), None), None)
    return [
        row for found in rows.values() if all(
            row['status'] == NO_FACE or osp.isfile(osp.join(dst, row['crop']))
            for row in found) for row in found
    ]


def write_row(writer: csv.DictWriter, row: dict) -> None:
    texts = {name: to_cell(row.get(name, '')) for name in TEXTS}
    writer.writerow({**row, **texts})


def check_settings(dst: str, settings: dict, images: List[str],
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
    for name in (REPORT, *(crop_path(path, 1, several) for path in images)):
        if osp.lexists(osp.join(dst, name)):
            raise FileExistsError(
                f'{osp.join(dst, name)} exists, and was not written by this '
                f'command: {path} is missing. Give an empty folder, or remove '
                'it.')


def align_batch(batch: List[Tuple[str, InputImage]], detector: FaceDetector,
                aligner: FaceAligner, dst: str, rule: str) -> Iterator[dict]:
    """Write the crops of a batch, and yield the rows of the report."""
    whole = [image.img for _, image in batch if image.img is not None]
    found = iter(try_each(partial(find_faces, detector), whole))
    for path, image in batch:
        broken = dict(path=path, status=BROKEN)
        if image.img is None:
            yield dict(broken, detail=image.error)
            continue
        faces = next(found)
        if isinstance(faces, Exception):
            reason = f'it cannot be searched for faces: {describe(faces)}'
            yield dict(broken, detail=reason)
            continue
        chosen = choose(faces, image.img.shape[:2], rule)
        if not chosen:
            yield dict(path=path, status=NO_FACE)
        targets = [
            crop_path(path, number, rule == 'all')
            for number in range(1,
                                len(chosen) + 1)
        ]
        try:
            crops = [
                aligner.align(image.img, face.keypoints) for face in chosen
            ]
            # All crops first: an image with rows is done.
            for target, crop in zip(targets, crops):
                content = cv2.imencode(
                    osp.splitext(target)[1], crop,
                    [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
                write_bytes(osp.join(dst, target), content.tobytes())
        except Exception as error:
            # A full disk is not the failure of an image, its name is.
            if (isinstance(error, OSError)
                    and error.errno != errno.ENAMETOOLONG):
                raise
            reason = f'a face cannot be aligned: {describe(error)}'
            yield dict(broken, detail=reason)
            continue
        for target, face in zip(targets, chosen):
            numbers = [*face.bbox, *face.keypoints.ravel()]
            row = [
                path, ALIGNED, target, f'{face.score:.4f}',
                *(f'{number:.2f}' for number in numbers),
                '' if face.landmarks_plausible else IMPLAUSIBLE
            ]
            yield dict(zip(HEADER, row))


def run(args: argparse.Namespace, output: IO[str]) -> int:
    if not osp.isdir(args.src):
        raise FileNotFoundError(
            f'Found no folder {osp.abspath(args.src)}, expected one of '
            'images. Check the path.')
    for option in 'batch_size', 'workers':
        if getattr(args, option) < 1:
            raise ValueError(
                f'--{option.replace("_", "-")} got {getattr(args, option)}, '
                'expected at least 1.')
    check_tree(args.dst, [args.src])
    files, others = list_images(args.src)
    if not files:
        raise ValueError(
            f'{osp.abspath(args.src)} has no image by its extension, '
            'expected some. Check the path.')
    images = [osp.relpath(file, args.src) for file in files]
    check_crops_apart(images)
    check_tree(args.dst, [args.src, *files],
               [osp.join(args.dst, path) for path in images])
    aligner = FaceAligner(args.size, args.margin, args.interpolation)
    if args.like:
        aligner = align_like(args.like)
    with lock_folder(args.dst):
        check_settings(args.dst, aligner.settings, images, args.faces == 'all')
        rows = read_report(args.dst)
        done = {row['path'] for row in rows}
        remaining = [path for path in images if path not in done]
        # What is refused until here changes nothing.
        detector = build_detector(args) if remaining else None
        remove_partials(args.dst)
        write_bytes(
            osp.join(args.dst, ALIGNMENT),
            json.dumps(aligner.settings).encode())
        report = osp.join(args.dst, REPORT)
        with atomic_write(report) as temporary, open(temporary, 'w',
                                                     **FORMAT) as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            for row in rows:
                write_row(writer, row)
        if done:
            print(
                f'{len(done)} of {len(files)} images are done already.',
                file=output)
        if remaining:
            with open(report, 'a', **FORMAT) as file:
                rows += align_images(remaining, file, detector, aligner, args)
    summarize(rows, report, others, output)
    return int(any(row['status'] == BROKEN for row in rows))


def align_images(paths: List[str], report: IO[str], detector: FaceDetector,
                 aligner: FaceAligner, args: argparse.Namespace) -> List[dict]:
    """Align images, and append their rows to the report."""
    console, rows = Console(stderr=True), []
    images = MediaReader(args.workers).read([(osp.join(args.src, path), False)
                                             for path in paths])
    with closing(images), Progress(
            *Progress.get_default_columns(),
            console=console,
            disable=not console.is_terminal) as progress:
        task = progress.add_task('Aligning', total=len(paths))
        writer, remaining = csv.DictWriter(report, HEADER), iter(paths)
        for batch in batches(images, args.batch_size):
            named = list(zip(islice(remaining, len(batch)), batch))
            for row in align_batch(named, detector, aligner, args.dst,
                                   args.faces):
                write_row(writer, row)
                rows.append(row)
            report.flush()
            progress.advance(task, len(batch))
            del batch, named  # before the next images come
    return rows


def align_like(model: str) -> FaceAligner:
    """Align as the faces that a model was trained on."""
    settings = find_model(model).metainfo.get('alignment')
    if not isinstance(settings, dict):
        raise ValueError(f'The model {model} does not say how its faces were '
                         'aligned, expected it. Give --size and --margin.')
    return FaceAligner(**settings)


def build_detector(args: argparse.Namespace) -> FaceDetector:
    return FaceDetector(
        args.detector_config,
        args.detector_checkpoint,
        device=args.device,
        score_thr=args.score_thr)


def summarize(rows: List[dict], report: str, others: List[str],
              output: IO[str]) -> None:
    """Print what happened to the images."""
    status = {row['path']: row['status'] for row in rows}
    counts = Counter(status.values())
    crops = [row for row in rows if row['status'] == ALIGNED]
    print(
        f'{counts[ALIGNED]} images aligned ({len(crops)} faces), '
        f'{counts[NO_FACE]} without a face, {counts[BROKEN]} broken. All '
        f'are in {report}.',
        file=output)
    for name in NO_FACE, BROKEN:
        paths = [repr(path) for path in status if status[path] == name]
        if paths:
            print(f'  {name}: {list_some(paths, 10)}', file=output)
    unsure = sum(row['detail'] == IMPLAUSIBLE for row in crops)
    if unsure:
        print(
            f'  {unsure} crops of faces with implausible landmarks: they may '
            'be turned or wrong',
            file=output)
    if others:
        print(
            f'  {len(others)} files are no images by their extension, '
            f'the first is {others[0]!r}',
            file=output)
