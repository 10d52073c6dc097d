# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Optional

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmpretrain.registry import TRANSFORMS

from dan_mm.reading import decode_image, read_file

COLOR_TYPES = ('color', 'grayscale', 'color_ignore_orientation',
               'grayscale_ignore_orientation')


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Load an image from a file, or say which file is broken and how.

    :class:`mmcv.transforms.LoadImageFromFile` fills the missing part of a
    truncated JPEG with grey and goes on. This one reads what
    :func:`dan_mm.reading.decode_image` does, and refuses the rest.

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
            OSError: If it is missing or can't be read.
            ValueError: If it is truncated, too large or no image.
        """
        path = results['img_path']
        content = (
            read_file(path) if self.backend_args is None else fileio.get(
                path, backend_args=self.backend_args))
        img = self.decode(content, path)
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['ori_shape'] = img.shape[:2]
        return results

    def decode(self, content: bytes, path: str) -> np.ndarray:
        """Decode the content of the file ``path`` as ``img`` above, or raise
        ValueError if it is truncated, too large or no image."""
        img = decode_image(content, path,
                           not self.color_type.endswith('ignore_orientation'))
        is_grey = self.color_type.startswith('grayscale')
        return mmcv.bgr2gray(img) if is_grey else img

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(backend_args={self.backend_args}, '
                f'color_type={self.color_type!r})')
