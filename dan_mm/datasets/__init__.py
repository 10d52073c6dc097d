# Copyright (c) dan_mm contributors. All rights reserved.
from dan_mm.imaging import align_face
from .affectnet import AffectNet
from .alignment import AlignFace
from .cache import ImageCache
from .fer2013 import FER2013
from .ferplus import FERPlus
from .folder import FERFolder
from .loading import LoadCheckedImage
from .rafdb import RAFDB
from .sampler import BalancedSampler
from .sfew import SFEW
from .synthface import CoverParts, SynthFace
from .transforms import AntialiasResize, PackImage, RandomWarp

__all__ = [
    'AffectNet', 'AlignFace', 'AntialiasResize', 'BalancedSampler',
    'CoverParts', 'FER2013', 'FERFolder', 'FERPlus', 'ImageCache',
    'LoadCheckedImage', 'PackImage', 'RAFDB', 'RandomWarp', 'SFEW',
    'SynthFace', 'align_face'
]
