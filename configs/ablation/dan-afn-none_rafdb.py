_base_ = '../dan_rafdb.py'

# Table 5: no loss between the attention heads
model = dict(head=dict(loss_partition=None))
