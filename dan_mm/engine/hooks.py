# Copyright (c) dan_mm contributors. All rights reserved.
import re
from typing import List, Optional

import torch
import torch.nn as nn
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch.utils.data import Dataset

from dan_mm.description import check_description, describe


def get_classes(dataset: Dataset) -> Optional[tuple]:
    """Get the names of the classes of a data set, if it has them."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return tuple(classes) if classes else None


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Refuse data sets whose classes are not those of the model.

    :class:`mmpretrain.engine.ClassNumCheckHook` compares numbers of classes,
    and fails on MMEngine's wrappers of data sets. This hook also compares the
    names of the training and the validation set.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation set.

        Args:
            runner (Runner): The runner.

        Raises:
            ValueError: If the classes differ.
        """
        train = runner.train_dataloader.dataset
        self._check_number(runner, train)
        if runner.val_loop is None:
            return
        val = runner.val_loop.dataloader.dataset
        self._check_number(runner, val)
        expected, found = get_classes(train), get_classes(val)
        if expected and found and expected != found:
            raise ValueError(
                f'The validation set has the classes {found}, the training '
                f'set {expected}, expected the same: their indices do not '
                'mean the same. Set `val_dataloader.dataset.target_classes` '
                'to those of the training set.')

    def before_test(self, runner: Runner) -> None:
        """Check the test set.

        Args:
            runner (Runner): The runner.

        Raises:
            ValueError: If it has another number of classes than the model.
        """
        self._check_number(runner, runner.test_loop.dataloader.dataset)

    def _check_number(self, runner: Runner, dataset: Dataset) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        number = getattr(getattr(model, 'head', None), 'num_classes', None)
        classes = get_classes(dataset)
        if number and classes and number != len(classes):
            raise ValueError(
                f'The model has num_classes={number}, the data set '
                f'{type(dataset).__name__} has {len(classes)} classes, '
                f'{classes}. Set `model.head.num_classes` to their number.')


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint whose weights are not those of the model.

    MMEngine loads what fits, logs the rest and goes on with random weights.
    ``tools/test.py`` and ``tools/train.py`` register this hook.

    Args:
        partial (bool): Whether some weights are enough, as for training that
            starts from other weights. Testing, resuming and fine-tuning need
            all of them. Defaults to False.
        new_classes (bool): Whether the data set may have other classes than
            the checkpoint, as for training that does not resume: then the head
            (the classifier, its BatchNorm, the class centres) starts fresh.
            Otherwise the classes must be the same. Defaults to False.
    """

    def __init__(self,
                 partial: bool = False,
                 new_classes: bool = False) -> None:
        self.partial = partial
        self.new_classes = new_classes
        self.classes = None  # their names, in a checkpoint that has them

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the weights of the checkpoint and of the model.

        Args:
            runner (Runner): The runner, with its model.
            checkpoint (dict): The loaded checkpoint.

        Raises:
            ValueError: If a weight is missing, left over or of another shape.
        """
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else {}
        self.classes = ((meta or {}).get('dataset_meta') or {}).get('classes')
        if self.new_classes:
            self._drop_other_head(runner, checkpoint)
        if runner._resume and 'optimizer' not in checkpoint:
            raise ValueError(
                'The checkpoint has no state of the optimizer, expected one '
                'to resume from. Use `epoch_<number>.pth`; the best ones are '
                'weights only, to start from with `--cfg-options load_from=`.')
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        problems = self.compare(model, checkpoint)
        if problems:
            more = f' and {len(problems) - 3} more' if problems[3:] else ''
            raise ValueError(
                'The checkpoint does not fit the model of this config: '
                f'{"; ".join(problems[:3])}{more}. Use it with the config '
                'that it was trained with.')

    def before_train(self, runner: Runner) -> None:
        """Compare the names of the classes where training resumes."""
        if not self.new_classes:
            self.compare_classes(runner.train_loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Compare the names of the classes."""
        self.compare_classes(runner.test_loop.dataloader.dataset)

    def compare_classes(self, dataset: Dataset) -> None:
        """Compare the names of the classes of the checkpoint and a data set.

        Args:
            dataset (Dataset): The data set.

        Raises:
            ValueError: If the classes have other names, or another order.
        """
        classes = get_classes(dataset)
        if self.classes and classes and tuple(self.classes) != classes:
            raise ValueError(
                'The checkpoint was trained on the classes '
                f'{tuple(self.classes)}, the data set has {classes}: '
                'their indices do not mean the same. Use it on a data set '
                'with the classes that it was trained on, or train it on '
                'these with `tools/train.py --finetune`, in another work '
                'folder.')

    def _drop_other_head(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the weights of a head that tells other classes apart."""
        dataset = runner.train_loop.dataloader.dataset
        classes = get_classes(dataset)
        if not classes or self.classes and tuple(self.classes) == classes:
            return
        weights = checkpoint.get('state_dict', checkpoint) if isinstance(
            checkpoint, dict) else {}
        head = [
            key for key in weights
            if re.sub(r'^module\.', '', str(key)).startswith('head.')
        ]
        for key in head:
            del weights[key]
        if head:
            known = tuple(self.classes) if self.classes else 'unknown names'
            runner.logger.info(
                f'The checkpoint has the classes {known}, the data set has '
                f'{classes}: the head starts fresh, with its '
                f'{len(head)} weights and statistics ('
                f'{", ".join(key.split("head.", 1)[1] for key in head)}).')

    def compare(self, model: nn.Module, checkpoint: dict) -> List[str]:
        """Load the weights of a checkpoint, or list what does not fit.

        Args:
            model (nn.Module): The model, which gets the weights that fit.
            checkpoint (dict): The loaded checkpoint.

        Returns:
            list[str]: What is missing, left over, or of another shape; empty
            if all fits.
        """
        if isinstance(checkpoint, dict) and 'model_state_dict' in checkpoint:
            return [
                'it is one of the original code, to be converted with '
                '`tools/model_converters/dan_to_mmpretrain.py`'
            ]
        weights = checkpoint
        if isinstance(checkpoint, dict):
            weights = checkpoint.get('state_dict', checkpoint)
        if not isinstance(weights, dict) or not all(
                isinstance(value, torch.Tensor) for value in weights.values()):
            return ['it has no weights by their names']
        weights = {
            re.sub(r'^module\.', '', key): value
            for key, value in weights.items()
        }
        if self.partial:
            own = model.state_dict()
            known = weights.keys() & own.keys()
            if not known:
                return [
                    f'none of its {len(weights)} weights has a name that the '
                    'model knows'
                ]
            return [
                f'{key} has the shape {tuple(weights[key].shape)}, in the '
                f'model {tuple(own[key].shape)}' for key in sorted(known)
                if weights[key].shape != own[key].shape
            ]
        try:
            # It raises where a weight has another shape.
            keys = model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            return [line.strip() for line in str(error).split('\n')[1:]]
        # The class centres are for training only; a head of other classes was
        # dropped.
        optional = 'head.' if self.new_classes else 'head.loss_'
        return [
            f'{key} is {what}'
            for names, what in ((keys.missing_keys, 'missing'),
                                (keys.unexpected_keys, 'left over'))
            for key in names if not key.startswith(optional)
        ]


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train and test with the weights in ``torch.channels_last`` order, with
    which convolutions are faster on most processors. Results are the same but
    for rounding."""

    def before_run(self, runner: Runner) -> None:
        """Reorder the weights.

        Args:
            runner (Runner): The runner.
        """
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop training where the loss is NaN or infinite, before a checkpoint is
    saved.

    Args:
        interval (int): How many iterations apart it looks at the losses since
            the last time, which waits for a GPU. It also looks at the end of
            an epoch. Defaults to 50.
    """

    # Before the checkpoints are saved, which is VERY_LOW.
    priority = 'LOW'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.first_wrong = None

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Note whether the loss is finite.

        Args:
            runner (Runner): The runner.
            batch_idx (int): The iteration in the epoch.
            data_batch (dict, optional): Not used. Defaults to None.
            outputs (dict, optional): With the scalar ``loss``. Defaults to
                None.
        """
        loss = outputs['loss'].detach()
        # The number of the first iteration that is not finite, without
        # waiting for it; 0 if there is none.
        now = (~loss.isfinite()).long() * (runner.iter + 1)
        if self.first_wrong is not None:
            now = torch.where(self.first_wrong > 0, self.first_wrong, now)
        self.first_wrong = now
        if self.every_n_train_iters(runner, self.interval):
            self._check(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the last iterations."""
        self._check(runner)

    def _check(self, runner: Runner) -> None:
        """Raise an error for a loss that was not finite."""
        iteration = int(self.first_wrong)
        if iteration:
            raise FloatingPointError(
                f'The loss was NaN or infinite in iteration {iteration} '
                f'(epoch {runner.epoch + 1}), expected a number: training has '
                'diverged. Lower the rate, with `--cfg-options '
                'optim_wrapper.optimizer.lr=`, or look for broken images; '
                f'the checkpoints of earlier epochs in {runner.work_dir} are '
                'good.')


@HOOKS.register_module()
class DescribeModelHook(Hook):
    """Put a description of the model and of its test pipeline into
    checkpoints, so that they can be used without their config: see
    :mod:`dan_mm.description`."""

    def before_train(self, runner: Runner) -> None:
        """Describe the model.

        Args:
            runner (Runner): The runner.
        """
        self.description = None
        try:
            description = describe(runner.cfg)
            check_description(*description, 'this config')
            self.description = description
        except ValueError as error:
            runner.logger.info(
                f'Checkpoints will need their config for inference: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it to a checkpoint.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What will be saved.
        """
        if self.description:
            checkpoint['meta'].update(
                model=self.description.model,
                test_pipeline=self.description.pipeline)
