_base_ = [
    '_base_/models/dan_resnet18.py',
    '_base_/datasets/rafdb.py',
    '_base_/schedules/sgd_40e.py',
    '_base_/starts/resnet18_msceleb.py',
    '_base_/default_runtime.py',
]

model = dict(
    # Trained on MS-Celeb-1M. From ImageNet instead:
    #   --cfg-options model.backbone.init_cfg.checkpoint=https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth  # noqa: E501
    # From scratch:
    #   --cfg-options model.backbone.init_cfg=None
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet18_msceleb.pth',
            prefix='backbone')),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
