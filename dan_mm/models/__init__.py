# Copyright (c) dan_mm contributors. All rights reserved.
from .afn import AFN
from .deploy import switch_to_deploy
from .dlib_resnet import DlibResNet
from .losses import AffinityLoss, CenterLoss, PartitionLoss
from .man import MAN
from .tta import AverageScoreTTA

__all__ = [
    'AFN', 'AffinityLoss', 'AverageScoreTTA', 'CenterLoss', 'DlibResNet',
    'MAN', 'PartitionLoss', 'switch_to_deploy'
]
