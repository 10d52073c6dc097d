# Copyright (c) dan_mm contributors. All rights reserved.
import contextlib
import importlib
import io
import os.path as osp
import sys

from .version import VERSIONS, __version__


def _check_versions() -> None:
    """Refuse packages that this one does not work with."""
    from mmengine.utils import digit_version
    for name, package, minimum, maximum in VERSIONS:
        found = importlib.import_module(name).__version__
        if not (digit_version(minimum) <= digit_version(found) <
                digit_version(maximum)):
            raise ImportError(
                f'dan_mm found {name} {found}, expected '
                f'>={minimum},<{maximum}. Install one with `pip install '
                f'"{package}>={minimum},<{maximum}"`; `dan-mm doctor` '
                'examines all of them.')


# `dan-mm doctor` is there for installations that can't import anything; it
# does so in processes of its own.
if not (osp.basename(sys.argv[0]).startswith('dan-mm')
        and sys.argv[1:2] == ['doctor']):
    # MMPretrain prints which data sets it does without, into what a program
    # prints.
    with contextlib.redirect_stdout(io.StringIO()):
        _check_versions()
        # Importing them registers everything.
        from . import models  # noqa: F401
        from . import checkpoint, datasets, engine, evaluation  # noqa: F401

__all__ = ['__version__']
