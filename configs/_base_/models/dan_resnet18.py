# DAN as in the paper: ResNet-18, four attention heads
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(3, ),
        style='pytorch',
        # as torchvision's, which the original code uses
        zero_init_residual=False),
    neck=dict(type='MAN', in_channels=512, num_heads=4),
    head=dict(type='AFN', num_classes=7, in_channels=512))
