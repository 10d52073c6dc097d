_base_ = [
    '_base_/models/resnet18.py',
    '_base_/datasets/synthface.py',
    '_base_/schedules/adam_onecycle_5e.py',
    '_base_/default_runtime.py',
]

# Half as wide, for two cores, and the last stage keeps its resolution: the
# backbone of dan_synthface.py, which starts from this one.
model = dict(
    backbone=dict(stem_channels=32, base_channels=32, strides=(1, 2, 2, 1)),
    head=dict(
        num_classes={{_base_.data_preprocessor.num_classes}}, in_channels=256))

param_scheduler = dict(total_steps=3, eta_max=2e-3)
train_cfg = dict(max_epochs=3)

default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=2))
