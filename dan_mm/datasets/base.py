# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import warnings
from collections import defaultdict
from typing import List

from mmpretrain.datasets import BaseDataset
from sklearn.model_selection import train_test_split


class FERDataset(BaseDataset):
    """The common part of the data sets of facial expressions: they check
    themselves, and part with a validation set on request.

    A subclass gives ``METAINFO`` with the ``classes`` in their official order,
    ``OFFICIAL_COUNTS`` with the number of pictures of each official split, and
    :meth:`load_split`.

    Args:
        data_root (str): The folder of the data set.
        split (str): 'train', 'val' or 'test'. With ``val_split``, 'train' and
            'val' are the two parts of the official training set.
        val_split (float): The share of the official training set that becomes
            the validation set, in [0, 1). It has the same share of each class.
            Defaults to 0.
        val_seed (int): The seed of that choice. Defaults to 0.
        pipeline (Sequence): The transforms. Defaults to ``()``.
        test_mode (bool): Whether the data set is used for testing. Defaults to
            False.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        FileNotFoundError: If the folder, an annotation file or a picture is
            missing.
        ValueError: If a split, a share or a label is none that there is.
    """

    OFFICIAL_COUNTS: dict = {}

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 val_split: float = 0.,
                 val_seed: int = 0,
                 pipeline: tuple = (),
                 test_mode: bool = False,
                 **kwargs) -> None:
        if split not in ('train', 'val', 'test'):
            raise ValueError(f"{type(self).__name__} got split='{split}', "
                             "expected 'train', 'val' or 'test'.")
        if not 0 <= val_split < 1:
            raise ValueError(
                f'{type(self).__name__} got val_split={val_split}, expected a '
                'share of the training set in [0, 1).')
        self.split = split
        self.val_split = val_split
        self.val_seed = val_seed
        super().__init__(
            ann_file='',
            data_root=osp.expanduser(data_root),
            pipeline=pipeline,
            test_mode=test_mode,
            **kwargs)

    def load_split(self, split: str) -> List[dict]:
        """Read the annotations of an official split.

        Args:
            split (str): One of the keys of ``OFFICIAL_COUNTS``.

        Returns:
            list[dict]: ``img_path`` and ``gt_label`` of each picture, and
            ``gt_score`` where the target is soft.
        """
        raise NotImplementedError

    def load_data_list(self) -> List[dict]:
        """Load the annotations, check them and take the part asked for."""
        name = type(self).__name__
        if not osp.isdir(self.data_root):
            raise FileNotFoundError(
                f'{name} found no folder {osp.abspath(self.data_root)}. Put '
                'the data set there, or set `data_root` to where it is; '
                "README's section on data sets shows its layout.")
        held_out = self.val_split > 0 and self.split != 'test'
        split = 'train' if held_out else self.split
        if split not in self.OFFICIAL_COUNTS:
            raise ValueError(
                f'{name} has no official split {split!r}, only '
                f'{list(self.OFFICIAL_COUNTS)}. Set `val_split=0.1` to take a '
                'tenth of the training set for validation.')
        data_list = self.load_split(split)
        if not data_list:
            raise ValueError(
                f'{name} found no picture of the split {split!r} in '
                f'{self.data_root}, expected some. Restore the annotations '
                'and pictures from the data set.')
        self._check_files(data_list)
        expected = self.OFFICIAL_COUNTS[split]
        if expected is not None and len(data_list) != expected:
            warnings.warn(
                f'{name} found {len(data_list)} pictures in the official '
                f'split {split!r} of {self.data_root}, expected {expected}. '
                'Results do not compare with published ones; check that the '
                'data set is complete.')
        if held_out:
            data_list = self._take_part(data_list)
        return data_list

    def _take_part(self, data_list: List[dict]) -> List[dict]:
        labels = [info['gt_label'] for info in data_list]
        try:
            parts = train_test_split(
                range(len(data_list)),
                test_size=self.val_split,
                stratify=labels,
                random_state=self.val_seed)
        except ValueError as error:
            raise ValueError(
                f'{type(self).__name__} can not take val_split='
                f'{self.val_split} of {len(data_list)} pictures with the same '
                f'share of each class: {error} Set another `val_split`, or '
                'add pictures.') from error
        part = parts[0] if self.split == 'train' else parts[1]
        return [data_list[i] for i in sorted(part)]

    def _check_files(self, data_list: List[dict]) -> None:
        # FER+ itself names three pictures twice, with the same label.
        labels = {}
        for info in data_list:
            path, label = info['img_path'], info['gt_label']
            if labels.setdefault(path, label) != label:
                raise ValueError(
                    f'{type(self).__name__} found two labels for the picture '
                    f'{path}, {labels[path]} and {label}, expected one. '
                    'Restore the annotations from the data set.')
        folders = defaultdict(list)
        for info in data_list:
            folder, file = osp.split(info['img_path'])
            folders[folder].append(file)
        missing = []
        for folder, files in folders.items():
            # One listing of the folder, not a look at each of many files.
            found = set(os.listdir(folder)) if osp.isdir(folder) else set()
            missing += [
                osp.join(folder, file) for file in files if file not in found
            ]
        if missing:
            raise FileNotFoundError(
                f'{type(self).__name__} misses {len(missing)} of '
                f'{len(data_list)} pictures that its annotations name, the '
                f'first is {missing[0]}. Restore them from the data set.')

    def _read_lines(self, path: str) -> List[str]:
        """Read the lines of an annotation file."""
        try:
            with open(path, encoding='utf-8-sig') as file:
                return file.read().splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{type(self).__name__} found no annotation file '
                f'{osp.abspath(path)}. Check `data_root`: README\'s section '
                'on data sets shows the layout.') from None

    def _annotation_error(self, path: str, line: int, found: str,
                          expected: str) -> ValueError:
        return ValueError(
            f'{type(self).__name__}: line {line} of {path} is {found!r}, '
            f'expected {expected}. Restore the annotations from the data set.')

    def extra_repr(self) -> List[str]:
        """The extra repr information of the dataset."""
        body = [
            f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}'
        ]
        if self.val_split:
            body.append(f'Validation share: \t{self.val_split} of train, '
                        f'seed {self.val_seed}')
        return body
