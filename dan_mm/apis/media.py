# Copyright (c) dan_mm contributors. All rights reserved.
import math
import os
import os.path as osp
import stat
from os import PathLike
from typing import Iterator, List, NamedTuple, Optional, Sequence, Union

import cv2
import numpy as np
from PIL import Image

from dan_mm.datasets import LoadCheckedImage
from dan_mm.datasets.folder import list_images

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg',
          '.wmv', '.flv', '.ogv')
# What FFmpeg may take a file for, whatever its extension is. Others of its
# formats are lists of other files and URLs, which it would open.
FFMPEG_OPTIONS = ('format_whitelist;mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,'
                  'mpeg,mpegvideo,mpegts,asf,flv,ogg')
# Those that have the number of their frames; in others it is an estimate.
COUNTED = ('.mp4', '.avi', '.mov', '.m4v')
# How many frames in a row may be broken before a video is given up
MAX_BROKEN = 100
MAX_FILE = 2**30  # bytes of a picture

Source = Union[str, PathLike, int, np.ndarray, 'Picture']


class Picture(NamedTuple):
    """A picture, or a frame of a video.

    Args:
        img (ndarray, optional): BGR, uint8 of shape ``(H, W, 3)``. None where
            it is broken.
        path (str, optional): The file or the camera that it is from.
        frame (int, optional): In a video, its number, from 0, among those
            that FFmpeg gives: it skips some broken ones without a word.
        time (float, optional): In a video, its time in seconds.
        error (str, optional): What is wrong with it.
    """
    img: Optional[np.ndarray]
    path: Optional[str] = None
    frame: Optional[int] = None
    time: Optional[float] = None
    error: Optional[str] = None


def is_video(source: Source) -> bool:
    """Whether a source is a video by its extension, or a camera."""
    return isinstance(
        source, int) or (isinstance(source, (str, PathLike))
                         and osp.splitext(str(source))[1].lower() in VIDEOS)


def expand(inputs: Union[Source, Sequence[Source]]) -> List[Source]:
    """List the sources that an input means.

    Args:
        inputs (str | PathLike | int | ndarray | Sequence): A file, a folder
            with its folders, the number of a camera, a picture, or a list of
            these.

    Returns:
        list: Files, numbers of cameras and pictures.

    What of a list is no source becomes a picture with an error.

    Raises:
        FileNotFoundError: If a single input is no file or folder.
        OSError: If a single folder can't be read.
        TypeError: If an input is something else.
        ValueError: If a single folder has no pictures or videos.
    """
    if isinstance(inputs, Picture):
        return [inputs]
    if isinstance(inputs, (list, tuple)):
        sources = []
        for item in inputs:
            # One that is missing is an error of its own, later.
            folder = isinstance(item, (str, PathLike)) and osp.isdir(str(item))
            try:
                sources += expand(item) if folder else [_checked(item)]
            except (OSError, ValueError) as error:
                sources.append(Picture(None, str(item), error=str(error)))
        return sources
    inputs = _checked(inputs)
    if not isinstance(inputs, str):
        return [inputs]
    if osp.isdir(inputs):
        pictures, others = list_images(inputs)
        videos = [path for path in others if is_video(path)]
        if not pictures and not videos:
            raise ValueError(
                f'Found no pictures or videos by their extensions in '
                f'{osp.abspath(inputs)}, expected some. Check the path.')
        return sorted([*pictures, *videos])
    if not osp.exists(inputs):
        raise FileNotFoundError(f'Found no file or folder {inputs}. Check the '
                                'path.')
    return [inputs]


def _checked(source: Source) -> Source:
    if isinstance(source, PathLike):
        return str(source)
    known = Picture, str, int, np.ndarray
    if isinstance(source, known) and not isinstance(source, bool):
        return source
    raise TypeError(
        f'Got an input of the type {type(source).__name__}, expected a path, '
        'a picture as an array, the number of a camera, or a list of these.')


def read(sources: Sequence[Source]) -> Iterator[Picture]:
    """Read pictures and frames, one after the other.

    What can't be read becomes a picture with an error and stops no other.

    Args:
        sources (Sequence): See :func:`expand`.

    Yields:
        Picture: The pictures and frames, in order.
    """
    for source in sources:
        try:
            if is_video(source):
                yield from read_video(source)
            elif isinstance(source, np.ndarray):
                yield _read_array(source)
            elif isinstance(source, Picture):
                yield source
            else:
                yield Picture(read_image(source), source)
        except Exception as error:
            path = source if isinstance(source, str) else None
            yield Picture(None, path, error=describe(error))


def describe(error: Exception) -> str:
    """Say what happened; errors that are no sentence of ours need their
    type."""
    if isinstance(error, (OSError, ValueError)) and str(error):
        return str(error)
    return f'{type(error).__name__}: {error}'


def count(sources: Sequence[Source]) -> Optional[int]:
    """Count the pictures and frames of sources, as far as they say.

    Args:
        sources (Sequence): See :func:`expand`.

    Returns:
        int | None: Their number; None with a camera, which has no end.
    """
    total = 0
    for source in sources:
        if isinstance(source, int):
            return None
        frames = 1
        # Of a pipe, the first one would be waited for.
        if is_video(source) and osp.isfile(source):
            video = open_video(source)
            frames = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
            video.release()
        total += frames
    return total


def _read_array(img: np.ndarray) -> Picture:
    if img.dtype != np.uint8 or img.size == 0 or not (
            img.ndim == 2 or img.ndim == 3 and img.shape[2] in (1, 3, 4)):
        return Picture(
            None,
            error=f'Got an array of the type {img.dtype} and the shape '
            f'{img.shape}, expected a picture: uint8 of shape (H, W, 3), BGR, '
            'or (H, W).')
    if img.ndim == 2 or img.shape[2] == 1:
        return Picture(cv2.cvtColor(img, cv2.COLOR_GRAY2BGR))
    return Picture(np.ascontiguousarray(img[..., :3]))


def read_image(path: str) -> np.ndarray:
    """Read an image from a file: what Pillow reads, HEIC and AVIF included.

    Args:
        path (str): The file.

    Returns:
        ndarray: BGR, uint8 of shape ``(H, W, 3)``, turned upright by its EXIF.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it can't be read.
        ValueError: If it is no file, too large, broken or no image.
    """
    if '://' in path:
        # MMEngine would open it.
        raise ValueError(f'Got the address {path}, expected a file. Download '
                         'it first.')
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'Found no picture {path}. Check the path.') from None
    except OSError as error:
        raise OSError(f'The picture {path} can not be read ({error}), '
                      'expected a file. Check the path.') from error
    # A pipe would never end.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{path} is no regular file, expected an image. Save '
                         'it as a file.')
    if status.st_size > MAX_FILE:
        raise ValueError(
            f'The picture {path} has {status.st_size} bytes, expected at most '
            f'{MAX_FILE}. Shrink it.')
    return LoadCheckedImage()(dict(img_path=path))['img']


def read_video(source: Union[str, int]) -> Iterator[Picture]:
    """Read the frames of a video or a camera, one after the other.

    Args:
        source (str | int): The path of the video, or the number of the
            camera.

    Yields:
        Picture: The frames. One that is broken has an error; so has a video
        that can't be opened or has no frames.
    """
    path = f'camera {source}' if isinstance(source, int) else source
    if isinstance(source, str) and not osp.isfile(source):
        yield Picture(
            None, path, error=f'Found no video {path}. Check the path.')
        return
    # OpenCV tells the reason to nobody but its log.
    if isinstance(source, str) and os.path.getsize(source) == 0:
        yield Picture(
            None,
            path,
            error=f'The video {path} is an empty file of 0 bytes, expected '
            'one with frames.')
        return
    # OpenCV takes numbers of cameras of 32 bits.
    known = not isinstance(source, int) or 0 <= source < 100
    video = open_video(source) if known else cv2.VideoCapture()
    try:
        if not video.isOpened():
            yield Picture(None, path, error=_not_opened(source))
            return
        yield from _read_frames(video, source, path)
    finally:
        video.release()


def open_video(source: Union[str, int]) -> cv2.VideoCapture:
    """Open a video that names no other files.

    Args:
        source (str | int): The path of the video, or the number of the
            camera.

    Returns:
        VideoCapture: The video. It says whether it is open.
    """
    # OpenCV has no other way to tell FFmpeg.
    os.environ.setdefault('OPENCV_FFMPEG_CAPTURE_OPTIONS', FFMPEG_OPTIONS)
    return cv2.VideoCapture(source)


def _not_opened(source: Union[str, int]) -> str:
    if isinstance(source, int):
        return (f'Found no camera {source}, expected one that is connected, '
                'allowed and not in use. Try another number, from 0.')
    return (f'The video {source} can not be opened, expected a whole file in '
            'a format that OpenCV reads. Convert it, for example with '
            f'`ffmpeg -i {source} new.mp4`.')


def _read_frames(video: cv2.VideoCapture, source: Union[str, int],
                 path: str) -> Iterator[Picture]:
    width = video.get(cv2.CAP_PROP_FRAME_WIDTH)
    height = video.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        yield Picture(
            None,
            path,
            error=f'The video {path} has frames of {width:.0f}x{height:.0f} '
            f'pixels, expected at most {Image.MAX_IMAGE_PIXELS}. Shrink it.')
        return
    camera = isinstance(source, int)
    rate = video.get(cv2.CAP_PROP_FPS)
    total = 0 if camera else int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    frame = read = 0
    while True:
        broken = []
        while not (grabbed := video.read())[0]:
            # A broken frame, or the end
            if camera or frame >= total or len(broken) >= MAX_BROKEN:
                break
            broken.append(
                Picture(
                    None,
                    path,
                    frame,
                    error=f'The frame {frame} of the video {path} is broken.'))
            frame += 1
        found, img = grabbed
        if not found:
            break
        yield from broken
        # Some formats do not know it.
        time = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if frame and not time and rate > 0:
            time = frame / rate
        yield _read_array(img)._replace(
            path=path, frame=frame, time=round(time, 3))
        frame += 1
        read += 1
    if not read:
        yield Picture(
            None,
            path,
            error=f'The camera {source} gave no picture. Check that it is '
            'allowed and not in use.' if camera else
            f'The video {path} has no frame that can be read, expected some. '
            'Check the file.')
    elif len(broken) > (0 if path.lower().endswith(COUNTED) else 2):
        yield Picture(
            None,
            path,
            error=f'The video {path} has {total} frames by its header, of '
            f'which {read} could be read: it is broken or cut off.')
