# RAF-DB, 224x224, with the augmentation of the original code
dataset_type = 'RAFDB'
data_root = 'data/rafdb'
data_preprocessor = dict(
    num_classes=7,
    # RGB, of ImageNet
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='AntialiasResize', scale=(224, 224)),
    dict(type='RandomWarp', degrees=20, padding=32, prob=0.2),
    dict(
        type='RandomErasing',
        erase_prob=0.5,
        min_area_ratio=0.02,
        max_area_ratio=0.25,
        aspect_range=(0.3, 3.3),
        # BGR, the mean: 0 after the normalisation
        fill_color=(103.53, 116.28, 123.675)),
    dict(type='PackImage'),
]

test_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='Resize', scale=(224, 224), backend='pillow'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=4,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='train',
        # Decoded once, 1.8 GB at most
        cache='cache',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)

# The full training set is trained on: nothing is chosen on the test set.
val_dataloader = None
val_evaluator = None
val_cfg = None

test_dataloader = dict(
    batch_size=256,
    num_workers=4,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='test',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = [dict(type='Accuracy'), dict(type='BalancedAccuracy')]
test_cfg = dict()
