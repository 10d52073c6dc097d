# Copyright (c) dan_mm contributors. All rights reserved.
import io
import os
import re
import stat
from contextlib import suppress
from typing import NamedTuple, Optional, Tuple

import cv2
import numpy as np

try:
    import pi_heif
    from PIL import ExifTags, Image, UnidentifiedImageError
except ImportError:  # where an export folder runs; OpenCV reads less
    Image = None

# Pillow knows more, among them PostScript, which Ghostscript would run.
FORMATS = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
# Within these, decoding an image takes at most 1.3 GB.
# How files start that OpenCV reads as Pillow does
SIGNATURES = dict(
    BMP=b'BM',
    JPEG=b'\xff\xd8\xff',
    PNG=b'\x89PNG',
    TIFF=b'(II\\*\0|MM\0\\*)',
    WEBP=b'RIFF....WEBP')
MAX_FILE = 2**27  # bytes
MAX_PIXELS = 110_000_000  # phones take 108 megapixels
MAX_SIDE = 65500  # of a JPEG; what is longer is no photograph
MAX_EXIF = 2**16  # bytes, as in a JPEG
STRIP = 2**20  # pixels that are converted at once


class InputImage(NamedTuple):
    """An image, or a frame of a video.

    Args:
        img (ndarray, optional): BGR, uint8 of shape ``(H, W, 3)``. None where
            it is broken.
        path (str, optional): The file, or the camera. None for an array.
        frame (int, optional): In a video, the number of the frame, from 0.
        time (float, optional): In a video, its time in seconds.
        error (str, optional): What is wrong with it.
        duration (float, optional): In a video, how long the frame is shown,
            in seconds.
        frames (int, optional): How many frames its video has by its header,
            which may be wrong.
    """
    img: Optional[np.ndarray]
    path: Optional[str] = None
    frame: Optional[int] = None
    time: Optional[float] = None
    error: Optional[str] = None
    duration: Optional[float] = None
    frames: Optional[int] = None


def check_regular(path: str, kind: str) -> os.stat_result:
    """Check that a path is a regular file.

    Args:
        path (str): The path.
        kind (str): What it should be, for the message.

    Returns:
        os.stat_result: Its status.

    Raises:
        OSError: If it is missing or can't be read.
        ValueError: If it is a URL, or a folder, pipe or device.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if '://' in path:
            raise ValueError(f'Got the URL {path}, expected a file. Download '
                             'it first.') from None
        raise FileNotFoundError(f'Found no {kind} {path}. Check the '
                                'path.') from None
    except OSError as error:
        raise OSError(f'The {kind} {path} cannot be read ({error}). Check '
                      'the path.') from error
    # Opening a pipe waits for a writer; a device has no end.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{path} is not a regular file. Save the {kind} as '
                         'one.')
    if status.st_size == 0:
        raise ValueError(f'The {kind} {path} is an empty file of 0 bytes. '
                         'Replace or remove it.')
    return status


def read_file(path: str) -> bytes:
    """Read the file of an image.

    Args:
        path (str): The file.

    Returns:
        bytes: Its content.

    Raises:
        OSError: If it is missing or can't be read.
        ValueError: If it is no regular file, empty or larger than 128 MiB.
    """
    size = check_regular(path, 'image').st_size
    if size > MAX_FILE:
        raise ValueError(f'The image {path} has {size} bytes, expected at '
                         f'most {MAX_FILE}. Shrink it.')
    try:
        with open(path, 'rb') as file:
            return file.read(size)
    except OSError as error:
        raise OSError(f'The image {path} cannot be read ({error}). Check '
                      'that it is readable.') from error


def read_image(path: str) -> np.ndarray:
    """Read an image from a file.

    Args:
        path (str): The file, in one of ``FORMATS``, whatever its extension.

    Returns:
        ndarray: BGR, uint8 of shape ``(H, W, 3)``, upright by its EXIF.

    Raises:
        OSError: If it is missing or can't be read.
        ValueError: If it is no image, broken or too large.
    """
    return decode_image(read_file(path), path)


def read_size(path: str) -> Tuple[int, int]:
    """Read the width and height of an image from its header.

    Args:
        path (str): The file.

    Returns:
        tuple[int, int]: In pixels.

    Raises:
        OSError: If it is missing or can't be read.
        ValueError: If it is no image.
    """
    if Image is None:
        height, width = read_image(path).shape[:2]
        return width, height
    pi_heif.register_heif_opener()
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=FORMATS) as image:
            return image.size
    except UnidentifiedImageError:
        raise ValueError(f'{path} is no image.') from None


def decode_image(content: bytes,
                 path: str,
                 use_orientation: bool = True) -> np.ndarray:
    """Decode the content of an image file.

    16-bit images are divided by 256, and alpha channels are dropped. Of an
    animation, it is the first frame.

    Args:
        content (bytes): All of the file.
        path (str): Its path, for the message.
        use_orientation (bool): Whether to turn the image upright by its EXIF.
            Defaults to True.

    Returns:
        ndarray: BGR, uint8 of shape ``(H, W, 3)``.

    Raises:
        ValueError: If it is no image, broken, truncated or too large.
    """
    decode = _decode_opencv if Image is None else _decode
    try:
        return decode(content, use_orientation)
    except _UnknownFormat as error:
        raise ValueError(
            f'The image {path} cannot be decoded: its content is none of '
            f'{error}, whatever its extension. Convert or remove it.'
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f'The image {path} cannot be decoded '
            f'({str(error) or type(error).__name__}), expected a complete '
            'image file. Replace or remove it.') from error


class _UnknownFormat(ValueError):
    """The content is none of these formats."""


def _decode_opencv(content: bytes, use_orientation: bool) -> np.ndarray:
    if not any(
            re.match(start, content, re.DOTALL)
            for start in SIGNATURES.values()):
        raise _UnknownFormat(
            f'{", ".join(SIGNATURES)} (with `pip install pillow pi-heif` '
            f'also {", ".join(sorted({*FORMATS} - {*SIGNATURES}))})')
    # Before version 4.12, the missing part of a JPEG is grey.
    if content.startswith(
            SIGNATURES['JPEG']) and (content.rfind(b'\xff\xd9')
                                     < content.rfind(b'\xff\xda')):
        raise ValueError('it is truncated')
    flags = cv2.IMREAD_COLOR
    if not use_orientation:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    img = None
    with suppress(cv2.error):  # of too many pixels
        img = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if img is None:
        raise ValueError('it is broken, truncated or has more than '
                         f'{MAX_PIXELS} pixels')
    return img


def _decode(content: bytes, use_orientation: bool) -> np.ndarray:
    pi_heif.register_heif_opener()
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        # Its message is the address of an object.
        raise _UnknownFormat(', '.join(FORMATS)) from None
    with image:
        if (image.width * image.height > MAX_PIXELS
                or max(image.size) > MAX_SIDE):
            raise ValueError(
                f'it has {image.width}x{image.height} pixels, expected at '
                f'most {MAX_PIXELS} and sides of at most {MAX_SIDE}')
        if image.mode in ('F', 'I'):
            raise ValueError('its pixels have 32 bits, expected 8 or 16')
        image.load()  # fails if a part of the data is missing
        orientation = _orientation(image) if use_orientation else 1
        img = _to_bgr(image)
    # https://exiftool.org/TagNames/EXIF.html
    if orientation in (5, 6, 7, 8):
        img = img.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        img = img[:, ::-1]
    if orientation in (3, 4, 7, 8):
        img = img[::-1]
    return np.ascontiguousarray(img)


def _orientation(image: 'Image.Image') -> int:
    # Each entry of EXIF may claim all of it again.
    if max(
            len(image.info.get(key) or '')
            for key in ('exif', 'Raw profile type exif')) > MAX_EXIF:
        return 1
    # `ImageOps.exif_transpose` fails on values that it does not expect.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # The pixels are fine whatever a camera wrote there.
        return 1


def _to_bgr(image: 'Image.Image') -> np.ndarray:
    """Convert in strips: Pillow would make two copies of four bytes a
    pixel."""
    img = np.empty((image.height, image.width, 3), np.uint8)
    step = max(STRIP // image.width, 1)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if image.mode.startswith('I;16'):
            img[top:bottom] = (np.asarray(strip) >> 8)[..., None]
        else:
            cv2.cvtColor(
                np.asarray(strip.convert('RGB')), cv2.COLOR_RGB2BGR,
                img[top:bottom])
    return img
