# RetinaFace with ResNet-50, trained as
# https://github.com/biubug6/Pytorch_Retinaface does.
_base_ = 'retinaface_mobilenet0.25_widerface.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        out_indices=(1, 2, 3),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=[
        dict(
            type='RetinaFacePyramid',
            in_channels=[512, 1024, 2048],
            out_channels=256),
        dict(
            type='RetinaFaceSSH',
            num_scales=3,
            in_channels=[256, 256, 256],
            out_channels=[256, 256, 256]),
    ],
    bbox_head=dict(in_channels=256))

train_pipeline = [
    *_base_.train_pipeline[:-2],
    dict(
        type='RandomChoice',
        transforms=[[
            dict(
                type='mmcv.Resize',
                scale=(840, 840),
                interpolation=interpolation)
        ] for interpolation in ('nearest', 'bilinear', 'bicubic', 'area',
                                'lanczos')]),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(batch_size=24, dataset=dict(pipeline=train_pipeline))

param_scheduler = dict(milestones=[70, 90])
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=24)
