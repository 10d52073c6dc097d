# Copyright (c) dan_mm contributors. All rights reserved.
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from dan_mm.engine import ChannelsLastHook
from dan_mm.engine.hooks import compare_weights


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


@pytest.mark.parametrize('change', [
    lambda weights: None,
    lambda weights: weights.pop('weight'),
    lambda weights: weights.update(weight=torch.ones(3, 3)),
    lambda weights: weights.update(other=torch.ones(1)),
], ids=['all', 'missing', 'shape', 'unexpected'])  # yapf: disable
def test_a_comparison_changes_nothing(change):
    model = torch.nn.BatchNorm1d(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value + 5 for key, value in before.items()}
    change(weights)
    given = dict(weights)
    fits = not compare_weights(model, weights)
    assert fits == (
        set(weights) == set(before) and weights['weight'].shape == (2, ))
    assert weights == given
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_batches_are_channels_last():
    """The losses of a step and the gradients are the same."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_rafdb.py').model
    cfg.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    cfg.neck.in_channels = cfg.head.in_channels = 64
    cfg.data_preprocessor = dict(num_classes=7, mean=[9.] * 3, std=[2.] * 3)
    model = MODELS.build(cfg).double().train()
    data = dict(
        inputs=torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i) for i in range(4)])

    def step():
        model.zero_grad()
        batch = model.data_preprocessor(data, training=True)
        losses = model(
            **{
                **batch, 'inputs': batch['inputs'].double()
            }, mode='loss')
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        return batch['inputs'], losses, grads

    inputs, losses, grads = step()
    assert inputs.is_contiguous()
    ChannelsLastHook().before_run(SimpleNamespace(model=model))
    reordered, same_losses, same_grads = step()
    assert reordered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(reordered, inputs)
    torch.testing.assert_close(same_losses, losses)
    torch.testing.assert_close(same_grads, grads)
