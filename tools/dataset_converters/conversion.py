# Copyright (c) dan_mm contributors. All rights reserved.
"""What the converters of datasets have in common: a converter plans what to
write into the folders ``<split>/<class>``, and what is not there is written.
"""
import argparse
import csv
import io
import math
import os
import os.path as osp
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import escape, glob
from typing import (Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple, Type, Union)

from rich.progress import track

from dan_mm.datasets import LoadCheckedImage
from dan_mm.datasets.folder import ClassFolders, find_classes, find_splits
from dan_mm.files import (check_tree, lock_folder, remove_partials, to_cell,
                          write_bytes)
from dan_mm.reading.folders import HIDDEN, LOOP, MISSING, scan

LEFT_OUT = 'left_out.csv'
SOURCE = '.source'
BATCH = 256  # images in progress at once
UNREADABLE = 'unreadable line'


class Sample(NamedTuple):
    """An image to write. ``read`` gets its content, or raises OSError or
    ValueError."""
    split: str
    label: str
    path: str
    source: str
    read: Callable[[], bytes]


class LeftOut(NamedTuple):
    """A source that is not written. If ``lost``, it should be; otherwise, the
    dataset goes without it by definition."""
    source: str
    reason: str
    detail: str = ''
    lost: bool = True


class Plan:
    """What to write, and what to leave out, of the source ``src``; the class
    and settings of the dataset that loads the result."""

    def __init__(self, src: str, kind: Type[ClassFolders], **settings) -> None:
        self.src = src
        self.kind = kind
        self.settings = settings
        self.samples: List[Sample] = []
        self.left_out: List[LeftOut] = []
        self._taken = set()

    def add(self, split: str, label: str, name: str, source: str,
            read: Callable[[], bytes]) -> None:
        """Add an image; a number is added to a name that is taken."""
        path = osp.join(split, label, name)
        (stem, extension), number = osp.splitext(path), 1
        # Some file systems ignore case.
        while path.lower() in self._taken:
            number += 1
            path = f'{stem}-{number}{extension}'
        self._taken.add(path.lower())
        self.samples.append(Sample(split, label, path, source, read))

    def leave_out(self, source: str, *reason) -> None:
        """Leave out a source, see :class:`LeftOut`."""
        self.left_out.append(LeftOut(source, *reason))

    def add_folders(self, split: str, folder: str, classes: Dict[str,
                                                                 str]) -> None:
        """Add copies of the images in the folder of each class."""
        for path, reason in sorted(scan(folder, recursive=False)):
            if reason not in (HIDDEN, LOOP):
                reason = 'in no folder of a class'
            self.leave_out(osp.relpath(path, self.src), reason, '', False)
        for label, root in classes.items():
            for path in self.find_images(root):
                self.add(split, label, osp.relpath(path, root),
                         osp.relpath(path, self.src),
                         partial(read_image, path))

    def find_images(self, folder: str) -> List[str]:
        """List the images in a folder and its subfolders, and leave out what
        else is there."""
        found = sorted(scan(folder))
        for path, reason in found:
            if reason:
                self.leave_out(
                    osp.relpath(path, self.src), reason, '', reason == MISSING)
        return [path for path, reason in found if not reason]


def plan_folders(src: str, kind: Type[ClassFolders]) -> Optional[Plan]:
    """Plan to copy folders of splits that have a folder for each class; None
    if there are none."""
    plan, splits = Plan(src, kind), find_splits(src)
    for split, folder in splits.items():
        classes = find_classes(folder, kind.METAINFO['classes'], kind.NUMBERED)
        plan.add_folders(split, folder, classes)
    return plan if splits else None


def read_image(path: str) -> bytes:
    """Read an image file, and decode it to see that it is whole."""
    with open(path, 'rb') as file:
        content = file.read()
    LoadCheckedImage().decode(content, path)
    return content


def find_file(root: str, *names: str) -> Optional[str]:
    """Find a file in a folder or one of its subfolders."""
    patterns = [osp.join(folder, name) for name in names
                for folder in ('', '*')]  # yapf: disable
    found = [sorted(glob(osp.join(escape(root), item))) for item in patterns]
    return next((paths[0] for paths in found if paths), None)


def read_csv(
    path: str, columns: Sequence[str], default: Sequence[str] = ()
) -> Iterator[Tuple[int, List[str]]]:
    """Read columns, by their names in lower case, of a CSV file that may have
    no header if all its columns are given as ``default``."""
    names = default
    with open(
            path, newline='', encoding='utf-8-sig',
            errors='surrogateescape') as file:
        for number, text in enumerate(file, 1):
            try:
                fields = next(csv.reader([text], strict=True), [])
            except csv.Error:
                fields = []
            fields = [field.strip() for field in fields]
            header = [field.lower() for field in fields]
            if number == 1 and (not fields or not default
                                or default[0] in header):
                if not set(columns) <= set(header):
                    raise ValueError(
                        f'{path} has the columns {header}, expected all of '
                        f'{list(columns)}. Restore it from the dataset.')
                names = header
            elif len(fields) > max(map(names.index, columns)):
                yield number, [fields[names.index(name)] for name in columns]
            elif text.strip():
                yield number, [text.strip()]


def parse_number(text: str, whole: bool = True) -> int:
    """Parse an integer, which may have a decimal point: pandas writes one
    where a column has gaps. Unless ``whole``, others are rounded."""
    number = math.nan if '_' in text else float(text)
    if not math.isfinite(number) or whole and number != round(number):
        raise ValueError(f'{text!r}, expected an integer')
    return round(number)


def run(make_plan: Callable[[str], Optional[Plan]],
        forms: str,
        description: str,
        argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=f'{description} Known forms: {forms}.')
    parser.add_argument('src', help='the dataset, which is never changed')
    parser.add_argument(
        'dst', nargs='?', help='the folder to write; without it, only count')
    args = parser.parse_args(argv)
    try:
        if args.dst:
            check_tree(args.dst, [args.src])
        plan = make_plan(args.src) if osp.exists(args.src) else None
        if plan is None:
            found = glob(osp.join(escape(args.src), '*'))[:10]
            raise ValueError(
                f'Found {sorted(map(osp.basename, found))} in '
                f'{osp.abspath(args.src)}, expected one of these forms: '
                f'{forms}. Give the folder that has one of them.')
        if args.dst and plan.samples:
            convert(plan, args.dst)
        report(plan, args.dst)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error))
    return int(any(item.lost for item in plan.left_out))


def convert(plan: Plan, dst: str) -> None:
    """Write the images that are not there yet, and a list of the others."""
    check_tree(dst, [plan.src],
               [osp.join(dst, sample.path) for sample in plan.samples])
    try:
        with lock_folder(dst):
            remove_partials(dst)
            check_source(plan.src, dst)
            with ThreadPoolExecutor() as pool:
                results = [
                    result for i in track(
                        range(0, len(plan.samples), BATCH), 'Converting')
                    for result in pool.map(
                        partial(write, dst), plan.samples[i:i + BATCH])
                ]
            plan.left_out += filter(lambda x: isinstance(x, LeftOut), results)
            table = io.StringIO()
            rows = [map(to_cell, item[:3]) for item in plan.left_out]
            csv.writer(table).writerows([('path', 'reason', 'detail'), *rows])
            # Names of files may be invalid text.
            write_bytes(
                osp.join(dst, LEFT_OUT),
                table.getvalue().encode('utf-8', 'surrogateescape'))
    except OSError as error:
        raise OSError(
            f'Cannot write to {osp.abspath(dst)} ({error}). Free space or '
            'give another folder, and run this again: it skips the images '
            'that exist.') from error
    plan.samples = [sample for sample, result in zip(plan.samples, results)
                    if isinstance(result, bool)]  # yapf: disable
    print(f'{dst} has {len(plan.samples)} images, {results.count(True)} of '
          'them new.')


def check_source(src: str, dst: str) -> None:
    """Refuse a folder with files of another source, which would stay where
    names are the same, and note the source in it."""
    path, source = osp.join(dst, SOURCE), os.fsencode(osp.realpath(src))
    found = b'an unknown source'
    if osp.isfile(path):
        with open(path, 'rb') as file:
            found = file.read()
    if found != source and not all(
            name.startswith('.') for name in os.listdir(dst)):
        raise ValueError(
            f'{osp.abspath(dst)} has files of {os.fsdecode(found)}, expected '
            f'none, or those of {os.fsdecode(source)}. Give an empty folder.')
    write_bytes(path, source)


def write(dst: str, sample: Sample) -> Union[bool, LeftOut]:
    """Write an image. Returns whether it is new, or why it is left out."""
    path = osp.join(dst, sample.path)
    if osp.exists(path):  # whole, since writes are atomic
        return False
    try:
        content = sample.read()
    except FileNotFoundError as error:
        return LeftOut(sample.source, 'missing', str(error))
    except (OSError, ValueError) as error:
        return LeftOut(sample.source, 'unusable', str(error))
    write_bytes(path, content)
    return True


def report(plan: Plan, dst: Optional[str]) -> None:
    """Print what is left out and the numbers of images, which the dataset
    compares with the official ones."""
    reasons = defaultdict(list)
    for item in plan.left_out:
        reasons[item.reason].append(item)
    for reason, items in reasons.items():
        print(f'Left out: {len(items)} {reason}, the first is '
              f'{items[0].source!r} {items[0].detail}'.rstrip())
    if dst and plan.samples and plan.left_out:
        print(f'{osp.join(dst, LEFT_OUT)} lists them.')
    if not plan.samples:
        raise ValueError(f'{osp.abspath(plan.src)} has no usable image, '
                         'expected some. Check the path.')
    counts: Dict[str, Counter] = defaultdict(Counter)
    for sample in plan.samples:
        counts[sample.split][sample.label] += 1
    kind, settings = plan.kind, plan.settings
    for split, found in counts.items():
        total = sum(found.values())
        print(f'{split}: {total} images; ' +
              ', '.join(f'{name}: {number}'
                        for name, number in sorted(found.items())))
        if split not in kind.OFFICIAL_COUNTS:
            print(f'Warning: {kind.__name__} has no official split {split!r}, '
                  'and does not read these images.')
        elif dst:
            loaded = len(kind(dst, split, **settings))
            if loaded != total:
                print(f'Warning: {kind.__name__} finds {loaded} images in '
                      f'{osp.join(dst, split)}, {total} of them from this '
                      'conversion. Remove the others.')
        elif kind.OFFICIAL_COUNTS[split]:
            dataset = kind(plan.src, lazy_init=True, **settings)
            print(
                dataset.compare_counts(
                    split, [found[name] for name in dataset.own_classes])
                or '')
