_base_ = '../dan_rafdb.py'

checkpoint = 'https://download.openmmlab.com/mmclassification/v0/vit/vit-base-p16_pt-32xb128-mae_in1k_20220623-4c544545.pth'

# From ImageNet; maps of 14x14
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        # MAN needs the map.
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=dict(in_channels=768),
    head=dict(in_channels=768))

# Our choice for this kind of backbone, not trained here
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.), pos_embed=dict(decay_mult=0.))))

param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    by_epoch=True,
    T_max=40,
    convert_to_iter_based=True)
