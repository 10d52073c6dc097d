# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import warnings
from typing import Callable, Dict, List, Optional, Sequence

from mmpretrain.registry import DATASETS

from dan_mm.imaging import ALIGNMENT, REPORT
from dan_mm.reading.folders import (HIDDEN, LOOP, MISSING, NO_IMAGE,
                                    list_folders, scan)
from .base import FERDataset, canonical_name

# The names that copies of the datasets give the folders of their splits
SPLITS = dict(
    train=('train', 'training', 'train_set', 'train_class',
           'train_aligned_faces'),
    val=('val', 'valid', 'validation', 'val_set', 'val_class',
         'val_aligned_faces', 'val_aligned_faces_new'),
    test=('test', 'testing', 'test_set', 'test_aligned_faces'))


def split_of(name: str) -> Optional[str]:
    """Get the split that the name of a folder stands for, if any."""
    return next((split for split in SPLITS if name.lower() in SPLITS[split]),
                None)


def _find(root: str, meaning: Callable[[str], Optional[str]]) -> Dict:
    found: Dict[str, str] = {}
    for name in list_folders(root):
        key = meaning(name)
        if key in found:
            raise ValueError(
                f'{osp.abspath(root)} has the folders {found[key]!r} and '
                f'{name!r}, both of which are {key!r}. Merge them.')
        if key is not None:
            found[key] = name
    return {key: osp.join(root, name) for key, name in found.items()}


def find_splits(root: str) -> Dict[str, str]:
    """Find the folder of each split, under any of its usual names."""
    found = _find(root, split_of) if osp.isdir(root) else {}
    for split, folder in found.items():
        # The archives of SFEW: Train/Train_Aligned_Faces
        inner = _find(folder, split_of)
        if list(inner) == [split]:
            found[split] = inner[split]
    return found


def find_classes(folder: str,
                 classes: Sequence[str],
                 numbered: bool = False) -> Dict[str, str]:
    """Find the folder of each class in the folder of a split, under any of its
    usual names, or its index if ``numbered``."""
    known = {canonical_name(name): name for name in classes}
    if numbered:
        known.update((str(i), name) for i, name in enumerate(classes))
    unknown = [name for name in list_folders(folder)
               if canonical_name(name) not in known]  # yapf: disable
    if unknown:
        raise ValueError(
            f'{osp.abspath(folder)} has the folders {unknown}, expected only '
            f'the classes {list(known)}. Rename or move them.')
    return _find(folder, lambda name: known[canonical_name(name)])


class ClassFolders(FERDataset):
    """Base class of the datasets with a folder per split and class: ::

        data_root
        ├── train
        │   ├── happiness
        │   │   ├── xxx.jpg
        │   │   └── ...
        │   └── ...
        ├── val
        └── test

    Other usual names of splits (`Training`, `Train_Aligned_Faces`) and classes
    (`Happy`) are known, in any case, and official indices where a subclass
    sets ``NUMBERED``. Other files are left out with a warning.

    See :class:`FERDataset` for the arguments and errors.
    """

    NUMBERED = False

    def find_split(self, split: str) -> str:
        """Find the folder of a split."""
        splits = find_splits(self.data_root)
        if split not in splits:
            raise FileNotFoundError(
                f'{self.name} found folders of the splits {list(splits)} in '
                f'{osp.abspath(self.data_root)}, expected one of {split!r}. '
                'Check `data_root`, or set `val_split=0.1`.')
        return splits[split]

    def load_split(self, split: str) -> List[dict]:
        """List the images of a split."""
        root = self.find_split(split)
        # Copies of AffectNet-7 may have the eighth class, too.
        known = type(self).METAINFO.get('classes', self.own_classes)
        folders = find_classes(root, known, self.NUMBERED)
        data_list = []
        others = [
            path for path, reason in scan(root, recursive=False)
            if reason != HIDDEN and osp.basename(path) not in (ALIGNMENT,
                                                               REPORT)
        ]
        for label, name in enumerate(self.own_classes):
            found = sorted(scan(folders[name])) if name in folders else []
            for path, reason in found:
                if reason == MISSING:
                    raise FileNotFoundError(
                        f'{self.name} found the broken link {path}, expected '
                        'an image. Restore or remove it.')
                if reason in (NO_IMAGE, LOOP):
                    others.append(path)
            images = [
                dict(img_path=path, gt_label=label) for path, reason in found
                if not reason
            ]
            if not images and split == 'train':
                raise ValueError(f'{self.name} found no image in '
                                 f'{osp.join(root, name)}, expected some.')
            data_list += images
        if others:
            warnings.warn(
                f'{self.name} left out {len(others)} files that are no images '
                f'or in no folder of a class, the first is {others[0]}.')
        return data_list


@DATASETS.register_module()
class FERFolder(ClassFolders):
    """Images in a folder per class, whatever the classes are.

    Either a single tree, ::

        data_root
        ├── amused
        │   ├── xxx.jpg
        │   └── ...
        └── bored

    or one such tree per split in ``train``, ``val`` and ``test``. 'val' and
    'test' stand in for each other, and without both, ``val_split`` of the
    training set is held out for them.

    Args:
        data_root (str): The folder.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        val_split (float): The ratio of the training set to hold out where
            there is no folder for validation, in (0, 1), but at least as many
            images as there are classes. Defaults to 0.1.
        classes (Sequence[str], optional): The names of the classes in the
            order of their indices. Defaults to None, the folders of the
            training set in alphabetical order.
        **kwargs: See :class:`FERDataset`, also for the errors.
    """

    METAINFO: dict = {}
    OFFICIAL_COUNTS = {'train': None, 'val': None, 'test': None}

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 val_split: float = 0.1,
                 classes: Optional[Sequence[str]] = None,
                 **kwargs) -> None:
        root = osp.expanduser(data_root)
        if not osp.isdir(root):
            raise FileNotFoundError(
                f'FERFolder found no folder {osp.abspath(root)}, expected one '
                'with a folder of images per class. Check the path.')
        folders = list_folders(root)
        has_splits = 'train' in folders
        # Other names of splits would be taken for classes.
        others = [
            name for name in folders
            if (name not in SPLITS if has_splits else split_of(name))
        ]
        if others:
            raise ValueError(
                f'FERFolder found the folders {folders} in {root}, expected '
                'either a folder per class or `train`, `val` and `test`. '
                f'Rename or move {others}.')
        train = osp.join(root, 'train') if has_splits else root
        held_out = [name for name in (split, 'val', 'test')
                    if name != 'train' and has_splits and name in folders
                    ]  # yapf: disable
        self.folder = train
        if held_out:
            val_split = 0.
            if split != 'train':
                self.folder = osp.join(root, held_out[0])
        elif split != 'train' and not val_split:
            raise ValueError(
                f"FERFolder got split='{split}' and val_split=0, but {root} "
                'has only the training set. Set `val_split`, or add a folder.')
        if val_split and split == 'test':
            split = 'val'
        if classes is None:
            classes = list_folders(train)
        if len(classes) < 2:
            raise ValueError(
                f'FERFolder found the folders {classes} in '
                f'{osp.abspath(train)}, expected a folder of images for each '
                'of at least 2 classes. Sort the images into them.')
        super().__init__(
            root,
            split,
            val_split=val_split,
            metainfo=dict(classes=tuple(classes)),
            **kwargs)
        # The classes may be those of a known dataset, the images are not.
        name = osp.basename(osp.abspath(root))
        self._metainfo['dataset_name'] = f'the folder {name}'

    def find_split(self, split: str) -> str:
        """Get the folder of a split."""
        return self.folder

    def _hold_out(self, data_list: List[dict]) -> List[dict]:
        # Of few images, about one of each class.
        least = len(self.own_classes) / len(data_list)
        self.val_split = max(self.val_split, least)
        return super()._hold_out(data_list)
