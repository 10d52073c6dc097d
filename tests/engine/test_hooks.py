# Copyright (c) dan_mm contributors. All rights reserved.
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

import dan_mm.engine  # noqa: F401


class Diverging(BaseModel):
    """Its loss is the parameter times the sample."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=(self.weight * inputs).mean())


def train(samples, work_dir, interval):
    Runner(
        Diverging(),
        str(work_dir),
        train_dataloader=DataLoader(
            [dict(inputs=torch.tensor(sample)) for sample in samples]),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.)),
        default_hooks=dict(
            checkpoint=dict(type='mmpretrain.AtomicCheckpointHook')),
        custom_hooks=[
            dict(type='mmpretrain.FiniteLossHook', interval=interval)
        ]).train()


@pytest.mark.parametrize('interval', [1, 2, 50])
@pytest.mark.parametrize('wrong', [float('nan'), float('inf')])
def test_diverged_training_stops_before_it_is_saved(wrong, interval, tmp_path):
    with pytest.raises(FloatingPointError, match=r'iteration 3 \(epoch 1\)'):
        train([1., 2., wrong, 4., 5.], tmp_path, interval)
    assert not list(tmp_path.glob('*.pth'))


def test_training_goes_on_otherwise(tmp_path):
    train([1., 2., 3.], tmp_path, 2)
    assert (tmp_path / 'epoch_2.pth').is_file()
