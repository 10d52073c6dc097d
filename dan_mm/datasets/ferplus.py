# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import os.path as osp
from typing import Iterator, List, Tuple

import numpy as np
from mmpretrain.registry import DATASETS

from .base import FERDataset

FOLDERS = dict(train='FER2013Train', val='FER2013Valid', test='FER2013Test')
USAGES = dict(train='Training', val='PublicTest', test='PrivateTest')
# The images of FER2013, which are not aligned by landmarks. These places are
# the medians of those that RetinaFace finds in 1,500 of the training images,
# made symmetric, in a crop of nine tenths: so faces in larger scenes are told
# apart best (tools/portraits/eval_on_photographs.py).
FACES = dict(
    color_type='grayscale',
    alignment=dict(
        size=48,
        margin=0.,
        interpolation='bilinear',
        template=[[0.297, 0.377], [0.703, 0.377], [0.5, 0.603], [0.338, 0.789],
                  [0.662, 0.789]]))


@DATASETS.register_module()
class FERPlus(FERDataset):
    """`FER+ <https://github.com/microsoft/FERPlus>`_: ten raters' votes on the
    faces of FER2013.

    The folder has the layout of Microsoft's repository: ::

        data_root
        ├── fer2013new.csv
        ├── FER2013Train
        │   ├── label.csv
        │   ├── fer0000000.png
        │   └── ...
        ├── FER2013Valid
        └── FER2013Test

    The votes are read from ``fer2013new.csv``. Where it is missing, they are
    read from the ``label.csv`` of the split's folder: those are older votes
    that differ for one image in 24.

    The label is the majority as Microsoft's FERPlus defines it: emotions with
    a single vote are dropped; one that then has more than half of the votes is
    the label; images without one, or whose majority is 'unknown' or 'not a
    face', are left out. That leaves 25,060 images for training and 3,199 in
    FER2013Valid, of 48x48 grey pixels, in 8 classes.

    ``split='val'`` is FER2013Valid, or, with ``val_split``, that ratio of
    FER2013Train.

    Args:
        data_root (str): The folder of the dataset.
        soft_targets (bool): Whether to add the votes as ``gt_score``: the
            ratios of the votes for the 8 classes that are not dropped.
            Losses then use them, accuracies still the majority. Defaults to
            False.
        ambiguous (bool): Whether ``split='train'`` also has the images
            without a majority, 3,329 in all, a third of those of disgust:
            their votes are targets, too. It needs ``soft_targets``. Defaults
            to False.
        **kwargs: See :class:`FERDataset`, also for the errors.
    """

    METAINFO = dict(
        classes=('neutral', 'happiness', 'surprise', 'sadness', 'anger',
                 'disgust', 'fear', 'contempt'),
        dataset_name='FER+',
        licence='its images, of FER2013, have no open licence: research',
        **FACES)
    OFFICIAL_COUNTS = dict(train=25060, val=3199, test=None)

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 soft_targets: bool = False,
                 ambiguous: bool = False,
                 **kwargs) -> None:
        if ambiguous and not soft_targets:
            raise ValueError('FERPlus got ambiguous=True, expected '
                             'soft_targets=True beside it: images without a '
                             'majority have no label.')
        self.soft_targets = soft_targets
        self.ambiguous = ambiguous
        super().__init__(data_root, split, **kwargs)

    def load_split(self, split: str) -> List[dict]:
        """Read the annotations of an official split."""
        return self._load(split, majority=True)

    def load_training_only(self) -> List[dict]:
        """Read the annotations of the images without a majority."""
        if not self.ambiguous:
            return []
        data_list = self._load('train', majority=False)
        self._check_files(data_list)
        return data_list

    def _load(self, split: str, majority: bool) -> List[dict]:
        folder = osp.join(self.data_root, FOLDERS[split])
        num_classes = len(self.METAINFO['classes'])
        data_list = []
        for name, votes in self._read_votes(split):
            votes[votes < 2] = 0
            label = int(votes.argmax())
            has_majority = 2 * votes[label] > votes.sum()
            if (has_majority != majority or label >= num_classes
                    or not votes.any()):
                continue
            info = dict(img_path=osp.join(folder, name), gt_label=label)
            if self.soft_targets:
                votes = votes[:num_classes]
                info['gt_score'] = (votes / votes.sum()).astype(np.float32)
            data_list.append(info)
        return data_list

    def _read_votes(self, split: str) -> Iterator[Tuple[str, np.ndarray]]:
        """Read the file name and the ten numbers of votes of each image."""
        path = osp.join(self.data_root, 'fer2013new.csv')
        repository = osp.isfile(path)
        if not repository:
            path = osp.join(self.data_root, FOLDERS[split], 'label.csv')
        lines = self._read_lines(path)
        for number, row in enumerate(csv.reader(lines), 1):
            if not row:
                continue
            if repository:  # Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0
                usage, name, *votes = [*row, ''] if len(row) == 1 else row
            else:  # fer0000000.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0
                usage, name, votes = USAGES[split], row[0], row[2:]
            if usage == 'Usage':  # the header
                continue
            if (usage not in USAGES.values() or name != osp.basename(name)
                    or len(votes) != len(self.METAINFO['classes']) + 2
                    or not all(vote.strip().isdecimal() for vote in votes)):
                raise self._annotation_error(
                    path, number, lines[number - 1],
                    (f'one of {list(USAGES.values())}, ' if repository else '')
                    + 'a file name and ten numbers of votes, for '
                    f'{", ".join(self.METAINFO["classes"])}, unknown and not '
                    'a face')
            # Where all raters saw no face, there is no image either.
            if usage == USAGES[split] and name:
                yield name, np.array(list(map(int, votes)))
