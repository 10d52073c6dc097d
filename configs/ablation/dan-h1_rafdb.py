_base_ = '../dan_rafdb.py'

# Figure 5: the number of attention heads
model = dict(neck=dict(num_heads=1))
