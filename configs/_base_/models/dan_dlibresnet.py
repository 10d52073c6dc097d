# DAN on dlib's face recognition ResNet
_base_ = 'dlibresnet.py'

model = dict(
    # The features of that network are large: see `map_scale`.
    neck=dict(
        _delete_=True, type='MAN', in_channels=256, num_heads=4,
        map_scale=0.2),
    head=dict(_delete_=True, type='AFN', num_classes=7, in_channels=256))
