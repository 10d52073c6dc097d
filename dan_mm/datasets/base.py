# Copyright (c) dan_mm contributors. All rights reserved.
import json
import os
import os.path as osp
import warnings
from collections import defaultdict
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmpretrain.datasets import BaseDataset
from sklearn.model_selection import train_test_split

from .alignment import ALIGNMENT, AlignFace

# The names that others give the expressions.
ALIASES = dict(
    angry='anger',
    contemptuous='contempt',
    disgusted='disgust',
    fearful='fear',
    happy='happiness',
    neutrality='neutral',
    sad='sadness',
    surprised='surprise')


def canonical_name(name: str) -> str:
    """Get this project's name of a class: 'happiness' for 'Happy'.

    Args:
        name (str): The name of a class, in any case.

    Returns:
        str: The name of the expression, or ``name`` in lower case where it is
        none.
    """
    name = name.strip().lower()
    return ALIASES.get(name, name)


class FERDataset(BaseDataset):
    """The common part of the data sets of facial expressions: they check
    themselves, and part with a validation set on request.

    A subclass gives ``METAINFO`` with the ``classes`` in their official order,
    ``OFFICIAL_COUNTS`` with the number of pictures of each official split (a
    tuple where several circulate), where they are known ``CLASS_COUNTS`` with
    those of its classes (a list, for the same reason), and :meth:`load_split`.

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
        target_classes (Sequence[str], optional): The classes to give labels
            of, such as those of a model that was trained on another data set.
            Classes are matched by their names ('happy' is 'happiness'), never
            by their indices. Pictures of other classes are left out, with a
            warning. Defaults to None, the classes of the data set.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        FileNotFoundError: If the folder, an annotation file or a picture is
            missing.
        ValueError: If a split, a share or a label is none that there is, or
            no class is one of ``target_classes``.
    """

    OFFICIAL_COUNTS: dict = {}
    CLASS_COUNTS: Dict[str, List[tuple]] = {}

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 val_split: float = 0.,
                 val_seed: int = 0,
                 pipeline: tuple = (),
                 test_mode: bool = False,
                 target_classes: Optional[Sequence[str]] = None,
                 lazy_init: bool = False,
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
        given = kwargs.pop('classes', None) or (kwargs.get('metainfo')
                                                or {}).get('classes')
        known = self.METAINFO.get('classes')
        if given and known and tuple(given) != tuple(known):
            raise ValueError(
                f'{type(self).__name__} got the classes {tuple(given)}, '
                f'expected its own in their official order, {known}: the '
                'labels are their indices. To choose some or to have another '
                'order, set `target_classes`.')
        super().__init__(
            ann_file='',
            data_root=osp.expanduser(data_root),
            pipeline=pipeline,
            test_mode=test_mode,
            lazy_init=True,
            **kwargs)
        self._metainfo.update(self._find_alignment())
        self.own_classes = tuple(self._metainfo['classes'])
        self.target_classes = target_classes
        self.left_out: Dict[str, int] = {}
        if target_classes is not None:
            self._match_classes(tuple(target_classes))
        if not lazy_init:
            self.full_init()

    def _find_alignment(self) -> dict:
        """Find how the faces were aligned: by the pipeline, or by the tool
        that made the folder. Checkpoints carry it."""
        for transform in self.pipeline.transforms:
            if isinstance(transform, AlignFace):
                return dict(alignment=transform.settings)
        path = osp.join(self.data_root, ALIGNMENT)
        if not osp.isfile(path):
            return {}
        try:
            with open(path, encoding='utf-8') as file:
                return dict(alignment=AlignFace(**json.load(file)).settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'{type(self).__name__} can not read {path} ({error}), '
                'expected the size, margin and interpolation that `dan-mm '
                'align` writes. Align the images again, or remove the file.'
            ) from error

    def _match_classes(self, targets: tuple) -> None:
        name = type(self).__name__
        indices = {}
        for argument, classes in (('classes', self.own_classes),
                                  ('target_classes', targets)):
            names = [canonical_name(item) for item in classes]
            if len(set(names)) < len(names):
                raise ValueError(
                    f'{name} got {argument}={classes}, two of which mean the '
                    'same, expected one of each. Rename or join them.')
            indices[argument] = {item: i for i, item in enumerate(names)}
        self.class_map = {
            i: indices['target_classes'][item]
            for item, i in indices['classes'].items()
            if item in indices['target_classes']
        }
        if not self.class_map:
            raise ValueError(
                f'{name} has the classes {self.own_classes}, none of which is '
                f'one of the target classes {targets}. Use a data set that '
                'has some of them.')
        self._metainfo['classes'] = targets

    def load_split(self, split: str) -> List[dict]:
        """Read the annotations of an official split.

        Args:
            split (str): One of the keys of ``OFFICIAL_COUNTS``.

        Returns:
            list[dict]: ``img_path`` and ``gt_label`` of each picture, and
            ``gt_score`` where the target is soft.
        """
        raise NotImplementedError

    def load_training_only(self) -> List[dict]:
        """Read what is for training only: neither counted, nor parted with a
        validation set.

        Returns:
            list[dict]: As :meth:`load_split` does. Defaults to nothing.
        """
        return []

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
            advice = (
                'Use one of these.' if split == 'test' else
                'Set `val_split=0.1` to take a tenth of the training set '
                'for validation.')
            raise ValueError(f'{name} has no official split {split!r}, only '
                             f'{list(self.OFFICIAL_COUNTS)}. {advice}')
        data_list = self.load_split(split)
        if not data_list:
            raise ValueError(
                f'{name} found no picture of the split {split!r} in '
                f'{self.data_root}, expected some. Restore the annotations '
                'and pictures from the data set.')
        self._check_files(data_list)
        counts = np.bincount([info['gt_label'] for info in data_list],
                             minlength=len(self.own_classes))
        problem = self.compare_counts(split, counts.tolist())
        if problem:
            warnings.warn(problem)
        if held_out:
            data_list = self._take_part(data_list)
        if self.split == 'train':
            data_list += self.load_training_only()
        if self.target_classes is not None:
            data_list = self._map_labels(data_list)
        return data_list

    def compare_counts(self, split: str,
                       counts: Sequence[int]) -> Optional[str]:
        """Compare numbers of pictures with the official ones.

        Args:
            split (str): One of the keys of ``OFFICIAL_COUNTS``.
            counts (Sequence[int]): The number of pictures of each class.

        Returns:
            str | None: What differs, in a sentence.
        """
        totals = self.OFFICIAL_COUNTS[split]
        if totals is None:
            return None
        totals = totals if isinstance(totals, tuple) else (totals, )
        if sum(counts) not in totals:
            return (f'{type(self).__name__} found {sum(counts)} pictures in '
                    f'the official split {split!r} of {self.data_root}, '
                    f'expected {" or ".join(map(str, totals))}. Results do '
                    'not compare with published ones; check that the data set '
                    'is complete.')
        for official in self.CLASS_COUNTS.get(split, []):
            others = [
                f'{found} of {name} (expected {expected})' for name, found,
                expected in zip(self.own_classes, counts, official)
                if found != expected
            ]
            if sum(official) == sum(counts) and others:
                return (f'{type(self).__name__} found other numbers of '
                        f'pictures of the classes in the official split '
                        f'{split!r} of {self.data_root}: '
                        f'{", ".join(others)}. Check that its labels or '
                        'folders are in the official order.')
        return None

    def _map_labels(self, data_list: List[dict]) -> List[dict]:
        """Give the labels in the indices of the target classes."""
        self.left_out = {
            name: 0
            for i, name in enumerate(self.own_classes)
            if i not in self.class_map
        }
        own, target = list(self.class_map), list(self.class_map.values())
        classes = self.metainfo['classes']
        mapped = []
        for info in data_list:
            label = info['gt_label']
            if label not in self.class_map:
                self.left_out[self.own_classes[label]] += 1
                continue
            info['gt_label'] = self.class_map[label]
            if 'gt_score' in info:
                score = np.zeros(len(classes), info['gt_score'].dtype)
                score[target] = info['gt_score'][own]
                info['gt_score'] = score / score.sum()
            mapped.append(info)
        if not mapped:
            raise ValueError(
                f'{type(self).__name__} found no picture of the target '
                f'classes {classes} in the split {self.split!r} of '
                f'{self.data_root}, expected some. Use another split or data '
                'set.')
        unmatched = self.describe_unmatched()
        if unmatched:
            warnings.warn(unmatched)
        return mapped

    def describe_unmatched(self) -> str:
        """Say which classes have no counterpart, of those of the data set and
        of the target classes, and how many pictures that leaves out.

        Returns:
            str: Sentences, or none.
        """
        sentences = []
        if self.left_out:
            parts = [f'{name} ({n})' for name, n in self.left_out.items()]
            sentences.append(
                f'{type(self).__name__} leaves out '
                f'{sum(self.left_out.values())} pictures of its classes '
                f'without counterpart: {", ".join(parts)}.')
        present = set(self.class_map.values())
        absent = [
            name for i, name in enumerate(self.metainfo['classes'])
            if i not in present
        ]
        if absent:
            sentences.append(
                f'Target classes without counterpart in {type(self).__name__}'
                f', so without pictures: {", ".join(absent)}.')
        return ' '.join(sentences)

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
