_base_ = 'dan-dlibresnet_affectnet8.py'

model = dict(head=dict(num_classes=7))
data_preprocessor = dict(num_classes=7)
train_dataloader = dict(dataset=dict(num_classes=7))
test_dataloader = dict(dataset=dict(num_classes=7))
