_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=[
    'dan_mm.checkpoint', 'dan_mm.datasets', 'dan_mm.engine',
    'dan_mm.evaluation', 'dan_mm.models'
])

default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'))

custom_hooks = [
    # Convolutions are faster so, and the results the same but for rounding.
    dict(type='ChannelsLastHook'),
    dict(type='ClassCheckHook'),
    # A checkpoint is enough for inference.
    dict(type='DescribeModelHook'),
    # Resumed training continues as if it had not been interrupted.
    dict(type='EpochSeedHook'),
    # Diverged training stops.
    dict(type='FiniteLossHook'),
    # All processes evaluate with the same statistics of BatchNorm.
    dict(type='SyncBuffersHook'),
]
