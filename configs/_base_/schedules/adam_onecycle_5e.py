# Adam, one cycle of 5 epochs, from scratch
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))

param_scheduler = dict(
    type='OneCycleLR',
    eta_max=1e-3,
    total_steps=5,
    by_epoch=True,
    convert_to_iter_based=True)

train_cfg = dict(by_epoch=True, max_epochs=5)

auto_scale_lr = dict(base_batch_size=128)
