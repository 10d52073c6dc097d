_base_ = '../dan_rafdb.py'

checkpoint = 'https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/mobilenet-v3-large_8xb128_in1k_20221114-0ed9ed9a.pth'

# From ImageNet. The schedule is that of ResNet-18: our choice, not trained
# here.
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV3',
        arch='large',
        out_indices=(16, ),
        init_cfg=dict(
            type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=dict(in_channels=960),
    head=dict(in_channels=960))
