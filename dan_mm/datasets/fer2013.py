# Copyright (c) dan_mm contributors. All rights reserved.
from mmpretrain.registry import DATASETS

from .ferplus import FACES
from .folder import ClassFolders


@DATASETS.register_module()
class FER2013(ClassFolders):
    """`FER2013 <https://arxiv.org/abs/1307.0414>`_: 48x48 grey images, with
    the labels that :class:`FERPlus` replaces.

    The folder has a folder for each class, named after the class or its
    official index, in one for each split, ::

        data_root
        ├── train
        │   ├── angry
        │   │   ├── xxx.png
        │   │   └── ...
        │   └── ...
        ├── val
        └── test

    which ``tools/dataset_converters/fer2013.py`` makes of ``fer2013.csv``: the
    training set has 28,709 images, 'val' (the public test set) and 'test'
    (the private one) 3,589 each. Kaggle's folders have both as ``test``, 7,178
    images, and no ``val``: there, ``split='val'`` needs ``val_split``.

    See :class:`FERDataset` for the arguments and errors.
    """

    METAINFO = dict(
        classes=('anger', 'disgust', 'fear', 'happiness', 'sadness',
                 'surprise', 'neutral'),
        dataset_name='FER2013',
        licence='its images have no open licence: research',
        **FACES)
    OFFICIAL_COUNTS = dict(train=28709, val=3589, test=(3589, 7178))
    CLASS_COUNTS = dict(
        train=[(3995, 436, 4097, 7215, 4830, 3171, 4965)],
        val=[(467, 56, 496, 895, 653, 415, 607)],
        test=[(491, 55, 528, 879, 594, 416, 626),
              (958, 111, 1024, 1774, 1247, 831, 1233)])
    NUMBERED = True
