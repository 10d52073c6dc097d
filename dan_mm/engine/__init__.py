# Copyright (c) dan_mm contributors. All rights reserved.
from .checkpoint_hook import AtomicCheckpointHook
from .hooks import (ChannelsLastHook, CheckpointFitHook, ClassCheckHook,
                    DescribeModelHook, FiniteLossHook)
from .launch import init_cpu_processes, leave_cpu_processes
from .optim_wrapper import CPUAmpOptimWrapper
from .seed_hook import EpochSeedHook

__all__ = [
    'AtomicCheckpointHook', 'CPUAmpOptimWrapper', 'ChannelsLastHook',
    'CheckpointFitHook', 'ClassCheckHook', 'DescribeModelHook',
    'EpochSeedHook', 'FiniteLossHook', 'init_cpu_processes',
    'leave_cpu_processes'
]
