_base_ = [
    '_base_/models/dlibresnet.py',
    '_base_/datasets/ferplus_112.py',
    '_base_/schedules/adamw_cosine_16e.py',
    '_base_/default_runtime.py',
]

model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))

default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=1))

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=2e-3, update_buffers=True),
]
