# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import re
from typing import List

from mmpretrain.registry import DATASETS

from .base import FERDataset

LINE = re.compile(r'((train|test)_\d+)\.jpg ([1-7])')


@DATASETS.register_module()
class RAFDB(FERDataset):
    """The basic expressions of `RAF-DB
    <http://www.whdeld.cn/raf/model1.html>`_.

    The folder has the official layout: ::

        data_root
        ├── EmoLabel
        │   └── list_patition_label.txt
        └── Image
            └── aligned
                ├── train_00001_aligned.jpg
                ├── test_0001_aligned.jpg
                └── ...

    The official training set has 12,271 images, the test set 3,068, of
    100x100 pixels. There is no official validation set: ``split='val'`` takes
    it out of the training set, and needs ``val_split``.

    See :class:`FERDataset` for the arguments and errors.
    """

    METAINFO = dict(
        classes=('surprise', 'fear', 'disgust', 'happiness', 'sadness',
                 'anger', 'neutral'),
        dataset_name='RAF-DB',
        licence='non-commercial research')
    OFFICIAL_COUNTS = dict(train=12271, test=3068)
    CLASS_COUNTS = dict(
        train=[(1290, 281, 717, 4772, 1982, 705, 2524)],
        test=[(329, 74, 160, 1185, 478, 162, 680)])

    def load_split(self, split: str) -> List[dict]:
        """Read the annotations of an official split."""
        path = osp.join(self.data_root, 'EmoLabel', 'list_patition_label.txt')
        folder = osp.join(self.data_root, 'Image', 'aligned')
        data_list = []
        for number, line in enumerate(self._read_lines(path), 1):
            if not line.strip():
                continue
            match = LINE.fullmatch(line.strip())
            if match is None:
                raise self._annotation_error(
                    path, number, line,
                    "'train_<number>.jpg <label>' or 'test_<number>.jpg "
                    "<label>' with a label from 1 to 7")
            name, found_split, label = match.groups()
            if found_split == split:
                data_list.append(
                    dict(
                        img_path=osp.join(folder, f'{name}_aligned.jpg'),
                        gt_label=int(label) - 1))
        return data_list
