_base_ = '../dan_rafdb.py'

# Table 5: no loss on the backbone's features
model = dict(head=dict(loss_affinity=None))
