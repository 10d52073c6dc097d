# Adam, one cycle of 5 epochs, from scratch. OneCycleLR sets the rate: for
# another batch size scale `eta_max`; `total_steps` goes with `max_epochs`.
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))

param_scheduler = dict(
    type='OneCycleLR',
    eta_max=1e-3,
    total_steps=5,
    by_epoch=True,
    convert_to_iter_based=True)

train_cfg = dict(by_epoch=True, max_epochs=5)
