# The baseline on dlib's face recognition ResNet. Its last stage is left out:
# at 112x112 pixels its map is 1x1.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='DlibResNet',
        num_stages=4,
        out_indices=(3, ),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dlib_resnet.pth',
            prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=7,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, )))
