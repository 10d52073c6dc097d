_base_ = '../dan_rafdb.py'

# Table 5: the center loss on the backbone's features
model = dict(head=dict(loss_affinity=dict(type='CenterLoss')))
