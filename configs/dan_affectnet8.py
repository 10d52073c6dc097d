_base_ = [
    '_base_/models/dan_resnet18.py',
    '_base_/datasets/affectnet.py',
    '_base_/schedules/adam_40e.py',
    '_base_/starts/resnet18_msceleb.py',
    '_base_/default_runtime.py',
]

model = dict(
    # Trained on MS-Celeb-1M, see dan_rafdb.py for other starts.
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet18_msceleb.pth',
            prefix='backbone')),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
