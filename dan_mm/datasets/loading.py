# Copyright (c) dan_mm contributors. All rights reserved.
import io
from typing import Optional, Tuple

import cv2
import mmcv
import mmengine.fileio as fileio
import numpy as np
import pi_heif
from mmcv.transforms import LoadImageFromFile
from mmpretrain.registry import TRANSFORMS
from PIL import ExifTags, Image, UnidentifiedImageError

COLOR_TYPES = ('color', 'grayscale', 'color_ignore_orientation',
               'grayscale_ignore_orientation')
# Pillow knows more, among them PostScript, which Ghostscript would run.
FORMATS = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
# The longest side of a JPEG; what is longer is no photograph.
MAX_SIDE = 65500
# What turns an image upright, by the orientation in its EXIF
# (https://exiftool.org/TagNames/EXIF.html)
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Load an image from a file, or say which file is broken and how.

    :class:`mmcv.transforms.LoadImageFromFile` fills the missing part of a
    truncated JPEG with grey and goes on. This one refuses it, reads the
    formats in ``FORMATS``, whatever the extension says, and converts palette,
    RGBA (the alpha channel is dropped) and 16-bit images (divided by 256) to 8
    bits.

    **Required Keys:**

    - img_path

    **Modified Keys:**

    - img: uint8, BGR of shape ``(H, W, 3)``, or grey of shape ``(H, W)``.
    - img_shape
    - ori_shape

    Args:
        backend_args (dict, optional): Arguments of MMEngine's file backend.
            Defaults to None.
        color_type (str): 'color' or 'grayscale', which apply the orientation
            in the file's EXIF, 'color_ignore_orientation' or
            'grayscale_ignore_orientation'. Defaults to 'color'.
    """

    def __init__(self,
                 backend_args: Optional[dict] = None,
                 color_type: str = 'color') -> None:
        if color_type not in COLOR_TYPES:
            raise ValueError(
                f"LoadCheckedImage got color_type='{color_type}', expected "
                f'one of {COLOR_TYPES}.')
        super().__init__(color_type=color_type, backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        """Load the image ``results['img_path']``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is empty, truncated or no image.
        """
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'Found no image {path}. Check the path.') from None
        except OSError as error:
            raise OSError(f'The image {path} cannot be read ({error}). Check '
                          'that it is a file and readable.') from error
        img = self.decode(content, path)
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['ori_shape'] = img.shape[:2]
        return results

    def decode(self, content: bytes, path: str) -> np.ndarray:
        """Decode the content of a file.

        Args:
            content (bytes): All of it.
            path (str): The path of the file, for the message.

        Returns:
            np.ndarray: The image, see ``img`` above.

        Raises:
            ValueError: If it is empty, truncated or no image.
        """
        if not content:
            raise ValueError(f'The image {path} is an empty file of 0 bytes. '
                             'Replace or remove it.')
        try:
            return self._decode(content)
        except UnidentifiedImageError:
            # Its message is the address of an object.
            raise ValueError(
                f'The image {path} cannot be decoded: its content is in no '
                'known image format, whatever its extension, expected one. '
                'Convert or remove it.') from None
        except Exception as error:
            raise ValueError(
                f'The image {path} cannot be decoded ({error}), expected a '
                'whole image file. Replace or remove it.') from error

    def _decode(self, content: bytes) -> np.ndarray:
        pi_heif.register_heif_opener()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if (limit and image.width * image.height > limit
                    or max(image.size) > MAX_SIDE):
                # Up to twice as many pixels, Pillow only warns.
                raise ValueError(f'it has {image.width}x{image.height} pixels')
            if image.mode == 'F':
                raise ValueError('its pixels are floating-point numbers')
            image.load()  # fails if a part of the data is missing
            # Of 16-bit grey Pillow keeps what is below 256, and grey loses
            # what its alpha channel hides.
            if not image.mode.startswith('I') and image.mode != 'LA':
                orientation = self._orientation(image)
                image = image.convert('RGB')
                if orientation in TRANSPOSE:
                    image = image.transpose(TRANSPOSE[orientation])
                img = np.ascontiguousarray(np.asarray(image)[..., ::-1])
                is_grey = self.color_type.startswith('grayscale')
                return mmcv.bgr2gray(img) if is_grey else img
        img = mmcv.imfrombytes(content, self.color_type, backend='cv2')
        if img is None:
            raise ValueError('OpenCV does not know its format')
        return img

    def _orientation(self, image: Image.Image) -> int:
        if self.color_type.endswith('ignore_orientation'):
            return 1
        # `ImageOps.exif_transpose` writes all tags anew, and fails where one
        # has a value that it does not expect.
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:
            # EXIF is whatever a camera wrote; the pixels are whole.
            return 1

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(backend_args={self.backend_args}, '
                f'color_type={self.color_type!r})')


def prepare_image(
        img: np.ndarray,
        max_side: Optional[int] = None
) -> Tuple[np.ndarray, Tuple[float, float]]:
    """Make an image one that detectors take: BGR, and not too large.

    Grey images get three equal channels, and the fourth channel of BGRA is
    dropped.

    Args:
        img (ndarray): uint8 of shape ``(H, W)``, or with 1, 3 (BGR) or 4
            (BGRA) channels last.
        max_side (int, optional): An image whose longer side has more pixels is
            shrunk to that. Defaults to None, any size.

    Returns:
        tuple: The image, uint8 of shape ``(H, W, 3)``, and by how much its
        width and height were scaled.

    Raises:
        ValueError: If the array is no image.
    """
    if (img.dtype != np.uint8 or img.ndim not in (2, 3) or 0 in img.shape
            or img.shape[2:] not in ((), (1, ), (3, ), (4, ))):
        raise ValueError(
            f'Got an array of {img.dtype} and of shape {img.shape} as an '
            'image, expected uint8 of shape (height, width), or with 1, 3 '
            '(BGR) or 4 (BGRA) channels last. Convert it.')
    if img.shape[2:] in ((), (1, )):
        img = cv2.cvtColor(img, cv2.COLOR_GRAY2BGR)
    elif img.shape[2] == 4:
        img = cv2.cvtColor(img, cv2.COLOR_BGRA2BGR)
    height, width = img.shape[:2]
    if max_side and max(height, width) > max_side:
        # A side of a strip must not vanish.
        size = [
            max(round(side * max_side / max(height, width)), 1)
            for side in (width, height)
        ]
        img = mmcv.imresize(img, size, interpolation='area')
    return img, (img.shape[1] / width, img.shape[0] / height)
