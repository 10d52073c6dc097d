# RetinaFace with MobileNetV1 x0.25 on portraits pasted into other images
# (paste_faces.py): a check that it learns, short enough for two cores.
# Training takes smaller squares, and 20 epochs of AdamW instead of 250 of SGD;
# the test is at the images' own size.
_base_ = '../../configs/retinaface/retinaface_mobilenet0.25_widerface.py'

# Beside tools/train.py and tools/test.py, which run this config
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, 'portraits.landmark_metric'])

train_pipeline = [
    *_base_.train_pipeline[:2],
    # With them, faces have the sizes in training that they have in the test.
    dict(type='RandomFaceCrop', scales=(0.2, 0.3, 0.4, 0.5, 0.6)),
    *_base_.train_pipeline[3:-2],
    dict(
        type='RandomChoice',
        transforms=[[
            dict(
                type='mmcv.Resize',
                scale=(320, 320),
                interpolation=interpolation)
        ] for interpolation in ('nearest', 'bilinear', 'bicubic', 'area',
                                'lanczos')]),
    _base_.train_pipeline[-1],
]
# The metric needs the ground truth with its landmarks.
pack = dict(_base_.pack, meta_keys=(*_base_.pack['meta_keys'], 'instances'))
test_pipeline = [*_base_.load, pack]
tta_pipeline = [
    *_base_.load,
    dict(
        _base_.tta_pipeline[-1],
        transforms=[_base_.tta_pipeline[-1]['transforms'][0], [pack]]),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    dataset=dict(data_root='data/portraits', pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root='data/portraits', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='FaceLandmarkMetric')
test_evaluator = val_evaluator

# `end` and `T_max` of the second go with `max_epochs`.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-3, weight_decay=5e-4))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.05, end=2, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=2,
        end=20,
        T_max=18,
        convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20, val_interval=5)
auto_scale_lr = dict(base_batch_size=16)

# Validation is the test: nothing is chosen on it.
default_hooks = dict(checkpoint=dict(interval=5, save_best=None))
