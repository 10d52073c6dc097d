# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import time
import warnings
from itertools import count, groupby
from os import PathLike
from threading import Thread
from typing import Iterator, List, Sequence, Tuple, Union

import cv2
import numpy as np

from dan_mm.errors import list_some
from dan_mm.imaging import prepare_image
from dan_mm.reading import InputImage, MediaReader
from dan_mm.reading.folders import list_images

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg',
          '.wmv', '.asf', '.flv', '.f4v', '.ogv', '.3gp', '.3g2', '.ts',
          '.mts', '.m2ts', '.m2v', '.vob')

MAX_BATCH = 2**25  # pixels of images that are taken together

Source = Union[str, PathLike, int, np.ndarray, InputImage]


def is_video(source: Source) -> bool:
    """Whether a source is a video by its extension, or a camera."""
    return isinstance(
        source, int) or (isinstance(source, (str, PathLike))
                         and osp.splitext(str(source))[1].lower() in VIDEOS)


def expand(inputs: Union[Source, Sequence[Source]]) -> List[Source]:
    """List the sources that an input means: a file, a folder with its
    subfolders, the number of a camera, an image, or a list of these.

    What of a list is no source becomes an image with an error. A single input
    raises FileNotFoundError if it is missing, ValueError if it is a folder
    without images and videos, and TypeError if it is something else.
    """
    if isinstance(inputs, InputImage):
        return [inputs]
    if isinstance(inputs, (list, tuple)):
        sources = []
        for item in inputs:
            # One that is missing is an error of its own, later.
            folder = isinstance(item, (str, PathLike)) and osp.isdir(str(item))
            try:
                sources += expand(item) if folder else [_checked(item)]
            except (OSError, ValueError) as error:
                sources.append(InputImage(None, str(item), error=str(error)))
        return sources
    inputs = _checked(inputs)
    if not isinstance(inputs, str):
        return [inputs]
    if osp.isdir(inputs):
        images, others = list_images(inputs)
        videos = [path for path in others if is_video(path)]
        if not images and not videos:
            raise ValueError(
                f'Found no images or videos by their extensions in '
                f'{osp.abspath(inputs)}, expected some. Check the path.')
        skipped = [
            osp.relpath(path, inputs) for path in others if not is_video(path)
        ]
        if skipped:
            warnings.warn(
                f'Files in {inputs} that are no images or videos by their '
                f'extensions are skipped: {list_some(skipped, 5)}.')
        return sorted([*images, *videos])
    if not osp.exists(inputs):
        raise FileNotFoundError(f'Found no file or folder {inputs}. Check the '
                                'path.')
    return [inputs]


def _checked(source: Source) -> Source:
    if isinstance(source, (str, PathLike)):
        return str(source)
    if (isinstance(source, (InputImage, int, np.ndarray))
            and not isinstance(source, bool)):
        return source
    raise TypeError(
        f'Got an input of the type {type(source).__name__}, expected a path, '
        'an image as an array, the number of a camera, or a list of these.')


def place_in_tree(source: str, inputs: Sequence[Source]) -> str:
    """Get the relative path of a result in the tree of the inputs: that of
    the source in the folder that was given, or its name."""
    for item in inputs[::-1]:
        if isinstance(item, (str, PathLike)) and osp.isdir(item):
            root = osp.abspath(item)
            if osp.abspath(source).startswith(osp.join(root, '')):
                return osp.relpath(source, root)
    return osp.basename(source)


def read(sources: Sequence[Source],
         reader: MediaReader) -> Iterator[InputImage]:
    """Read images and frames of :func:`expand`, one after the other. What
    can't be read has an error, and stops no other."""
    for kind, group in groupby(sources, type):
        if kind is str:
            yield from reader.read([(path, is_video(path)) for path in group])
            continue
        for source in group:
            if isinstance(source, int):
                yield from _read_camera(source)
            elif isinstance(source, np.ndarray):
                try:
                    img = np.ascontiguousarray(prepare_image(source)[0])
                    yield InputImage(img)
                except ValueError as error:
                    yield InputImage(None, error=str(error))
            else:
                yield source


def _read_camera(number: int) -> Iterator[InputImage]:
    path = f'camera {number}'
    # OpenCV takes numbers of 32 bits.
    camera = cv2.VideoCapture(*[number] * (0 <= number < 100))
    try:
        if not camera.isOpened():
            yield InputImage(
                None,
                path,
                error=f'Found no camera {number}. Check that it is connected, '
                'allowed and not in use.')
            return
        start = time.monotonic()
        for frame in count():
            found, img = camera.read()
            if not found:
                break
            yield InputImage(img, path, frame, time.monotonic() - start)
        if not frame:
            yield InputImage(
                None,
                path,
                error=f'The camera {number} gave no image. Check that it is '
                'allowed and not in use.')
    finally:
        camera.release()


def prefetch(items: Iterator) -> Iterator:
    """Take the next item in a thread while one is used. An item is never
    None."""

    def take(taken: list) -> None:
        try:
            taken.append(next(items, None))
        except BaseException as error:
            taken.append(error)

    def start() -> Tuple[Thread, list]:
        taken: list = []
        # A program that ends waits for no image.
        thread = Thread(target=take, args=(taken, ), daemon=True)
        thread.start()
        return thread, taken

    thread, taken = start()
    while True:
        thread.join()
        item = taken.pop()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return
        thread, taken = start()
        yield item
        del item


def batches(images: Iterator[InputImage],
            size: int) -> Iterator[List[InputImage]]:
    """Take at most ``size`` images together, as far as memory allows."""
    batch, pixels = [], 0
    for image in images:
        batch.append(image)
        pixels += 0 if image.img is None else image.img[..., 0].size
        # The next one may be large, too.
        del image
        if len(batch) == size or pixels > MAX_BATCH:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
