# Copyright (c) dan_mm contributors. All rights reserved.
import json
import os
import os.path as osp
import warnings
from collections import Counter, defaultdict
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmpretrain.datasets import CustomDataset
from sklearn.model_selection import train_test_split

from dan_mm.imaging import ALIGNMENT
from dan_mm.reading.folders import EXTENSIONS
from .alignment import AlignFace
from .cache import ImageCache

# Other names of the expressions
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
    """Get this project's name of a class: 'happiness' for 'Happy'."""
    name = name.strip().lower()
    return ALIASES.get(name, name)


class FERDataset(CustomDataset):
    """Base class of the facial expression datasets.

    Subclasses define :meth:`load_split`, ``METAINFO`` with the ``classes`` in
    their official order, ``OFFICIAL_COUNTS`` with the number of images of each
    official split (or several) and, where known, ``CLASS_COUNTS`` per class.

    Args:
        data_root (str): The folder of the dataset.
        split (str): 'train', 'val' or 'test'. With ``val_split``, 'train' and
            'val' are the two parts of the official training set.
        val_split (float): The ratio of the official training set, in [0, 1),
            to hold out for validation, stratified by class. Defaults to 0.
        val_seed (int): The seed of that choice. Defaults to 0.
        target_classes (Sequence[str], optional): The classes to map labels
            to, such as those of a model that was trained on another dataset.
            Classes are matched by name ('happy' is 'happiness'). Images of
            other classes are left out with a warning. Defaults to None, the
            classes of the dataset.
        cache (str, optional): The folder, relative to ``data_root``, of an
            :class:`ImageCache` of the decoded images. Without a place to write
            it, they are decoded each time, with a warning. Defaults to None,
            no cache.
        **kwargs: Other arguments of
            :class:`mmpretrain.datasets.CustomDataset`.

    Raises:
        FileNotFoundError: If the folder, an annotation file or an image is
            missing.
        ValueError: If an argument or an annotation is invalid.
    """

    OFFICIAL_COUNTS: dict = {}
    CLASS_COUNTS: Dict[str, List[tuple]] = {}

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 val_split: float = 0.,
                 val_seed: int = 0,
                 target_classes: Optional[Sequence[str]] = None,
                 cache: Optional[str] = None,
                 lazy_init: bool = False,
                 **kwargs) -> None:
        self.name = type(self).__name__
        if split not in ('train', 'val', 'test'):
            raise ValueError(f"{self.name} got split='{split}', expected "
                             "'train', 'val' or 'test'.")
        if not 0 <= val_split < 1:
            raise ValueError(f'{self.name} got val_split={val_split}, '
                             'expected a ratio in [0, 1).')
        self.split = split
        self.val_split = val_split
        self.val_seed = val_seed
        given = kwargs.pop('classes', None) or (kwargs.get('metainfo')
                                                or {}).get('classes')
        known = self.METAINFO.get('classes')
        if given and known and tuple(given) != tuple(known):
            raise ValueError(
                f'{self.name} got the classes {tuple(given)}, expected '
                f'{known}. To reorder classes, set `target_classes`.')
        super().__init__(
            data_root=osp.expanduser(data_root),
            extensions=EXTENSIONS,
            lazy_init=True,
            **kwargs)
        self._metainfo.update(self._find_alignment())
        self.own_classes = tuple(self._metainfo['classes'])
        self.target_classes = target_classes and tuple(target_classes)
        self.left_out: Dict[str, int] = {}
        self.cache_folder = cache
        self.cache: Optional[ImageCache] = None
        if target_classes is not None:
            self._match_classes()
        if not lazy_init:
            self.full_init()

    def _find_alignment(self) -> dict:
        """Find how the faces were aligned, by the pipeline or by the tool
        that wrote the folder, for the metadata of checkpoints."""
        for transform in self.pipeline.transforms:
            if isinstance(transform, AlignFace):
                return dict(alignment=transform.settings)
        path = osp.join(self.data_root, ALIGNMENT)
        if not osp.isfile(path):
            return {}
        try:
            with open(path, encoding='utf-8') as file:
                # It has a hundred bytes.
                settings = json.loads(file.read(2**16))
            return dict(alignment=AlignFace(**settings).settings)
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f'{self.name} cannot read {path} ({error}). Align the images '
                'again, with `dan-mm align`.') from error

    def _match_classes(self) -> None:
        indices = []
        for classes in self.own_classes, self.target_classes:
            names = [canonical_name(name) for name in classes]
            if len(set(names)) < len(names):
                raise ValueError(
                    f'{self.name} got the classes {classes}, two of which are '
                    'the same expression. Rename or merge them.')
            indices.append({name: i for i, name in enumerate(names)})
        own, target = indices
        self.class_map = {
            i: target[name]
            for name, i in own.items() if name in target
        }
        if not self.class_map:
            raise ValueError(
                f'{self.name} has the classes {self.own_classes}, expected at '
                f'least one of the target classes {self.target_classes}.')
        self._metainfo['classes'] = self.target_classes

    def load_split(self, split: str) -> List[dict]:
        """Load ``img_path`` and ``gt_label`` of each image of an official
        split, and ``gt_score`` if its target is soft."""
        raise NotImplementedError

    def load_training_only(self) -> List[dict]:
        """Load samples for training only, which are neither counted nor held
        out for validation."""
        return []

    def load_data_list(self) -> List[dict]:
        """Load and check the annotations."""
        if not osp.isdir(self.data_root):
            raise FileNotFoundError(
                f'{self.name} found no folder {osp.abspath(self.data_root)}. '
                'Put the dataset there, or set `data_root` to where it is.')
        held_out = self.val_split > 0 and self.split != 'test'
        split = 'train' if held_out else self.split
        if split not in self.OFFICIAL_COUNTS:
            raise ValueError(
                f'{self.name} has no official split {split!r}, only '
                f'{list(self.OFFICIAL_COUNTS)}. Use one of them, or '
                '`val_split=0.1`.')
        data_list = self.load_split(split)
        if not data_list:
            raise ValueError(f'{self.name} found no image of the split '
                             f'{split!r} in {self.data_root}.')
        self._check_files(data_list)
        counts = Counter(info['gt_label'] for info in data_list)
        problem = self.compare_counts(
            split, [counts[i] for i in range(len(self.own_classes))])
        if problem:
            warnings.warn(problem)
        if held_out:
            data_list = self._hold_out(data_list)
        if self.split == 'train':
            data_list += self.load_training_only()
        if self.target_classes is not None:
            data_list = self._map_labels(data_list)
        if self.cache_folder is not None and self.pipeline.transforms:
            self._open_cache(data_list)
        return data_list

    def _open_cache(self, data_list: List[dict]) -> None:
        folder = osp.join(self.data_root, self.cache_folder)
        try:
            self.cache = ImageCache(folder, f'{self.name}-{self.split}',
                                    data_list, self.pipeline.transforms)
        except OSError as error:
            warnings.warn(f'{self.name} decodes its images each time: the '
                          f'cache cannot be written to {folder} ({error}). '
                          'Set `cache` to a folder where it can.')
            return
        # Samples may be filtered, or a part may be taken.
        for row, info in enumerate(data_list):
            info['cache_row'] = row

    def prepare_data(self, idx: int) -> Optional[dict]:
        """Get a sample, processed by the pipeline."""
        if self.cache is None:
            return super().prepare_data(idx)
        results = self.get_data_info(idx)
        cached, step = self.cache[results.pop('cache_row')]
        results.update(cached)
        for transform in self.pipeline.transforms[step:]:
            results = transform(results)
            if results is None:
                break
        return results

    def compare_counts(self, split: str,
                       counts: Sequence[int]) -> Optional[str]:
        """Describe how the numbers of images of each class differ from the
        official ones, if they do."""
        totals = self.OFFICIAL_COUNTS[split]
        if totals is None:
            return None
        totals = totals if isinstance(totals, tuple) else (totals, )
        found = (f'{self.name} found {sum(counts)} images in the official '
                 f'split {split!r} of {self.data_root}')
        if sum(counts) not in totals:
            return (f'{found}, expected {" or ".join(map(str, totals))}. '
                    'Results are not comparable with published ones.')
        for official in self.CLASS_COUNTS.get(split, []):
            if sum(official) == sum(counts) and official != tuple(counts):
                others = [
                    f'{n} of {name} (expected {m})'
                    for name, n, m in zip(self.own_classes, counts, official)
                    if n != m
                ]
                return (
                    f'{found}, with other class counts: {", ".join(others)}. '
                    'Check the order of its labels or folders.')
        return None

    def _map_labels(self, data_list: List[dict]) -> List[dict]:
        """Map labels to the indices of the target classes."""
        own, target = map(list, (self.class_map, self.class_map.values()))
        counts = Counter(info['gt_label'] for info in data_list)
        self.left_out = {
            name: counts[i]
            for i, name in enumerate(self.own_classes)
            if i not in self.class_map
        }
        data_list = [
            info for info in data_list if info['gt_label'] in self.class_map
        ]
        if not data_list:
            raise ValueError(
                f'{self.name} found no image of the target classes '
                f'{self.target_classes} in the split {self.split!r}.')
        for info in data_list:
            info['gt_label'] = self.class_map[info['gt_label']]
            if 'gt_score' in info:
                score = np.zeros(
                    len(self.target_classes), info['gt_score'].dtype)
                score[target] = info['gt_score'][own]
                info['gt_score'] = score / score.sum()
        if self.describe_unmatched():
            warnings.warn(self.describe_unmatched())
        return data_list

    def describe_unmatched(self) -> str:
        """Describe the classes without counterpart, in the dataset and in the
        target classes, or give ''."""
        left_out = ', '.join(f'{name} ({number})'
                             for name, number in self.left_out.items())
        absent = ', '.join(name for i, name in enumerate(self.target_classes)
                           if i not in self.class_map.values())
        if left_out:
            left_out = (
                f'{self.name} leaves out {sum(self.left_out.values())} images '
                f'of its classes without counterpart: {left_out}.')
        if absent:
            absent = (f'Target classes without counterpart in {self.name}, so '
                      f'without images: {absent}.')
        return f'{left_out} {absent}'.strip()

    def _hold_out(self, data_list: List[dict]) -> List[dict]:
        try:
            train, val = train_test_split(
                range(len(data_list)),
                test_size=self.val_split,
                stratify=[info['gt_label'] for info in data_list],
                random_state=self.val_seed)
        except ValueError as error:
            raise ValueError(
                f'{self.name} cannot hold out val_split={self.val_split} of '
                f'{len(data_list)} images: {error}') from error
        part = train if self.split == 'train' else val
        return [data_list[i] for i in sorted(part)]

    def _check_files(self, data_list: List[dict]) -> None:
        # FER+ names three images twice, with the same label.
        labels: Dict[str, int] = {}
        folders = defaultdict(list)
        for info in data_list:
            path, label = info['img_path'], info['gt_label']
            if labels.setdefault(path, label) != label:
                raise ValueError(
                    f'{self.name} found two labels for the image {path}, '
                    f'{labels[path]} and {label}. Restore the annotations.')
            folders[osp.dirname(path)].append(osp.basename(path))
        missing = []
        for folder, names in folders.items():
            # Listing a folder once is faster than a look at each file.
            found = set(os.listdir(folder)) if osp.isdir(folder) else ()
            missing += [osp.join(folder, x) for x in names if x not in found]
        if missing:
            raise FileNotFoundError(
                f'{self.name} misses {len(missing)} of {len(data_list)} '
                f'annotated images, the first is {missing[0]}. Restore them.')

    def _read_lines(self, path: str) -> List[str]:
        """Read the lines of an annotation file, in UTF-8 or UTF-16."""
        if not osp.exists(path):
            raise FileNotFoundError(
                f'{self.name} found no annotation file {osp.abspath(path)}. '
                'Check `data_root` and the layout of the dataset.')
        with open(path, 'rb') as file:
            content = file.read()
        is_utf16 = content.startswith((b'\xff\xfe', b'\xfe\xff'))
        try:
            text = content.decode('utf-16' if is_utf16 else 'utf-8-sig')
        except UnicodeDecodeError:
            text = '\0'
        # Text has no NUL; UTF-16 without a byte order mark has, as UTF-8.
        if '\0' in text:
            raise ValueError(f'{self.name} cannot read {path}, expected text '
                             'in UTF-8, or UTF-16 with a byte order mark.')
        return text.splitlines()

    def _annotation_error(self, path: str, line: int, found: str,
                          expected: str) -> ValueError:
        return ValueError(f'{self.name}: line {line} of {path} is '
                          f'{found!r:.200}, expected {expected}.')

    def extra_repr(self) -> List[str]:
        """The extra repr information of the dataset."""
        return [
            f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}',
            f'Held out for validation: \t{self.val_split} of train, seed '
            f'{self.val_seed}'
        ]
