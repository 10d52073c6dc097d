# The same cycle of the rate, and beta_1 of Adam goes the other way, from 0.95
# to 0.85 and back: what torch.optim.lr_scheduler.OneCycleLR does by default and
# MMEngine's leaves out. The rate peaks after 0.3 of the epochs.
_base_ = 'adam_onecycle_5e.py'

optim_wrapper = dict(optimizer=dict(betas=(0.95, 0.999)))

param_scheduler = [
    _base_.param_scheduler,
    dict(
        type='CosineAnnealingMomentum',
        eta_min=0.85,
        begin=0,
        end=1.5,
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingMomentum',
        eta_min=0.95,
        begin=1.5,
        end=5,
        by_epoch=True,
        convert_to_iter_based=True),
]
