# Copyright (c) dan_mm contributors. All rights reserved.
"""Read images and videos, within limits of memory and time."""
from .images import InputImage, decode_image, read_file, read_image
from .reader import MediaReader

__all__ = [
    'InputImage', 'MediaReader', 'decode_image', 'read_file', 'read_image'
]
