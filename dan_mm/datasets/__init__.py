# Copyright (c) dan_mm contributors. All rights reserved.
from .ferplus import FERPlus
from .loading import LoadCheckedImage
from .rafdb import RAFDB

__all__ = ['FERPlus', 'LoadCheckedImage', 'RAFDB']
