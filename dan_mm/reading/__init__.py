# Copyright (c) dan_mm contributors. All rights reserved.
"""Read images and videos, within limits of memory and time."""
from .images import InputImage, decode_image, describe, read_file, read_image
from .reader import MediaReader
from .videos import VideoWriter

__all__ = [
    'InputImage', 'MediaReader', 'VideoWriter', 'decode_image', 'describe',
    'read_file', 'read_image'
]
