# What to do where the weights that the config starts from are missing
checkpoint_hints = {
    'checkpoints/resnet18_msceleb.pth':
    'It is a ResNet-18 trained on MS-Celeb-1M. Download resnet18_msceleb.pth '
    'as the README of https://github.com/yaoing/DAN says, and convert it with '
    '`python tools/model_converters/dan_to_mmpretrain.py resnet18_msceleb.pth '
    'checkpoints/resnet18_msceleb.pth`. Or start from dlib\'s face recognition '
    'ResNet, which everybody may use, with '
    'configs/backbones/dan-dlibresnet_rafdb.py and the like, from ImageNet '
    'with `--cfg-options model.backbone.init_cfg.checkpoint='
    'https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet18_8xb32_in1k_20210831-fbbb1da6.pth`, or from scratch with '
    '`--cfg-options model.backbone.init_cfg=None`.'
}
