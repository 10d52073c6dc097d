# Copyright (c) dan_mm contributors. All rights reserved.
from .balanced_accuracy import BalancedAccuracy

__all__ = ['BalancedAccuracy']
