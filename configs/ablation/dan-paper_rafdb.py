_base_ = '../dan_rafdb.py'

# Both losses as in the paper's equations: the affinity loss is a sum over the
# batch, 256 times that of the authors' code.
model = dict(head=dict(form='paper'))
