# Copyright (c) dan_mm contributors. All rights reserved.
import random
from typing import Any, List, Sequence

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS
from torch.utils.data import Dataset


def set_seed(*numbers: int) -> None:
    """Seed Python's, NumPy's and PyTorch's random numbers from numbers >=
    0."""
    state = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)
    torch.manual_seed(int(state[:2].view(np.uint64)[0]))


class SeededFetch:
    """Load a batch with random numbers that depend on the seed, the epoch and
    the indices of the batch, and not on what the process did before.

    It is what PyTorch's loader looks for as ``dataset.__getitems__``. The
    epoch, int64 of shape ``(1, )``, is in memory that is shared with workers
    that stay alive over epochs.
    """

    def __init__(self, dataset: Dataset, seed: int,
                 epoch: torch.Tensor) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = epoch
        self.fetch = getattr(dataset, '__getitems__', None)

    def __call__(self, indices: Sequence[int]) -> List[Any]:
        """Load the samples of the indices."""
        set_seed(self.seed, int(self.epoch), *indices)
        if self.fetch is not None:
            return self.fetch(indices)
        return [self.dataset[index] for index in indices]


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Make an epoch of training depend on the seed and its number alone, so
    that a resumed training goes on as the uninterrupted one: on a CPU to the
    last bit.

    MMEngine's checkpoints hold no state of random numbers, and its workers
    either go on with theirs from epoch to epoch, or start every epoch with the
    same. With this hook the order of the images, their augmentation and
    dropout are the same with any number of workers, too. A seed that was drawn
    since none was set is taken over from the checkpoint.

    It works with loops over epochs, and does nothing in others. Gradients that
    are accumulated over the end of an epoch are not in its checkpoint: then
    resumed training differs, and a warning says so.
    """

    seed = None

    def before_train(self, runner: Runner) -> None:
        """Take over the loading of training batches."""
        loader = runner.train_dataloader
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if len(loader) % steps:
            runner.logger.warning(
                f'An epoch has {len(loader)} iterations, no multiple of '
                f'accumulative_counts={steps}: training that is resumed will '
                'not be the same as without the interruption.')
        # Of the first process, in all of them: `diff_rank_seed` adds ranks.
        seed = torch.tensor([runner.seed])
        broadcast(seed)
        self.seed = int(seed)
        self.epoch = torch.tensor([runner.epoch]).share_memory_()
        loader.dataset.__getitems__ = SeededFetch(loader.dataset, self.seed,
                                                  self.epoch)
        # A resumed seed comes after the sampler was made.
        for sampler in (loader.sampler,
                        getattr(loader.batch_sampler, 'sampler', None)):
            if hasattr(sampler, 'seed'):
                sampler.seed = self.seed

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the workers."""
        if self.seed is not None:
            self.epoch.fill_(runner.epoch)
            # The order of the images, of samplers without a seed
            set_seed(self.seed, runner.epoch)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Seed what the model does with a batch, such as dropout."""
        if self.seed is not None:
            set_seed(self.seed, runner.epoch, get_rank(), batch_idx)
