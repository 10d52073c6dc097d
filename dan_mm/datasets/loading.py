# Copyright (c) dan_mm contributors. All rights reserved.
import io

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmpretrain.registry import TRANSFORMS
from PIL import Image


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Load a picture from a file, or say which file is broken and how.

    :class:`mmcv.transforms.LoadImageFromFile` fills the missing part of a
    truncated JPEG with grey and goes on. This one refuses, and turns grey,
    palette, RGBA (the alpha channel is dropped) and 16-bit pictures (divided
    by 256) into 8-bit colour.

    **Required Keys:**

    - img_path

    **Modified Keys:**

    - img: uint8 of shape (H, W, 3), BGR.
    - img_shape
    - ori_shape

    Args:
        backend_args (dict, optional): Arguments of MMEngine's file backend.
            Defaults to None.
        color_type (str): 'color', which applies the orientation in the file's
            EXIF, or 'color_ignore_orientation'. Defaults to 'color'.
    """

    def __init__(self,
                 backend_args: dict = None,
                 color_type: str = 'color') -> None:
        super().__init__(color_type=color_type, backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        """Load the picture of ``results['img_path']``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is empty, truncated or no picture.
        """
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'Found no picture {path}. Check `data_root` and the '
                'annotation file.') from None
        except OSError as error:
            raise OSError(f'The picture {path} can not be read ({error}), '
                          'expected a file. Check it, and the permission to '
                          'read it.') from error
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
            np.ndarray: uint8 of shape (H, W, 3), BGR.

        Raises:
            ValueError: If it is empty, truncated or no picture.
        """
        if not content:
            raise ValueError(
                f'The picture {path} is an empty file of 0 bytes. '
                'Restore it from the data set, or remove it from '
                'the annotations.')
        try:
            return self._decode(content)
        except Exception as error:
            raise ValueError(
                f'The picture {path} can not be decoded ({error}), expected a '
                'whole image file. Restore it from the data set, or remove it '
                'from the annotations.') from error

    def _decode(self, content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content)) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and picture.width * picture.height > limit:
                # Up to twice as many, Pillow only warns.
                raise ValueError(
                    f'it has {picture.width}x{picture.height} pixels')
            # Of 16-bit grey mmcv's Pillow backend keeps what is below 256, and
            # it puts transparent grey on a coloured canvas.
            opencv = picture.mode.startswith('I') or picture.mode == 'LA'
            if opencv:
                picture.load()  # fails if a part of the data is missing
            if picture.mode == 'F':
                raise ValueError('its pixels are floating-point numbers')
        img = mmcv.imfrombytes(
            content, self.color_type, backend='cv2' if opencv else 'pillow')
        if img is None:
            raise ValueError('OpenCV does not know its format')
        return img

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(backend_args={self.backend_args}, '
                f'color_type={self.color_type!r})')
