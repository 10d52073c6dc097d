# The same over 40 epochs
_base_ = 'adamw_cosine_16e.py'

warmup, cosine = _base_.param_scheduler
param_scheduler = [warmup, dict(cosine, end=40)]

train_cfg = dict(max_epochs=40)

auto_scale_lr = dict(base_batch_size=256)
