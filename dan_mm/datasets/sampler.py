# Copyright (c) dan_mm contributors. All rights reserved.
import math
from typing import Iterator, Optional

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Dataset, Sampler, Subset


def get_labels(dataset: Dataset) -> torch.Tensor:
    """Get the labels, int64 of shape ``(len(dataset), )``, of a dataset, of
    MMEngine's wrappers around it, or of a :class:`torch.utils.data.Subset`."""
    if isinstance(dataset, Subset):
        return get_labels(dataset.dataset)[torch.as_tensor(
            dataset.indices, dtype=torch.long)]
    try:
        labels = [
            int(dataset.get_data_info(i)['gt_label'])
            for i in range(len(dataset))
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f'BalancedSampler found no label of each image in '
            f'{type(dataset).__name__} ({error!r}), expected '
            "`get_data_info(i)['gt_label']` to be one. Use a dataset for "
            'classification.') from error
    return torch.tensor(labels, dtype=torch.long)


@DATA_SAMPLERS.register_module()
class BalancedSampler(Sampler):
    """Draw images with replacement, each with a probability inverse to the
    number of images of its class: an epoch has about as many images of
    each class, and as many in all as the dataset.

    It is the sampling of `DAN <https://doi.org/10.3390/biomimetics8020199>`_
    on AffectNet. With several processes, all draw the same and each takes its
    share.

    Args:
        dataset (Dataset): A dataset with a ``gt_label`` for each image,
            also in one of MMEngine's wrappers.
        seed (int, optional): The seed, the same in all processes. Defaults to
            None, a random one that the processes share.

    Raises:
        ValueError: If the dataset is empty or has no labels.
    """

    def __init__(self, dataset: Dataset, seed: Optional[int] = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        labels = get_labels(dataset)
        if not len(labels):
            raise ValueError('BalancedSampler found no image in '
                             f'{type(dataset).__name__}, expected some. Check '
                             'its folder and its filters.')
        self.weights = 1 / torch.bincount(labels)[labels].double()
        self.num_samples = math.ceil(len(labels) / self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Draw the indices of an epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = torch.multinomial(
            self.weights,
            self.num_samples * self.world_size,
            replacement=True,
            generator=generator)
        return iter(indices[self.rank::self.world_size].tolist())

    def __len__(self) -> int:
        """The number of images that a process gets in an epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch: each has other images."""
        self.epoch = epoch
