# Copyright (c) dan_mm contributors. All rights reserved.
import hashlib
import os
import os.path as osp
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import sleep
from typing import Callable, Iterator, List, Sequence, Tuple

import numpy as np
from mmcv.transforms import Resize
from rich.progress import track

from dan_mm.files import atomic_write, lock_folder
from dan_mm.reading.images import MAX_SIDE
from .alignment import AlignFace
from .loading import LoadCheckedImage

# What gives the same image each time
DETERMINISTIC = (LoadCheckedImage, AlignFace, Resize)
# Each row: where the image begins, its height, width and channels, the height
# and width of its file, and how many transforms it went through.
COLUMNS = 7
SAMPLES = 64


class ImageCache:
    """Decoded images in a file that is mapped into memory, which all workers
    and processes share.

    Each image has gone through the transforms at the beginning of a pipeline
    that are not random, up to where it is smallest: it is there at the size of
    its file, or resized where that is smaller. The file is made where it is
    missing, or where an image has changed.

    Args:
        folder (str): The folder of the file, which is made.
        name (str): The name of the dataset, for that of the file.
        data_list (Sequence[dict]): The samples, with ``img_path``.
        transforms (Sequence[Callable]): Those of the pipeline.

    Raises:
        OSError: If the file can't be written, or the disk is too small.
        ValueError: If the first transform does not load an image, or an image
            is broken.
    """

    def __init__(self, folder: str, name: str, data_list: Sequence[dict],
                 transforms: Sequence[Callable]) -> None:
        self.transforms: List[Callable] = []
        for transform in transforms:
            if not isinstance(transform, DETERMINISTIC):
                break
            self.transforms.append(transform)
        if not self.transforms:
            raise ValueError(
                f'{name} got a cache for a pipeline that begins with '
                f'{transforms[:1]}, expected LoadCheckedImage. Set '
                '`cache=None`.')
        samples = [(osp.relpath(info['img_path'], folder),
                    str(info.get('keypoints')), str(info.get('bbox')))
                   for info in data_list]  # yapf: disable
        kind = _digest(repr((samples, self.transforms)))[:8]
        self.path = osp.join(folder, f'{name}-{kind}.bin')
        stats = [os.stat(info['img_path']) for info in data_list]
        self.version = _digest(
            repr([(stat.st_size, stat.st_mtime_ns) for stat in stats]))
        os.makedirs(folder, exist_ok=True)
        with _wait(folder):
            if not self._is_valid(len(data_list)):
                self._write(data_list)
        self._map()

    def __getitem__(self, row: int) -> Tuple[dict, int]:
        """Get the image of a sample, as transforms put it into a dict, and how
        many of them it went through."""
        start, height, width, channels, *original, step = (
            self.index[row].tolist())
        shape = (height, width, channels) if channels else (height, width)
        end = start + height * width * max(channels, 1)
        # A copy: transforms may write into it.
        img = self.data[start:end].reshape(shape).copy()
        results = dict(
            img=img, img_shape=img.shape[:2], ori_shape=tuple(original))
        return results, step

    def __getstate__(self) -> dict:
        # Workers that are not forked map the file themselves.
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ('index', 'data')
        }

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        # Arrays of the class `memmap` are slow to slice.
        self.index = np.asarray(np.load(self._index_path, mmap_mode='r'))
        self.data = np.asarray(np.memmap(self.path, np.uint8, 'r'))

    @property
    def _index_path(self) -> str:
        return self.path[:-len('.bin')] + f'-{self.version[:16]}.npy'

    def _is_valid(self, length: int) -> bool:
        """Whether the file is there, of these versions of the images."""
        try:
            self._map()
        except (EOFError, OSError, ValueError):
            return False
        index = self.index
        if not (index.dtype == np.int64 and index.shape == (length, COLUMNS)):
            return False
        start, height, width, channels, *_, step = index.T
        limits = ((start, 0, len(self.data)), (height, 1, MAX_SIDE),
                  (width, 1, MAX_SIDE), (channels, 0,
                                         4), (step, 1, len(self.transforms)))
        if not all(((low <= column) & (column <= high)).all()
                   for column, low, high in limits):
            return False
        ends = start + height * width * channels.clip(1)
        return bool((ends <= len(self.data)).all())

    def _read(self, info: dict) -> Tuple[np.ndarray, tuple, int]:
        """Read an image and pick where it is smallest."""
        results, best = dict(info), None
        for step, transform in enumerate(self.transforms, 1):
            results = transform(results)
            img = results['img']
            if best is None or img.size <= best[0].size:
                best = img, results['ori_shape'], step
        return best

    def _write(self, data_list: Sequence[dict]) -> None:
        """Write all images, and say before how much disk they take."""
        spread = np.linspace(0, len(data_list) - 1, SAMPLES).astype(int)
        sizes = [self._read(data_list[i])[0].size for i in set(spread)]
        size = int(np.mean(sizes) * len(data_list))
        folder = osp.dirname(self.path)
        free = shutil.disk_usage(folder).free
        if size > 0.9 * free:
            raise OSError(f'{folder} has {free / 1e9:.1f} GB free, expected '
                          f'{size / 0.9e9:.1f}')
        print(f'Decoded images take {size / 1e6:.0f} MB in {self.path}, '
              'written once. To do without: `cache=None`.')
        # An index must not outlive its images.
        prefix = osp.basename(self.path)[:-len('.bin')] + '-'
        for other in os.listdir(folder):
            if other.startswith(prefix):
                os.remove(osp.join(folder, other))
        index = np.zeros((len(data_list), COLUMNS), np.int64)
        end = 0
        with atomic_write(self.path) as temporary:
            with open(temporary, 'wb') as file, ThreadPoolExecutor(
                    min(os.cpu_count() or 1, 8)) as pool:
                for row, (img, original, step) in track(
                        enumerate(_map_ahead(pool, self._read, data_list)),
                        'Decoding',
                        total=len(data_list),
                        transient=True):
                    index[row] = (end, *img.shape, *(0, ) * (3 - img.ndim),
                                  *original, step)
                    end += img.size
                    file.write(np.ascontiguousarray(img))
        with atomic_write(self._index_path) as temporary:
            with open(temporary, 'wb') as file:
                np.save(file, index)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()


def _map_ahead(pool: ThreadPoolExecutor, function: Callable,
               items: Sequence) -> Iterator:
    """Map in threads, a few items ahead: results would fill the memory."""
    ahead = []
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= 64:
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()


def _wait(folder: str) -> ExitStack:
    """Lock a folder, as soon as no other process writes to it."""
    stack = ExitStack()
    while True:
        try:
            stack.enter_context(lock_folder(folder))
            return stack
        except BlockingIOError:
            sleep(0.5)
