# Copyright (c) dan_mm contributors. All rights reserved.
import warnings

from .version import __version__, check_versions

try:
    check_versions()
except ImportError as error:
    # Loading a checkpoint raises it; `dan-mm doctor` has to start.
    warnings.warn(str(error), stacklevel=2)


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register all modules of this package, but for the face detector, and
    those of MMPretrain into MMPretrain's registries.

    From then on checkpoints are loaded as weights and plain data only: see
    :mod:`dan_mm.checkpoint`. The modules of the detector are registered by
    ``import dan_mm.detection``, which needs MMDetection.

    Args:
        init_default_scope (bool): Whether to make ``mmpretrain`` the default
            scope. Defaults to True.

    Raises:
        ImportError: If a package has a version that does not fit.
    """
    from mmpretrain.utils import register_all_modules

    from . import checkpoint, datasets, engine, evaluation, models
    register_all_modules(init_default_scope)


__all__ = ['__version__', 'register_all_modules']
