_base_ = [
    '_base_/models/resnet18.py',
    '_base_/datasets/sfew.py',
    '_base_/schedules/adam_cosine_40e.py',
    '_base_/starts/resnet18_msceleb.py',
    '_base_/default_runtime.py',
]

# The paper gives the 40 epochs and the batch of 256; the rest is our choice, and
# not tuned, since the data are given out on request.
model = dict(
    # Trained on MS-Celeb-1M, see dan_rafdb.py for other starts.
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet18_msceleb.pth',
            prefix='backbone')),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
