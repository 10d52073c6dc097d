# Copyright (c) dan_mm contributors. All rights reserved.
"""The common part of ``tools/dataset_converters``: they bring a data set into
folders ``<split>/<class>``, by the names that its data set here reads."""
import argparse
import csv
import hashlib
import io
import math
import os
import os.path as osp
import shutil
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import escape as escape_glob
from glob import glob
from typing import (Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Union)

from mmpretrain.registry import DATASETS
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ..files import check_tree, to_cell, write_bytes
from .base import FERDataset
from .folder import (HIDDEN, LOOP, MISSING, SPLITS, find_classes, find_splits,
                     scan)
from .loading import LoadCheckedImage

LEFT_OUT = 'left_out.csv'
UNFINISHED = '.unfinished'  # data sets do not look into hidden folders
SOURCE = '.source'
LONGEST = 255  # bytes of the name of a file
BATCH = 256  # pictures that are under way at once


class Item(NamedTuple):
    """A picture to write.

    Args:
        split (str): 'train', 'val' or 'test'.
        label (str): The name of its class.
        name (str): The name of its file.
        source (str): Where it comes from, for the reports.
        make (Callable): Gets the content of the file. It raises OSError, or
            ValueError with a reason and a detail or just the latter, where
            the source is missing or broken.
    """
    split: str
    label: str
    name: str
    source: str
    make: Callable[[], bytes]

    @property
    def path(self) -> str:
        """Where to write it, relative to the folder of the result."""
        return osp.join(self.split, self.label, self.name)


class LeftOut(NamedTuple):
    """A picture that is not written.

    Args:
        source (str): Where it comes from.
        reason (str): Why, in words that all of its kind have.
        detail (str): More about it. Defaults to ''.
        lost (bool): Whether it should be there; otherwise the data set goes
            without it by its definition. Defaults to True.
    """
    source: str
    reason: str
    detail: str = ''
    lost: bool = True


class Plan:
    """What a converter is to write, and what it leaves out.

    Args:
        src (str): The data set, which paths in the reports are relative to.
    """

    def __init__(self, src: str) -> None:
        self.src = src
        self.items: List[Item] = []
        self.left_out: List[LeftOut] = []
        self._taken = set()

    def add(self, split: str, label: str, name: str, source: str,
            make: Callable[[], bytes]) -> None:
        """Add a picture, see :class:`Item`.

        Folders in ``name`` become a part of the file's name, and a number is
        added where it is taken. A name that is too long is cut.
        """
        name = name.replace(os.sep, '_')
        if name.startswith('.'):  # data sets do not read hidden files
            name = f'_{name}'
        stem, extension = osp.splitext(name)
        item = Item(split, label, join_name(stem, extension), source, make)
        number = 1
        # Some file systems do not tell cases apart.
        while item.path.lower() in self._taken:
            number += 1
            name = join_name(stem, f'-{number}{extension}')
            item = item._replace(name=name)
        self._taken.add(item.path.lower())
        self.items.append(item)

    def leave_out(self, source: str, *reason) -> None:
        """Leave out a picture, see :class:`LeftOut`."""
        self.left_out.append(LeftOut(source, *reason))

    def add_folders(self, split: str, folder: str, classes: Dict[str,
                                                                 str]) -> None:
        """Add the pictures of a split as they are.

        Args:
            split (str): 'train', 'val' or 'test'.
            folder (str): Its folder.
            classes (dict[str, str]): The folder of each class in it.
        """
        for path, reason in sorted(scan(folder, recursive=False)):
            if reason not in (HIDDEN, LOOP):
                reason = 'in no folder of a class'
            self.leave_out(self.relative(path), reason, '', False)
        for label, root in classes.items():
            for path in self.find_pictures(root):
                self.add(split, label, osp.relpath(path, root),
                         self.relative(path), partial(copy_picture, path))

    def find_pictures(self, folder: str) -> List[str]:
        """List the pictures in a folder and in its folders, and leave out
        what else is there."""
        pictures = []
        for path, reason in sorted(scan(folder)):
            if reason:
                self.leave_out(
                    self.relative(path), reason, '', reason == MISSING)
            else:
                pictures.append(path)
        return pictures

    def relative(self, path: str) -> str:
        """Get a path relative to the data set."""
        return osp.relpath(path, self.src)


def join_name(stem: str, end: str) -> str:
    """Join the parts of a file's name, with a hash for what is too long of
    the first."""
    name = stem.encode('utf-8', 'surrogateescape')
    room = LONGEST - len(end.encode('utf-8', 'surrogateescape'))
    if len(name) > room:
        digest = hashlib.sha256(name).hexdigest()[:8]
        # Of a character that is cut in two, nothing stays.
        stem = f'{name[:room - 9].decode("utf-8", "ignore")}-{digest}'
    return stem + end


def parse_line(line: str) -> List[str]:
    """Parse a line of a csv file. Fields have no line breaks, or one quote too
    many would take the lines after it.

    Raises:
        ValueError: If it is no csv.
    """
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def parse_number(text: str, whole: bool = True) -> int:
    """Parse a number, which may have a decimal point: pandas writes one for
    all of a column with a gap.

    Args:
        text (str): The number.
        whole (bool): Whether to refuse one that is not whole, otherwise it is
            rounded. Defaults to True.

    Raises:
        ValueError: If it is no such number.
    """
    number = math.nan if '_' in text else float(text)
    if not math.isfinite(number) or whole and number != round(number):
        raise ValueError(f'{text!r}, expected a whole number')
    return round(number)


def copy_picture(path: str) -> bytes:
    """Read the file of a picture, if that is whole.

    Raises:
        OSError: If it can not be read.
        ValueError: If it can not be decoded.
    """
    with open(path, 'rb') as file:
        content = file.read()
    LoadCheckedImage().decode(content, path)
    return content


def find_file(root: str, *names: str) -> Optional[str]:
    """Find the first file that there is, in a folder or one of its folders."""
    for name in names:
        for pattern in (name, osp.join('*', name)):
            found = sorted(glob(osp.join(escape_glob(root), pattern)))
            if found:
                return found[0]
    return None


def unknown_form(src: str, forms: str) -> ValueError:
    """Get the error for a data set that has none of the known forms."""
    names = sorted(os.listdir(src)) if osp.isdir(src) else [osp.basename(src)]
    more = f' and {len(names) - 10} more' if names[10:] else ''
    return ValueError(f'Found {names[:10]}{more} in {osp.abspath(src)}, '
                      f'expected one of these forms: {forms}. Give the folder '
                      'that has one of them.')


def plan_folders(src: str,
                 classes: Sequence[str],
                 numbered: bool = False) -> Plan:
    """Plan to copy folders of splits that have a folder for each class.

    Args:
        src (str): The data set.
        classes (Sequence[str]): See :func:`find_classes`.
        numbered (bool): See :func:`find_classes`. Defaults to False.

    Raises:
        ValueError: If a folder means no class, or two the same.
    """
    plan = Plan(src)
    for split, folder in find_splits(src).items():
        plan.add_folders(split, folder, find_classes(folder, classes,
                                                     numbered))
    return plan


def _write(item: Item, dst: str) -> Union[bool, LeftOut]:
    """Write a picture, or find it written."""
    path = osp.join(dst, item.path)
    try:
        copy_picture(path)
        return False
    except (OSError, ValueError):
        pass
    try:
        content = item.make()
    except FileNotFoundError as error:
        return LeftOut(item.source, 'missing', str(error))
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and len(error.args) == 2:
            return LeftOut(item.source, *error.args)
        return LeftOut(item.source, 'broken', str(error))
    # A killed process leaves whole pictures in their places.
    temporary = osp.join(dst, UNFINISHED, str(threading.get_ident()))
    with open(temporary, 'wb') as file:
        file.write(content)
    os.replace(temporary, path)
    return True


def convert(items: List[Item], dst: str) -> Iterator[Union[bool, LeftOut]]:
    """Write pictures.

    Args:
        items (list[Item]): The pictures.
        dst (str): The folder to write to.

    Yields:
        bool | LeftOut: For each picture, whether it was not there yet, or why
        it can not be.

    Raises:
        OSError: If a file can not be written.
    """
    unfinished = osp.join(dst, UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for folder in {osp.dirname(item.path) for item in items}:
            os.makedirs(osp.join(dst, folder), exist_ok=True)
        os.makedirs(unfinished)
        with ThreadPoolExecutor() as pool:
            for i in range(0, len(items), BATCH):
                yield from pool.map(
                    partial(_write, dst=dst), items[i:i + BATCH])
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_left_out(left_out: List[LeftOut], dst: str) -> None:
    """Write the list of the pictures that are left out."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(['path', 'reason', 'detail'])
    writer.writerows(map(to_cell, item[:3]) for item in left_out)
    # File names need not be text.
    write_bytes(
        osp.join(dst, LEFT_OUT),
        table.getvalue().encode('utf-8', 'surrogateescape'))


def splits_of(counts: Counter) -> List[str]:
    """List the splits that have pictures."""
    return [
        split for split in SPLITS if any(split == key[0] for key in counts)
    ]


def list_left_over(items: List[Item], dst: str) -> List[str]:
    """List the files in the folders of the splits that are not of these
    pictures."""
    own = {item.path for item in items}
    found = [
        osp.relpath(path, dst) for split in SPLITS
        if osp.isdir(osp.join(dst, split))
        for path, reason in scan(osp.join(dst, split)) if reason != HIDDEN
    ]
    return [path for path in found if path not in own]


def report_counts(counts: Counter, classes: Sequence[str],
                  dataset: Optional[FERDataset]) -> None:
    """Print the numbers of pictures beside the official ones.

    Args:
        counts (Counter): The number of pictures of each (split, class).
        classes (Sequence[str]): The names of the classes.
        dataset (FERDataset, optional): The data set, for official numbers.
    """
    table = Table()
    table.add_column('class')
    columns = []
    for split in splits_of(counts):
        found = [counts[split, name] for name in classes]
        found.append(sum(found))
        official = [None] * len(found)
        if dataset is not None:
            totals = dataset.OFFICIAL_COUNTS.get(split)
            totals = totals if isinstance(totals, tuple) else (totals, )
            rows = [[*official[:-1], total] for total in totals]
            known = [[*row, sum(row)]
                     for row in dataset.CLASS_COUNTS.get(split, [])]
            # Of several, the one that has as many pictures, or nearly.
            official = min(
                known + [row for row in rows if row[-1] == found[-1]] or rows,
                key=lambda row: abs((row[-1] or 0) - found[-1]))
        columns.append([f'{n:,}' for n in found])
        columns.append([
            '' if n is None else f'{n:,}' if n == m else f'!= {n:,}'
            for n, m in zip(official, found)
        ])
        for title in (split, 'official'):
            table.add_column(title, justify='right', no_wrap=True)
    for row in zip([*classes, 'all'], *columns):
        differs = any('!=' in cell for cell in row[1:])
        table.add_row(*map(escape, row), style='red' if differs else None)
    Console().print(table)


def report_left_out(left_out: List[LeftOut]) -> None:
    """Print how many pictures are left out, and why."""
    if left_out:
        print(f'Left out {len(left_out)}:')
    for reason, number in Counter(item.reason for item in left_out).items():
        first = next(item for item in left_out if item.reason == reason)
        detail = f' ({first.detail})' if first.detail else ''
        print(f'  {number} {reason}, the first is {first.source!r}{detail}')


def check(config: dict, dst: str, splits: Sequence[str]) -> None:
    """Load the data set from the new folder, and print what it says."""
    for split in splits:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always', UserWarning)
            loaded = DATASETS.build(dict(**config, data_root=dst, split=split))
        print(f'{config["type"]} loads {len(loaded)} pictures of {split!r}.')
        for warning in caught:
            print(f'Warning: {warning.message}')


def run(plan: Callable[[str], Plan],
        config: Callable[[Counter], dict],
        description: str,
        argv: Optional[Sequence[str]] = None) -> int:
    """Run a converter.

    Args:
        plan (Callable): Makes the plan for a data set, given its path. It
            raises ValueError where it does not know its form.
        config (Callable): Gets the config of the data set to load the result
            with, given the number of pictures of each (split, class).
        description (str): What the converter does.
        argv (Sequence[str], optional): The command line. Defaults to None,
            that of the process.

    Returns:
        int: The exit status, 1 if a picture is missing or broken.

    Raises:
        SystemExit: If nothing can be converted.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('src', help='the data set; nothing in it is changed')
    parser.add_argument(
        'dst',
        nargs='?',
        help='the folder to write; without it, pictures are only counted')
    args = parser.parse_args(argv)
    try:
        return _run(plan, config, args.src, args.dst)
    except (OSError, ValueError, csv.Error) as error:
        raise SystemExit(str(error))


def check_source(src: str, dst: str) -> None:
    """Refuse to write among the results of another source: where names are the
    same, its pictures would stay.

    Args:
        src (str): The data set.
        dst (str): The folder to write.

    Raises:
        ValueError: If the folder has pictures of another source, or does not
            tell of which.
    """
    source = osp.realpath(src)
    try:
        with open(
                osp.join(dst, SOURCE),
                newline='',
                encoding='utf-8',
                errors='surrogateescape') as file:
            found = file.read()
    except FileNotFoundError:
        found = 'an unknown source'
    if found != source and list_left_over([], dst):
        raise ValueError(
            f'{osp.abspath(dst)} has pictures of {found}, expected none but '
            f'those of {source}. Give an empty folder, or remove this one.')


def write_source(src: str, dst: str) -> None:
    """Write where the pictures of a folder are from."""
    write_bytes(osp.join(dst, SOURCE), os.fsencode(osp.realpath(src)))


def _run(make_plan: Callable, make_config: Callable, src: str,
         dst: Optional[str]) -> int:
    if not osp.exists(src):
        raise FileNotFoundError(f'Found no {osp.abspath(src)}, expected a '
                                'data set. Check the path.')
    if dst:
        check_tree(dst, [src])
    plan = make_plan(src)
    items, left_out = plan.items, plan.left_out
    if not items:
        report_left_out(left_out)
        raise ValueError(f'{osp.abspath(src)} has no picture for this data '
                         'set, expected some. Check the path.')
    if dst:
        check_tree(dst, [src], [osp.join(dst, item.path) for item in items])
        check_source(src, dst)
        items, lost, new = [], [], 0
        results = track(
            convert(plan.items, dst), 'Converting', total=len(plan.items))
        try:
            write_source(src, dst)
            for result, item in zip(results, plan.items):
                if isinstance(result, LeftOut):
                    lost.append(result)
                else:
                    items.append(item)
                    new += result
            left_out = left_out + lost
            write_left_out(left_out, dst)
        except OSError as error:
            raise OSError(
                f'Can not write to {osp.abspath(dst)} ({error}), expected '
                'room and the permission. Make room, or give another folder, '
                'and run this again: it goes on where it was.') from error
        print(f'{dst} has {len(items)} pictures, {new} of them new.')
    report_left_out(left_out)
    if dst and left_out:
        print(f'{osp.join(dst, LEFT_OUT)} lists them.')

    counts = Counter((item.split, item.label) for item in items)
    config = make_config(counts)
    official = DATASETS.get(config['type']).OFFICIAL_COUNTS
    dataset, classes = None, sorted({label for _, label in counts})
    if any(official.values()):
        dataset = DATASETS.build(
            dict(**config, data_root=dst or src, lazy_init=True))
        classes = dataset.own_classes
    report_counts(counts, classes, dataset)
    splits = [split for split in splits_of(counts) if split in official]
    for split in set(splits_of(counts)).difference(official):
        print(f'Warning: {config["type"]} has no official split {split!r}, '
              'so it will not read these pictures.')
    if dst:
        left_over = list_left_over(items, dst)
        if left_over:
            print(f'Warning: {dst} has {len(left_over)} files that this '
                  f'conversion does not make, the first is {left_over[0]!r}. '
                  'Data sets read them, too: remove them, or convert into '
                  'another folder.')
        check(config, dst, splits)
    elif dataset is not None:
        for split in splits:
            problem = dataset.compare_counts(
                split, [counts[split, name] for name in classes])
            if problem:
                print(f'Warning: {problem}')
    return int(any(item.lost for item in left_out))
