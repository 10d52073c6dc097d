# Copyright (c) dan_mm contributors. All rights reserved.
from .ferplus import FERPlus
from .folder import FERFolder
from .loading import LoadCheckedImage
from .rafdb import RAFDB
from .sampler import BalancedSampler
from .synthface import CoverParts, SynthFace

__all__ = [
    'BalancedSampler', 'CoverParts', 'FERFolder', 'FERPlus',
    'LoadCheckedImage', 'RAFDB', 'SynthFace'
]
