# SFEW 2.0, aligned, 224x224, with the augmentation of AffectNet
_base_ = 'affectnet.py'

data_preprocessor = dict(num_classes=7)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SFEW',
        data_root='data/sfew',
        split='train',
        pipeline={{_base_.train_pipeline}}),
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))

test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SFEW',
        data_root='data/sfew',
        split='val',
        pipeline={{_base_.test_pipeline}}))
