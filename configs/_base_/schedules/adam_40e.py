# Adam, the rate times 0.6 after every epoch, as the original code does on
# AffectNet
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4))

param_scheduler = dict(type='ExponentialLR', by_epoch=True, gamma=0.6)

train_cfg = dict(by_epoch=True, max_epochs=40)

auto_scale_lr = dict(base_batch_size=256)
