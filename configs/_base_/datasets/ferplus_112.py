# FER+, 112x112, for dlib's face recognition ResNet: the raters' votes as soft
# targets, and augmentation
_base_ = 'ferplus.py'

data_preprocessor = dict(
    # RGB, of dlib
    mean=[122.782, 117.001, 104.298],
    std=[256., 256., 256.])

train_pipeline = [
    dict(type='LoadCheckedImage'),
    # While the image is small
    dict(type='ColorJitter', brightness=0.4, contrast=0.4),
    dict(type='Resize', scale=(112, 112)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='NumpyToPIL'),
    dict(
        type='torchvision/RandomAffine',
        degrees=15,
        translate=(0.08, 0.08),
        scale=(0.85, 1.2),
        interpolation='bilinear'),
    dict(type='PILToNumpy'),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        min_area_ratio=0.02,
        max_area_ratio=0.15,
        # BGR, the mean: 0 after the normalization
        fill_color=(104.298, 117.001, 122.782)),
    dict(type='PackInputs'),
]

test_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='Resize', scale=(112, 112)),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    dataset=dict(soft_targets=True, ambiguous=True, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
