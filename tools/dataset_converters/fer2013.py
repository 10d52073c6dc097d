# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import os.path as osp
import sys
from collections import Counter
from functools import partial
from typing import Optional, Sequence

import cv2
import numpy as np

from dan_mm.datasets import FER2013
from dan_mm.datasets.conversion import (Plan, find_file, parse_line,
                                        parse_number, plan_folders, run,
                                        unknown_form)
from dan_mm.datasets.folder import find_splits

FORMS = ('`fer2013.csv` or `icml_face_data.csv`, with the columns emotion, '
         'pixels and Usage; or `train/<emotion>/*` and `test/<emotion>/*`')
USAGES = dict(Training='train', PublicTest='val', PrivateTest='test')
SIZE = 48


def encode(pixels: bytes) -> bytes:
    """Encode the pixels of a grey picture as PNG."""
    picture = np.frombuffer(pixels, np.uint8).reshape(SIZE, SIZE)
    return cv2.imencode('.png', picture)[1].tobytes()


def plan_csv(path: str) -> Plan:
    """Plan to write the pictures of a csv file.

    Args:
        path (str): The path of ``fer2013.csv``.
    """
    plan = Plan(osp.dirname(path))
    classes = FER2013.METAINFO['classes']
    with open(
            path, newline='', encoding='utf-8-sig',
            errors='surrogateescape') as file:
        first = next(csv.reader([next(file, '')]), [])
        header = [name.strip().lower() for name in first]
        missing = {'emotion', 'pixels', 'usage'} - set(header)
        if missing:
            raise ValueError(
                f'{path} has the columns {header}, expected emotion, pixels '
                f'and usage; {sorted(missing)} is not there. Kaggle\'s '
                '`train.csv` and `test.csv` do not tell the splits or the '
                'labels: get `icml_face_data.csv` or `fer2013.csv`.')
        columns = [header.index(key) for key in ('emotion', 'pixels', 'usage')]
        for number, text in enumerate(file):
            source = f'{osp.basename(path)}, picture {number}'
            try:
                line = parse_line(text)
                emotion, pixels, usage = (line[i].strip() for i in columns)
                split = USAGES[usage]
                label = classes[range(len(classes)).index(
                    parse_number(emotion))]
                pixels = bytes(map(int, pixels.split()))
                if len(pixels) != SIZE**2:
                    raise ValueError(f'{len(pixels)} pixels')
            except (IndexError, KeyError, ValueError) as error:
                plan.leave_out(source, 'line that can not be read',
                               f'line {number + 2}: {error}')
                continue
            plan.add(split, label, f'{number:05d}.png', source,
                     partial(encode, pixels))
    return plan


def make_plan(src: str) -> Plan:
    """Plan to convert FER2013."""
    path = src if osp.isfile(src) else find_file(src, 'fer2013.csv',
                                                 'icml_face_data.csv')
    if not (path or find_splits(src)):
        path = find_file(src, 'train.csv')
        if not path:
            raise unknown_form(src, FORMS)
    if path:
        return plan_csv(path)
    return plan_folders(src, FER2013.METAINFO['classes'], numbered=True)


def make_config(counts: Counter) -> dict:
    """Get the config of the data set."""
    return dict(type='FER2013')


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run(make_plan, make_config, f'Convert FER2013: {FORMS}.', argv)


if __name__ == '__main__':
    sys.exit(main())
