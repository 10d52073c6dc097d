_base_ = [
    '_base_/models/dan_resnet18.py',
    '_base_/datasets/synthface.py',
    '_base_/schedules/adam_onecycle_5e.py',
    '_base_/default_runtime.py',
]

# Half as wide, for two cores; the last stage keeps its resolution, for
# attention maps of 7x7. As in the paper, the backbone has been trained before:
# by resnet18_synthface.py.
model = dict(
    backbone=dict(
        stem_channels=32,
        base_channels=32,
        strides=(1, 2, 2, 1),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_synthface/epoch_3.pth',
            prefix='backbone')),
    neck=dict(in_channels=256),
    head=dict(
        num_classes={{_base_.data_preprocessor.num_classes}}, in_channels=256))

param_scheduler = dict(total_steps=2, eta_max=2e-3)
train_cfg = dict(max_epochs=2)

default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=2))

# What to do where these weights are missing
checkpoint_hints = {
    'work_dirs/resnet18_synthface/epoch_3.pth':
    'It is the ResNet-18 that DAN starts from here. Train it first: `python '
    'tools/train.py configs/resnet18_synthface.py`. Or start from scratch '
    'with `--cfg-options model.backbone.init_cfg=None`.'
}
