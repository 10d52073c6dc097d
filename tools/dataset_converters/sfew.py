# Copyright (c) dan_mm contributors. All rights reserved.
import sys
from functools import partial

from conversion import plan_folders, run

from dan_mm.datasets import SFEW

FORMS = ('`Train/<Emotion>/*.png` and `Val/<Emotion>/*.png`, or '
         '`Train_Aligned_Faces` and `Val_Aligned_Faces`, there or inside '
         'these')
DESCRIPTION = (
    'Copy the aligned faces that the authors of SFEW 2.0 provide, which '
    'published results are on. To train a model for photographs, crop the '
    'faces out of the whole images instead: `dan-mm align SRC DST`.')
main = partial(run, partial(plan_folders, kind=SFEW), FORMS, DESCRIPTION)

if __name__ == '__main__':
    sys.exit(main())
