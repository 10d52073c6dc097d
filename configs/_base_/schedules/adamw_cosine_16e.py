# AdamW, one cycle: up to the rate in half an epoch, down along a cosine. What
# comes after a trained backbone learns twelve times as fast.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2.5e-4, weight_decay=5e-3),
    paramwise_cfg=dict(
        custom_keys=dict(neck=dict(lr_mult=12.), head=dict(lr_mult=12.))))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.04,
        by_epoch=True,
        begin=0,
        end=0.5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-3,
        by_epoch=True,
        begin=0.5,
        end=16,
        convert_to_iter_based=True),
]

train_cfg = dict(by_epoch=True, max_epochs=16)
