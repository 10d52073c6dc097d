# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import sys
from functools import partial
from typing import Optional

import cv2
import numpy as np
from conversion import (UNREADABLE, Plan, find_file, parse_number,
                        plan_folders, read_csv, run)

from dan_mm.datasets import FER2013
from dan_mm.datasets.folder import find_splits

FORMS = ('`fer2013.csv` or `icml_face_data.csv`, with the columns emotion, '
         'pixels and Usage (which `train.csv` and `test.csv` of Kaggle lack); '
         'or `train/<emotion>/*` and `test/<emotion>/*`')
CLASSES = FER2013.METAINFO['classes']
USAGES = dict(Training='train', PublicTest='val', PrivateTest='test')
SIZE = 48


def encode(pixels: bytes) -> bytes:
    """Encode the pixels of a grey image as PNG."""
    img = np.frombuffer(pixels, np.uint8).reshape(SIZE, SIZE)
    return cv2.imencode('.png', img)[1].tobytes()


def plan_csv(path: str) -> Plan:
    """Plan to write the images in ``fer2013.csv``."""
    plan = Plan(path, FER2013)
    for line, row in read_csv(path, ('emotion', 'pixels', 'usage')):
        number = line - 2
        source = f'{osp.basename(path)}, image {number}'
        try:
            emotion, pixels, usage = row
            split = USAGES[usage]
            label = CLASSES[range(len(CLASSES)).index(parse_number(emotion))]
            pixels = bytes(map(int, pixels.split()))
            if len(pixels) != SIZE**2:
                raise ValueError(f'{len(pixels)} pixels')
        except (KeyError, ValueError) as error:
            plan.leave_out(source, UNREADABLE, f'line {line}: {error}')
            continue
        plan.add(split, label, f'{number:05d}.png', source,
                 partial(encode, pixels))
    return plan


def make_plan(src: str) -> Optional[Plan]:
    """Plan to convert FER2013."""
    path = src if osp.isfile(src) else find_file(src, 'fer2013.csv',
                                                 'icml_face_data.csv')
    if not path and not find_splits(src):
        path = find_file(src, 'train.csv')
    if path:
        return plan_csv(path)
    return plan_folders(src, FER2013)


main = partial(run, make_plan, FORMS, 'Convert FER2013.')

if __name__ == '__main__':
    sys.exit(main())
