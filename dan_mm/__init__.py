# Copyright (c) dan_mm contributors. All rights reserved.
import mmcv
import mmengine
import mmpretrain
import torch
from mmengine.utils import digit_version

from .version import __version__

# The modules' own versions are compared, not those of distributions: the
# maintained forks and the upstream packages have the same modules.
VERSIONS = (
    (torch, 'torch', '2.6.0', '3.0.0'),
    (mmengine, 'onedl-mmengine', '0.10.0', '1.0.0'),
    (mmcv, 'onedl-mmcv', '2.0.0', '2.4.0'),
    (mmpretrain, 'onedl-mmpretrain', '1.2.0', '2.0.0'),
)
for module, package, minimum, maximum in VERSIONS:
    if not (digit_version(minimum) <= digit_version(module.__version__) <
            digit_version(maximum)):
        raise ImportError(
            f'dan_mm found {module.__name__} {module.__version__}, expected '
            f'>={minimum},<{maximum}. Install one with `pip install '
            f'"{package}>={minimum},<{maximum}"`.')

# Importing them registers everything.
from . import checkpoint, datasets, engine, evaluation, models  # isort: skip

__all__ = ['__version__']
