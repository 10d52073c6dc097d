_base_ = '../dan_rafdb.py'

checkpoint = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'

# From ImageNet. The schedule is that of ResNet-18: our choice, not trained
# here. At this width MAN has 136 million parameters.
model = dict(
    backbone=dict(depth=50, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=2048),
    head=dict(in_channels=2048))
