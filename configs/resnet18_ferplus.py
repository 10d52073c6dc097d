_base_ = [
    '_base_/models/resnet18.py',
    '_base_/datasets/ferplus.py',
    '_base_/schedules/adam_onecycle_momentum_5e.py',
    '_base_/default_runtime.py',
]

model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))

default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2))
