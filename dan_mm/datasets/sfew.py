# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
from typing import List

from mmpretrain.registry import DATASETS

from .folder import ClassFolders, find_splits, list_folders


@DATASETS.register_module()
class SFEW(ClassFolders):
    """`SFEW 2.0 <https://cs.anu.edu.au/few/AFEW.html>`_, stills from films.

    The folder has the official layout: ::

        data_root
        ├── Train
        │   ├── Angry
        │   │   ├── xxx.png
        │   │   └── ...
        │   └── ...
        └── Val

    It holds face images. To reproduce published results, take those that the
    authors aligned (``tools/dataset_converters/sfew.py``); for a model that is
    to be used on photographs, crop the whole stills with ``dan-mm align``.

    The training set has 958 images, the validation set 436. The 372 of the
    test set are given out without labels: results are reported on
    ``split='val'``.

    See :class:`FERDataset` for the arguments and errors.
    """

    METAINFO = dict(
        classes=('anger', 'disgust', 'fear', 'happiness', 'neutral', 'sadness',
                 'surprise'),
        dataset_name='SFEW 2.0',
        licence='non-commercial research')
    OFFICIAL_COUNTS = dict(train=958, val=436, test=372)

    def load_split(self, split: str) -> List[dict]:
        """List the images of a split."""
        folder = find_splits(self.data_root).get(split)
        if split == 'test' and not (folder and list_folders(folder)):
            raise ValueError(
                'SFEW found no folder for each class of the test set in '
                f'{osp.abspath(self.data_root)}: its labels are not given '
                "out. Use split='val', which results are reported on.")
        return super().load_split(split)
