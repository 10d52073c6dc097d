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

# What to do where these weights are missing
checkpoint_hints = {
    'checkpoints/dlib_resnet.pth':
    "It is dlib's face recognition ResNet. Make it: `pip install "
    'face_recognition_models`, then `python tools/model_converters/'
    'dlib_to_mmpretrain.py FACES checkpoints/dlib_resnet.pth`, where FACES is '
    'the folder of the training images. Or start from scratch with '
    '`--cfg-options model.backbone.init_cfg=None`.'
}
