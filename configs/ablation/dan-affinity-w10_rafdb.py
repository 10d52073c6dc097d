_base_ = '../dan_rafdb.py'

# the weight of the affinity loss, 1 in the paper
model = dict(
    head=dict(loss_affinity=dict(type='AffinityLoss', loss_weight=10.)))
