# the baseline
_base_ = 'mmpretrain::_base_/models/resnet18.py'

model = dict(
    backbone=dict(zero_init_residual=False),
    head=dict(num_classes=7, topk=(1, )))
