# Copyright (c) dan_mm contributors. All rights reserved.
import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Subset

from dan_mm.datasets import sampler as module

COUNTS = (600, 60, 20)


class Labels(BaseDataset):
    """Labels and no images."""

    def __init__(self, labels, **kwargs):
        self.labels = labels
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        return [dict(gt_label=label) for label in self.labels]


def labels(counts=COUNTS):
    return np.repeat(range(len(counts)), counts).tolist()


def sampler(dataset, **kwargs):
    return DATA_SAMPLERS.build(
        dict(type='BalancedSampler', dataset=dataset, seed=0, **kwargs))


def shares(dataset, epochs=10):
    """How often each class is drawn."""
    drawn = sampler(dataset)
    found = module.get_labels(dataset).numpy()
    counts = 0
    for epoch in range(epochs):
        drawn.set_epoch(epoch)
        counts = counts + np.bincount(found[list(drawn)], minlength=3)
    assert counts.sum() == epochs * len(dataset)
    return counts / counts.sum()


@pytest.mark.parametrize('wrap', [
    lambda dataset: dataset,
    lambda dataset: RepeatDataset(dataset, 2),
    lambda dataset: ConcatDataset([dataset, Labels(labels((0, 5, 9)))]),
    lambda dataset: Subset(dataset, range(300, 680)),
    lambda dataset: dataset.get_subset(list(range(300, 680))),
])
def test_classes_are_balanced(wrap):
    assert np.allclose(shares(wrap(Labels(labels()))), 1 / 3, atol=.03)


def test_labels_of_a_subset():
    dataset = Subset(Labels([2, 0, 1, 2]), [3, 1])
    assert module.get_labels(dataset).tolist() == [2, 0]
    assert module.get_labels(Subset(dataset, [1])).tolist() == [0]


def test_images_of_a_class_are_alike():
    dataset = Labels([0] * 4 + [1] * 2)
    drawn = sampler(dataset)
    counts = np.zeros(6)
    for epoch in range(2000):
        drawn.set_epoch(epoch)
        counts += np.bincount(list(drawn), minlength=6)
    expected = [1 / 8] * 4 + [1 / 4] * 2
    assert np.allclose(counts / counts.sum(), expected, atol=.01)


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_processes_share_an_epoch(monkeypatch, world_size):
    dataset = Labels(labels((30, 10, 1)))
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(module, 'get_dist_info', lambda:
                            (rank, world_size))
        parts.append(sampler(dataset))
    assert len({len(part) for part in parts}) == 1
    assert all(len(list(part)) == len(part) for part in parts)
    assert len(parts[0]) == -(-41 // world_size)
    # All draw the same and each takes its share.
    drawn = torch.multinomial(
        parts[0].weights,
        len(parts[0]) * world_size,
        replacement=True,
        generator=torch.Generator().manual_seed(0)).tolist()
    assert [i for step in zip(*parts) for i in step] == drawn


def test_epochs_and_seeds():
    dataset = Labels(labels())
    first, same = sampler(dataset), sampler(dataset)
    assert list(first) == list(same) == list(first)
    same.set_epoch(1)
    assert list(first) != list(same)


@pytest.mark.parametrize('dataset, message', [
    (Subset(Labels([1]), []), 'no image in Subset'),
    ([1, 2], 'no label of each image in list'),
])
def test_refusals(dataset, message):
    with pytest.raises(ValueError, match=message):
        sampler(dataset)
