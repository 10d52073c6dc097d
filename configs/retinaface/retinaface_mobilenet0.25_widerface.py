# RetinaFace with MobileNetV1 x0.25, trained as
# https://github.com/biubug6/Pytorch_Retinaface does. Its public weights can be
# converted with tools/model_converters/retinaface_to_mmdet.py, and so can the
# ImageNet weights that training starts from.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(
    imports=['dan_mm.checkpoint', 'dan_mm.detection', 'dan_mm.engine'])

# B, G, R
mean = [104, 117, 123]
image_size = (640, 640)

model = dict(
    type='SingleStageDetector',
    # Images keep their sizes. A batch of different ones is padded, which
    # changes what is found next to the padding: test with batches of one.
    data_preprocessor=dict(type='FaceDataPreprocessor', mean=mean),
    backbone=dict(
        type='MobileNetV1',
        width=0.25,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/mobilenetv1_0.25_in1k.pth',
            prefix='backbone.')),
    neck=[
        dict(
            type='RetinaFacePyramid',
            in_channels=[64, 128, 256],
            out_channels=64),
        dict(
            type='RetinaFaceSSH',
            num_scales=3,
            in_channels=[64, 64, 64],
            out_channels=[64, 64, 64]),
    ],
    bbox_head=dict(type='RetinaFaceHead', in_channels=64),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.35,
            neg_iou_thr=0.35,
            min_pos_iou=0.2,
            gt_max_assign_all=False),
        neg_pos_ratio=7),
    test_cfg=dict(
        score_thr=0.02,
        nms_pre=5000,
        nms=dict(type='nms', iou_threshold=0.4, offset=1),
        max_per_img=750))

tta_model = dict(
    type='RetinaFaceTTA',
    tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.4, offset=1), max_per_img=750))

load = [
    dict(type='LoadImageFromFile'),
    # Larger images are shrunk, to bound the memory.
    dict(type='PrepareFaceImage', max_side=4096),
]
pack = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
               'flip', 'flip_direction'))
test_pipeline = [*load, pack]
tta_pipeline = [
    *load,
    dict(
        type='TestTimeAug',
        transforms=[[
            dict(type='RandomFlip', prob=0.),
            dict(type='RandomFlip', prob=1.),
        ], [pack]]),
]
# MMCV's own transforms carry landmarks.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmcv.LoadAnnotations', with_keypoints=True),
    dict(type='RandomFaceCrop'),
    dict(
        type='PhotoMetricDistortion',
        # The original turns hues by up to 18 of 180 steps.
        hue_delta=36,
        swap_channels=False),
    dict(type='mmcv.Pad', pad_to_square=True, pad_val=dict(img=tuple(mean))),
    dict(type='RandomFaceFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[[
            dict(
                type='mmcv.Resize',
                scale=image_size,
                interpolation=interpolation)
        ] for interpolation in ('nearest', 'bilinear', 'bicubic', 'area',
                                'lanczos')]),
    dict(type='PackFaceInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='WiderFaceLandmarks',
        data_root='data/widerface',
        ann_file='train/label.txt',
        data_prefix=dict(img='train/images'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='WiderFaceLandmarks',
        data_root='data/widerface',
        ann_file='val/label.txt',
        data_prefix=dict(img='val/images'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='WiderFaceMetric', ground_truth='data/widerface/val/ground_truth')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', milestones=[190, 220], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=250, val_interval=10)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=32)

default_hooks = dict(
    checkpoint=dict(
        type='mmpretrain.AtomicCheckpointHook',
        interval=10,
        max_keep_ckpts=2,
        save_best='wider_face/hard',
        rule='greater'))
custom_hooks = [
    dict(type='mmpretrain.EpochSeedHook'),
    dict(type='mmpretrain.FiniteLossHook'),
    dict(type='SyncBuffersHook'),
]
visualizer = dict(type='FaceLocalVisualizer')

# What to do where the weights of the backbone are missing
checkpoint_hints = {
    'checkpoints/mobilenetv1_0.25_in1k.pth':
    'It is MobileNetV1 x0.25 trained on ImageNet. Download '
    'mobilenetV1X0.25_pretrain.tar as the README of '
    'https://github.com/biubug6/Pytorch_Retinaface says, and convert it with '
    '`python tools/model_converters/retinaface_to_mmdet.py '
    'mobilenetV1X0.25_pretrain.tar checkpoints/mobilenetv1_0.25_in1k.pth`. Or '
    'start from scratch with `--cfg-options model.backbone.init_cfg=None`.'
}
