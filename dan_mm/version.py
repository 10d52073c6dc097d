# Copyright (c) dan_mm contributors. All rights reserved.
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Tuple

__version__ = '0.1.0'
# The first version that fits, and the first that does not any more.
PYTHON = ('3.10', '3.13')
# Module, distribution to install, and the same. The maintained forks and the
# upstream packages have the same modules and versions.
VERSIONS = (
    ('torch', 'torch', '2.6.0', '2.13.0'),
    ('mmengine', 'onedl-mmengine', '0.10.0', '1.0.0'),
    ('mmcv', 'onedl-mmcv', '2.0.0', '2.4.0'),
    ('mmpretrain', 'onedl-mmpretrain', '1.2.0', '2.0.0'),
)
# For dan_mm.detection alone
MMDET = ('mmdet', 'onedl-mmdetection', '3.0.0', '4.0.0')


def digits(version: str) -> Tuple[int, ...]:
    """The first three numbers of a version."""
    found = re.match(r'\d+(\.\d+)*', version)
    numbers = [int(n) for n in found[0].split('.')] if found else []
    return tuple(numbers + [0] * 3)[:3]


def check_versions() -> None:
    """Check the installed versions, without an import of any package.

    Raises:
        ImportError: If one does not fit. One that is missing is left to its
            import.
    """
    for module, package, minimum, maximum in VERSIONS:
        for name in {package, module}:
            try:
                found = version(name)
            except PackageNotFoundError:
                continue
            if not digits(minimum) <= digits(found) < digits(maximum):
                raise ImportError(
                    f'dan_mm found {name} {found}, expected '
                    f'>={minimum},<{maximum}. Install one with `pip install '
                    f'"{package}>={minimum},<{maximum}"`; `dan-mm doctor` '
                    'examines all of them.')
