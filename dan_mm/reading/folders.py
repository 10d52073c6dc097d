# Copyright (c) dan_mm contributors. All rights reserved.
"""What is in a folder."""
import os
import os.path as osp
from typing import Iterator, List, Sequence, Tuple

# Of an animation, the first frame is read.
EXTENSIONS = ('.avif', '.bmp', '.gif', '.heic', '.heif', '.jfif', '.jpeg',
              '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# What operating systems, file managers and network storage leave in folders,
# beside names with a leading dot
LEFT_BEHIND = frozenset(
    ('#recycle', '#snapshot', '$recycle.bin', '@eadir', '@recycle', '@tmp',
     '__macosx', '__pycache__', 'desktop.ini', 'ehthumbs.db', 'icon\r',
     'lost+found', 'recycler', 'system volume information', 'thumbs.db'))
# Why an entry of a folder is no image
HIDDEN = 'hidden'
NO_IMAGE = 'no image by its extension'
FOLDER = 'folder'
LOOP = 'link to a folder that it is in'
MISSING = 'broken link'


def _classify(entry: os.DirEntry, parents: Sequence[str]) -> str:
    """Get the reason why an entry is no image, '' for one."""
    if entry.name.startswith('.') or entry.name.lower() in LEFT_BEHIND:
        return HIDDEN
    is_image = entry.name.lower().endswith(EXTENSIONS)
    if not entry.is_symlink():
        if entry.is_dir():
            return FOLDER
    elif osp.isdir(entry.path):
        target = osp.join(osp.realpath(entry.path), '')
        is_loop = any(
            osp.join(path, '').startswith(target) for path in parents)
        return LOOP if is_loop else FOLDER
    elif not osp.exists(entry.path):
        return MISSING
    return '' if is_image and entry.is_file() else NO_IMAGE


def scan(
    folder: str,
    recursive: bool = True,
    parents: Sequence[str] = ()
) -> Iterator[Tuple[str, str]]:
    """Yield the paths in a folder, and in its subfolders if ``recursive``,
    with the reason why each is no image, '' for one. Hidden folders and links
    to a parent folder are not entered."""
    parents = (*parents, osp.realpath(folder))
    for entry in os.scandir(folder):
        reason = _classify(entry, parents)
        if reason != FOLDER:
            yield entry.path, reason
        elif recursive:
            yield from scan(entry.path, True, parents)


def list_folders(folder: str) -> List[str]:
    """List the names of the subfolders of a folder, as :func:`scan` does."""
    names = []
    for entry in os.scandir(folder):
        reason = _classify(entry, [osp.realpath(folder)])
        if reason == MISSING and not entry.name.lower().endswith(EXTENSIONS):
            raise FileNotFoundError(
                f'{osp.abspath(entry.path)} is a broken link to '
                f'{os.readlink(entry.path)!r}. Restore or remove it.')
        if reason == FOLDER:
            names.append(entry.name)
    return sorted(names)


def list_images(folder: str) -> Tuple[List[str], List[str]]:
    """List the images (by their extension, with broken links) and the other
    files in a folder and its subfolders, except hidden ones."""
    images, others = [], []
    for path, reason in sorted(scan(folder)):
        if reason != HIDDEN:
            (images if reason in ('', MISSING) else others).append(path)
    return images, others
