# Copyright (c) dan_mm contributors. All rights reserved.
from .afn import AFN
from .dlib_resnet import DlibResNet
from .losses import AffinityLoss, CenterLoss, PartitionLoss
from .man import MAN
from .tta import AverageScoreTTA

__all__ = [
    'AFN', 'AffinityLoss', 'AverageScoreTTA', 'CenterLoss', 'DlibResNet',
    'MAN', 'PartitionLoss'
]
