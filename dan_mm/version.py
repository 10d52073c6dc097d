# Copyright (c) dan_mm contributors. All rights reserved.
import re
from importlib.metadata import version
from typing import Tuple

__version__ = '0.1.0'
# The only table of versions: setup.py and the Makefile read it. Each pair is
# the first version that fits and the first that does not.
PYTHON = ('3.10', '3.13')
# Module: distribution, and its versions.
VERSIONS = dict(
    # Older ones can run code from weights-only files (CVE-2025-32434);
    # mmcv's sources do not compile with newer ones.
    torch=('torch', '2.6', '2.13'),
    # 4.10 is the first for NumPy 2, 4.12 the last for MMDetection's imaug.
    cv2=('opencv-python', '4.10', '4.13'),
    # the maintained forks of the OpenMMLab packages
    mmengine=('onedl-mmengine', '0.10.12', '1'),
    mmcv=('onedl-mmcv', '2.3.6', '2.4'),
    mmpretrain=('onedl-mmpretrain', '1.3.6', '2'),
    mmdet=('onedl-mmdetection', '3.5.1', '4'))
# What a wrong version of is refused at import
REQUIRED = ('torch', 'mmengine', 'mmcv', 'mmpretrain')


def requirement(module: str) -> str:
    """The requirement for pip that a module of the table comes from."""
    package, low, high = VERSIONS[module]
    return f'{package}>={low},<{high}'


def digits(version: str) -> Tuple[int, ...]:
    """The first three numbers of a version."""
    found = re.match(r'\d+(\.\d+)*', version)
    numbers = [int(n) for n in found[0].split('.')] if found else []
    return tuple(numbers + [0] * 3)[:3]


def fits(version: str, low: str, high: str) -> bool:
    """Whether a version is in ``[low, high)``."""
    return digits(low) <= digits(version) < digits(high)


def installed(package: str) -> str:
    """The version of an installed distribution, or an empty string."""
    try:
        return version(package) or ''
    # Missing, or the remains of an interrupted pip in many forms
    except Exception:
        return ''


def check_versions() -> None:
    """Check the installed versions, without importing any package.

    Raises:
        ImportError: If one does not fit. A missing one is left to its import.
    """
    for module in REQUIRED:
        package, low, high = VERSIONS[module]
        for name in {package, module}:
            found = installed(name)
            if found and not fits(found, low, high):
                raise ImportError(
                    f'dan_mm found {name} {found}, expected >={low},<{high}. '
                    f'Install it with `pip install "{requirement(module)}"`. '
                    '`dan-mm doctor` checks the whole installation.')
