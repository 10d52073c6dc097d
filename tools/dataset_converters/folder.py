# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import sys
from collections import Counter
from typing import Optional, Sequence

from dan_mm.datasets import AffectNet
from dan_mm.datasets.base import canonical_name
from dan_mm.datasets.conversion import Plan, run, unknown_form
from dan_mm.datasets.folder import find_classes, find_splits, list_folders

FORMS = ('a folder of pictures for each class, or such folders in `train` and '
         '`val` or `test`')


def make_plan(src: str) -> Plan:
    """Plan to copy folders, with this project's names of expressions."""
    splits = find_splits(src)
    folders = list_folders(src) if osp.isdir(src) else []
    # Without a split, all is the training set; with some, all are splits.
    known = 'train' in splits and len(splits) == len(folders)
    if not known and (splits or len(folders) < 2):
        raise unknown_form(src, FORMS)
    plan = Plan(src)
    for split, folder in (splits or dict(train=src)).items():
        names = [
            canonical_name(name)
            if canonical_name(name) in AffectNet.METAINFO['classes'] else name
            for name in list_folders(folder)
        ]
        plan.add_folders(split, folder, find_classes(folder, names))
    return plan


def make_config(counts: Counter) -> dict:
    """Get the config of the data set."""
    return dict(type='FERFolder', val_split=0.)


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run(
        make_plan, make_config,
        f'Copy a data set, with the usual names of expressions: {FORMS}.',
        argv)


if __name__ == '__main__':
    sys.exit(main())
