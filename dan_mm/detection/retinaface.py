# Copyright (c) dan_mm contributors. All rights reserved.
from mmdet.registry import MODELS

from ..models.retinaface import MobileNetV1, RetinaFacePyramid, RetinaFaceSSH

for part in MobileNetV1, RetinaFacePyramid, RetinaFaceSSH:
    MODELS.register_module(module=part)
