_base_ = 'resnet18-7x7_ferplus.py'

model = dict(
    neck=dict(_delete_=True, type='MAN', in_channels=256, num_heads=4),
    head=dict(
        _delete_=True,
        type='AFN',
        num_classes={{_base_.data_preprocessor.num_classes}},
        in_channels=256))
