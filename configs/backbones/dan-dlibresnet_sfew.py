# From dlib's face recognition ResNet, which everybody may have. Make its file:
#   pip install face_recognition_models
#   python tools/model_converters/dlib_to_mmpretrain.py data/sfew/Train checkpoints/dlib_resnet.pth --size 224
# Maps of 6x6. The schedule is our choice, not trained here.
_base_ = [
    '../_base_/models/dan_dlibresnet.py',
    '../_base_/datasets/sfew.py',
    '../_base_/schedules/adamw_cosine_40e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))

data_preprocessor = dict(
    # RGB, of dlib
    mean=[122.782, 117.001, 104.298],
    std=[256., 256., 256.])
