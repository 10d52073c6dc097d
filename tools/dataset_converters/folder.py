# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import sys
from functools import partial
from typing import Optional

from conversion import Plan, run

from dan_mm.datasets import AffectNet, FERFolder
from dan_mm.datasets.base import canonical_name
from dan_mm.datasets.folder import find_classes, find_splits
from dan_mm.reading.folders import list_folders

FORMS = ('a folder of images for each class, or such folders in `train` and '
         '`val` or `test`')


def make_plan(src: str) -> Optional[Plan]:
    """Plan to copy folders, with this project's names of expressions."""
    splits = find_splits(src)
    folders = list_folders(src) if osp.isdir(src) else []
    # Without a split, all is the training set; with some, all are splits.
    known = 'train' in splits and len(splits) == len(folders)
    if not known and (splits or len(folders) < 2):
        return None
    plan = Plan(src, FERFolder, val_split=0.)
    for split, folder in (splits or dict(train=src)).items():
        names = {name: canonical_name(name) for name in list_folders(folder)}
        classes = [
            usual if usual in AffectNet.METAINFO['classes'] else name
            for name, usual in names.items()
        ]
        plan.add_folders(split, folder, find_classes(folder, classes))
    return plan


main = partial(run, make_plan, FORMS,
               'Copy a dataset, with the usual names of expressions.')

if __name__ == '__main__':
    sys.exit(main())
