_base_ = '../dan_rafdb.py'

# the weight of the partition loss, 1 in the paper
model = dict(
    head=dict(loss_partition=dict(type='PartitionLoss', loss_weight=10.)))
