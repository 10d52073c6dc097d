# Adam, cosine
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4))

param_scheduler = dict(
    type='CosineAnnealingLR',
    by_epoch=True,
    T_max=40,
    convert_to_iter_based=True)

train_cfg = dict(by_epoch=True, max_epochs=40)

auto_scale_lr = dict(base_batch_size=256)
