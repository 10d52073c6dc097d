# Copyright (c) dan_mm contributors. All rights reserved.
from .afn import AFN
from .losses import AffinityLoss, CenterLoss, PartitionLoss
from .man import MAN

__all__ = ['AFN', 'AffinityLoss', 'CenterLoss', 'MAN', 'PartitionLoss']
