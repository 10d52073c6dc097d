_base_ = 'dan_ferplus.py'

# For faces in photographs: starts from the model of dan_ferplus.py, with the
# raters' votes as soft targets and stronger augmentation.
load_from = 'work_dirs/dan_ferplus/epoch_5.pth'
# What to do where this checkpoint is missing
checkpoint_hints = {
    'work_dirs/dan_ferplus/epoch_5.pth':
    'Train it first: `python tools/train.py configs/dan_ferplus.py`.'
}

load, resize, flip, _, pack = _base_.train_pipeline
train_pipeline = [
    load,
    resize,
    flip,
    dict(type='NumpyToPIL'),
    dict(
        type='torchvision/RandomAffine',
        degrees=15,
        translate=(0.08, 0.08),
        scale=(0.85, 1.2),
        interpolation='bilinear'),
    dict(type='PILToNumpy'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        min_area_ratio=0.02,
        max_area_ratio=0.15,
        # BGR, the mean: 0 after the normalisation
        fill_color=(103.53, 116.28, 123.675)),
    pack,
]
train_dataloader = dict(
    dataset=dict(soft_targets=True, pipeline=train_pipeline))

rate, down, up = _base_.param_scheduler
param_scheduler = [
    dict(rate, eta_max=7e-4, total_steps=6),
    dict(down, end=1.8),
    dict(up, begin=1.8, end=6),
]
train_cfg = dict(max_epochs=6)
