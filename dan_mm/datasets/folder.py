# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import warnings
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from mmpretrain.registry import DATASETS
from torchvision.datasets.folder import IMG_EXTENSIONS

from .alignment import ALIGNMENT, REPORT
from .base import FERDataset, canonical_name

# Of a moving picture, the first frame counts.
EXTENSIONS = (*IMG_EXTENSIONS, '.gif', '.jfif', '.avif')
# What copies of the data sets call the folders of their splits.
SPLITS = dict(
    train=('train', 'training', 'train_set', 'train_class',
           'train_aligned_faces'),
    val=('val', 'valid', 'validation', 'val_set', 'val_class',
         'val_aligned_faces', 'val_aligned_faces_new'),
    test=('test', 'testing', 'test_set', 'test_aligned_faces'))
# Why an entry of a folder is no picture.
HIDDEN = 'hidden'
NO_PICTURE = 'no picture by its extension'
LOOP = 'link to a folder that it is in'
MISSING = 'link to nowhere'


def split_of(name: str) -> Optional[str]:
    """Get the split that the name of a folder means, if any."""
    return next((split for split in SPLITS if name.lower() in SPLITS[split]),
                None)


def list_folders(folder: str) -> List[str]:
    """List the names of the folders in a folder, but for hidden ones and
    links to a folder that they are in.

    Raises:
        FileNotFoundError: If one may be a link to nowhere.
    """
    names = []
    parents = [osp.realpath(folder)]
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            continue
        if _is_folder(entry):
            if not _leads_up(entry, parents):
                names.append(entry.name)
        elif _is_missing(entry) and not _has_extension(entry):
            raise FileNotFoundError(
                f'{osp.abspath(entry.path)} is a link to '
                f'{os.readlink(entry.path)!r}, where nothing is, expected a '
                'folder there. Restore the folder, or remove the link.')
    return sorted(names)


# A link that leads to itself is an error for `entry`, not for `os.path`.
def _is_folder(entry: os.DirEntry) -> bool:
    return osp.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_missing(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not osp.exists(entry.path)


def _has_extension(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(EXTENSIONS)


def _leads_up(entry: os.DirEntry, parents: Sequence[str]) -> bool:
    if not entry.is_symlink():
        return False
    target = osp.join(osp.realpath(entry.path), '')
    return any(osp.join(path, '').startswith(target) for path in parents)


def scan(
    folder: str,
    recursive: bool = True,
    parents: Sequence[str] = ()
) -> Iterator[Tuple[str, str]]:
    """Look at what is in a folder, and in its folders but for hidden ones and
    links to a folder that they are in.

    Args:
        folder (str): The folder.
        recursive (bool): Whether to look into its folders, which otherwise
            are left out. Defaults to True.
        parents (Sequence[str]): The real paths of the folders that have led
            to it. Defaults to ``()``.

    Yields:
        tuple[str, str]: A path, and why it is no picture, '' for one.
    """
    parents = (*parents, osp.realpath(folder))
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            yield entry.path, HIDDEN
        elif _is_folder(entry):
            if _leads_up(entry, parents):
                yield entry.path, LOOP
            elif recursive:
                yield from scan(entry.path, True, parents)
        elif _is_missing(entry):
            yield entry.path, MISSING
        else:
            is_picture = _has_extension(entry) and entry.is_file()
            yield entry.path, '' if is_picture else NO_PICTURE


def list_pictures(folder: str) -> Tuple[List[str], List[str]]:
    """List the files in a folder and in its folders, but for hidden ones.

    Returns:
        tuple[list[str], list[str]]: The paths of pictures by their extension
        and links to nowhere, and of others.
    """
    pictures, others = [], []
    for path, reason in sorted(scan(folder)):
        if reason != HIDDEN:
            (pictures if reason in ('', MISSING) else others).append(path)
    return pictures, others


def _find(root: str, meaning: Callable[[str], Optional[str]]) -> Dict:
    found = {}
    for name in list_folders(root):
        key = meaning(name)
        if key is not None and key in found:
            raise ValueError(
                f'{osp.abspath(root)} has the folders {found[key]!r} and '
                f'{name!r}, which both mean {key!r}, expected one of them. '
                'Join them, or move one away.')
        if key is not None:
            found[key] = name
    return {key: osp.join(root, name) for key, name in found.items()}


def find_splits(root: str) -> Dict[str, str]:
    """Find the folders of the splits, under any of their usual names.

    Returns:
        dict[str, str]: The folder of each split that is there.

    Raises:
        ValueError: If two folders mean the same split.
    """
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
    """Find the folders of the classes, under any of their usual names.

    Args:
        folder (str): The folder of a split.
        classes (Sequence[str]): The classes in the order of their indices.
        numbered (bool): Whether the indices are names, too. Defaults to
            False.

    Returns:
        dict[str, str]: The folder of each class that is there.

    Raises:
        ValueError: If a folder means none of the classes, or two the same.
    """
    known = {canonical_name(name): name for name in classes}
    if numbered:
        known.update((str(i), name) for i, name in enumerate(classes))
    unknown = [
        name for name in list_folders(folder)
        if canonical_name(name) not in known
    ]
    if unknown:
        numbers = f' or 0 to {len(classes) - 1}' if numbered else ''
        raise ValueError(
            f'{osp.abspath(folder)} has the folders {unknown}, expected only '
            f'those of the classes {tuple(classes)}{numbers}. Rename or move '
            'them, or convert the data set with tools/dataset_converters.')
    return _find(folder, lambda name: known[canonical_name(name)])


class ClassFolders(FERDataset):
    """The common part of the data sets with a folder per class in a folder
    per split: ::

        data_root
        ├── train
        │   ├── happiness
        │   │   ├── xxx.jpg
        │   │   └── ...
        │   └── ...
        ├── val
        └── test

    Other usual names of splits are known (`Training`, `validation`,
    `Train_Aligned_Faces`), so are those of classes (`Happy`), in any case, and
    where a subclass sets ``NUMBERED`` their official indices. Files that are
    in no folder of a class, or are no pictures by their extension, are left
    out with a warning that names one.

    See :class:`FERDataset` for the arguments and errors.
    """

    NUMBERED = False

    def load_split(self, split: str) -> List[dict]:
        """List the pictures of a split."""
        splits = find_splits(self.data_root)
        if split not in splits:
            advice = ('set `val_split=0.1` to take a tenth of the training '
                      'set for validation'
                      if split == 'val' else 'use another split')
            raise FileNotFoundError(
                f'{type(self).__name__} found folders of the splits '
                f'{list(splits)} in {osp.abspath(self.data_root)}, expected '
                f'one of {split!r}. Check `data_root`, or {advice}.')
        folder = splits[split]
        # Of AffectNet-7 that has the eighth, too.
        known = type(self).METAINFO['classes']
        found = find_classes(folder, known, self.NUMBERED)
        folders = [
            found.get(name, osp.join(folder, name))
            for name in self.own_classes
        ]
        return self._list_classes(folder, folders, split)

    def _list_classes(self, folder: str, folders: List[str],
                      split: str) -> List[dict]:
        """List the pictures in the folders of the classes, in the order of
        their indices, in a folder."""
        data_list = []
        others = [
            path for path, reason in scan(folder, recursive=False)
            if reason != HIDDEN and osp.basename(path) not in (ALIGNMENT,
                                                               REPORT)
        ]
        known = list_folders(folder)
        for label, path in enumerate(folders):
            found = sorted(scan(path)) if osp.basename(path) in known else []
            pictures = [file for file, reason in found if not reason]
            missing = [file for file, reason in found if reason == MISSING]
            if missing:
                raise FileNotFoundError(
                    f'{type(self).__name__} found {len(missing)} links to '
                    f'nowhere in {path}, the first is {missing[0]}, expected '
                    'pictures. Restore what they lead to, or remove them.')
            others += [
                file for file, reason in found if reason in (NO_PICTURE, LOOP)
            ]
            if not pictures and split == 'train':
                raise ValueError(
                    f'{type(self).__name__} found no picture in {path}, '
                    'expected some of this class. Add pictures, or remove '
                    'the folder.')
            data_list += [
                dict(img_path=picture, gt_label=label) for picture in pictures
            ]
        if others:
            warnings.warn(
                f'{type(self).__name__} left out {len(others)} files that are '
                'in no folder of a class or are no pictures by their '
                f'extension, the first is {others[0]}; it reads '
                f'{", ".join(EXTENSIONS)}.')
        return data_list


@DATASETS.register_module()
class FERFolder(ClassFolders):
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
        # It is other data, whatever its classes are.
        name = osp.basename(osp.abspath(data_root))
        self._metainfo['dataset_name'] = f'the folder {name}'

    def _check_splits(self, data_root: str, parted: bool) -> None:
        folders = list_folders(data_root)
        splits = {'train', 'val', 'test'}
        # Other names of splits, which would be taken for classes.
        others = sorted(
            set(folders) -
            splits if parted else [name for name in folders if split_of(name)])
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
        classes = list_folders(folder)
        if len(classes) < 2:
            raise ValueError(
                f'{cls.__name__} found the folders {classes} in '
                f'{osp.abspath(folder)}, expected a folder of pictures for '
                'each of at least 2 classes. Sort the pictures into them.')
        return classes

    def load_split(self, split: str) -> List[dict]:
        """List the pictures of a split."""
        unknown = set(list_folders(self.folder)) - set(self.own_classes)
        if unknown:
            raise ValueError(
                f'{type(self).__name__} found the folders {sorted(unknown)} '
                f'in {self.folder}, expected only the classes '
                f'{self.own_classes}. Rename or remove them.')
        folders = [osp.join(self.folder, name) for name in self.own_classes]
        return self._list_classes(self.folder, folders, split)

    def _take_part(self, data_list: List[dict]) -> List[dict]:
        # Of few pictures, about one of each class.
        share = len(self.own_classes) / len(data_list)
        self.val_split = max(self.val_split, share)
        return super()._take_part(data_list)
