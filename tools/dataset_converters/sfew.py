# Copyright (c) dan_mm contributors. All rights reserved.
import sys
from collections import Counter
from typing import Optional, Sequence

from dan_mm.datasets import SFEW
from dan_mm.datasets.conversion import Plan, plan_folders, run, unknown_form
from dan_mm.datasets.folder import find_splits

FORMS = ('`Train/<Emotion>/*.png` and `Val/<Emotion>/*.png`, or '
         '`Train_Aligned_Faces` and `Val_Aligned_Faces`, there or inside '
         'these')


def make_plan(src: str) -> Plan:
    """Plan to copy SFEW 2.0."""
    if not find_splits(src):
        raise unknown_form(src, FORMS)
    return plan_folders(src, SFEW.METAINFO['classes'])


def make_config(counts: Counter) -> dict:
    """Get the config of the data set."""
    return dict(type='SFEW')


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run(make_plan, make_config, f'Convert SFEW 2.0: {FORMS}.', argv)


if __name__ == '__main__':
    sys.exit(main())
