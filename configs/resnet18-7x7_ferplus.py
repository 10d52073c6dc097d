_base_ = 'resnet18_ferplus.py'

# Maps of 7x7 instead of 3x3: 112x112 pixels, and the last stage keeps its
# resolution; half as wide, for two cores.
model = dict(
    backbone=dict(stem_channels=32, base_channels=32, strides=(1, 2, 2, 1)),
    head=dict(in_channels=256))

load, _, flip, _, pack = _base_.train_pipeline
resize = dict(type='Resize', scale=(112, 112))
train_pipeline = [
    load, resize, flip,
    dict(type='RandomCrop', crop_size=112, padding=9), pack
]
test_pipeline = [load, resize, pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
