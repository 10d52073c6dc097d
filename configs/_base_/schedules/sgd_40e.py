# SGD, the rate divided by 10 every 10 epochs, as the original code does on
# RAF-DB
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))

param_scheduler = dict(
    type='MultiStepLR', by_epoch=True, milestones=[10, 20, 30], gamma=0.1)

train_cfg = dict(by_epoch=True, max_epochs=40)

auto_scale_lr = dict(base_batch_size=256)
