# Copyright (c) dan_mm contributors. All rights reserved.
from ..version import requirement

try:
    import mmcv._ext  # noqa: F401
    import mmdet  # noqa: F401
except ImportError as error:
    raise ImportError(
        'dan_mm.detection, which trains and evaluates the face detector, '
        f'found that `import {error.name or "mmcv._ext"}` '
        'fails, expected mmdet and an mmcv with compiled ops: run `make env` '
        'in a clone of dan_mm, or, in an environment that has torch and '
        'ninja, `pip install --no-build-isolation --no-cache-dir '
        f'--force-reinstall --no-deps "{requirement("mmcv")}"` and `pip '
        f'install "{requirement("mmdet")}"`.') from error

from ..models.retinaface_weights import convert, get_checkpoint
from .data_preprocessor import FaceDataPreprocessor
from .retinaface import MobileNetV1, RetinaFacePyramid, RetinaFaceSSH
from .retinaface_head import RetinaFaceHead
from .transforms import (PackFaceInputs, PrepareFaceImage, RandomFaceCrop,
                         RandomFaceFlip)
from .tta import RetinaFaceTTA
from .visualizer import FaceLocalVisualizer
from .widerface import WiderFaceLandmarks
from .widerface_metric import WiderFaceMetric

__all__ = [
    'FaceDataPreprocessor', 'FaceLocalVisualizer', 'MobileNetV1',
    'PackFaceInputs', 'PrepareFaceImage', 'RandomFaceCrop', 'RandomFaceFlip',
    'RetinaFaceHead', 'RetinaFacePyramid', 'RetinaFaceSSH', 'RetinaFaceTTA',
    'WiderFaceLandmarks', 'WiderFaceMetric', 'convert', 'get_checkpoint'
]
