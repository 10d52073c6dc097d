# Copyright (c) dan_mm contributors. All rights reserved.
from .hooks import CheckpointFitHook
from .optim_wrapper import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper', 'CheckpointFitHook']
