# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import warnings
from typing import List, Optional, Sequence

from mmengine.utils import scandir
from mmpretrain.registry import DATASETS
from torchvision.datasets.folder import IMG_EXTENSIONS

from .base import FERDataset

SPLIT_NAMES = ('train', 'training', 'val', 'valid', 'validation', 'test',
               'testing')


@DATASETS.register_module()
class FERFolder(FERDataset):
    """Pictures in a folder per class, with any names of classes.

    Either all of them, ::

        data_root
        ├── amused
        │   ├── xxx.jpg
        │   └── ...
        └── bored

    or one such tree per split, ``data_root/train``, and ``data_root/val`` or
    ``data_root/test`` or both. What is not there is taken from what is: 'val'
    and 'test' stand in for each other, and without both ``val_split`` takes
    them out of the training set.

    Files that are in no folder of a class, or are no pictures by their
    extension, are left out with a warning that names one.

    Args:
        data_root (str): The folder.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        val_split (float): The share of the training set that becomes the
            validation set where there is no folder for it, in (0, 1); of few
            pictures, at least as many as there are classes. Defaults to 0.1.
        classes (Sequence[str], optional): The names of the classes in the
            order of their indices. Defaults to None, the names of the folders
            of the training set in alphabetical order.
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
        data_root = osp.expanduser(data_root)
        parted = osp.isdir(osp.join(data_root, 'train'))
        self.folder = data_root
        if osp.isdir(data_root):
            self._check_splits(data_root, parted)
        if parted:
            self.folder = osp.join(data_root, 'train')
            held = [
                other for other in (split, 'val', 'test')
                if other != 'train' and osp.isdir(osp.join(data_root, other))
            ]
            if held:
                val_split = 0.
                if split != 'train':
                    self.folder = osp.join(data_root, held[0])
        if split != 'train' and not val_split and self.folder in (
                data_root, osp.join(data_root, 'train')):
            raise ValueError(
                f"{type(self).__name__} got split='{split}' and val_split=0, "
                f'and found no folder of that split in {data_root}: it would '
                'be the training set. Set `val_split`, or add the folder.')
        if val_split and split == 'test':
            split = 'val'
        if classes is None:
            train = osp.join(data_root, 'train') if parted else data_root
            classes = self.find_classes(train)
        super().__init__(
            data_root,
            split,
            val_split=val_split,
            metainfo=dict(classes=tuple(classes)),
            **kwargs)

    def _check_splits(self, data_root: str, parted: bool) -> None:
        folders = self._list_folders(data_root)
        splits = {'train', 'val', 'test'}
        # Other names of splits, which would be taken for classes.
        others = sorted(
            set(folders) - splits if parted else
            [name for name in folders if name.lower() in SPLIT_NAMES])
        if others:
            raise ValueError(
                f'{type(self).__name__} found the folders {folders} in '
                f'{data_root}, expected either a folder for each class or '
                f'`train`, `val` and `test`. Rename or move {others}.')

    @classmethod
    def find_classes(cls, folder: str) -> List[str]:
        """List the names of the classes of a folder.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it has fewer than two folders.
        """
        if not osp.isdir(folder):
            raise FileNotFoundError(
                f'{cls.__name__} found no folder {osp.abspath(folder)}, '
                'expected one with a folder of pictures per class. Check the '
                'path.')
        classes = cls._list_folders(folder)
        if len(classes) < 2:
            raise ValueError(
                f'{cls.__name__} found the folders {classes} in '
                f'{osp.abspath(folder)}, expected a folder of pictures for '
                'each of at least 2 classes. Sort the pictures into them.')
        return classes

    @staticmethod
    def _list_folders(folder: str) -> List[str]:
        return sorted(
            entry.name for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith('.'))

    def load_split(self, split: str) -> List[dict]:
        """List the pictures of a split."""
        classes = self.metainfo['classes']
        unknown = set(self._list_folders(self.folder)) - set(classes)
        if unknown:
            raise ValueError(
                f'{type(self).__name__} found the folders {sorted(unknown)} '
                f'in {self.folder}, expected only the classes '
                f'{tuple(classes)}. Rename or remove them.')
        data_list = []
        others = [osp.join(self.folder, file) for file in scandir(self.folder)]
        for label, name in enumerate(classes):
            folder = osp.join(self.folder, name)
            pictures = []
            for file in sorted(
                    scandir(folder, recursive=True) if osp.isdir(folder) else (
                    )):
                is_picture = file.lower().endswith(IMG_EXTENSIONS)
                (pictures if is_picture else others).append(
                    osp.join(folder, file))
            if not pictures and split == 'train':
                raise ValueError(
                    f'{type(self).__name__} found no picture in {folder}, '
                    'expected some of this class. Add pictures, or remove '
                    'the folder.')
            data_list += [
                dict(img_path=path, gt_label=label) for path in pictures
            ]
        if others:
            warnings.warn(
                f'{type(self).__name__} left out {len(others)} files that are '
                'in no folder of a class or are no pictures by their '
                f'extension, the first is {others[0]}; it reads '
                f'{", ".join(IMG_EXTENSIONS)}.')
        return data_list

    def _take_part(self, data_list: List[dict]) -> List[dict]:
        # Of few pictures, about one of each class.
        share = len(self.metainfo['classes']) / len(data_list)
        self.val_split = max(self.val_split, share)
        return super()._take_part(data_list)
