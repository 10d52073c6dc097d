# Copyright (c) dan_mm contributors. All rights reserved.
import warnings
from typing import Any, List, Optional, Sequence

import torch
import torch.nn as nn
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, PretrainedInit, is_model_wrapper
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from mmpretrain.registry import HOOKS
from torch.utils.data import Dataset

from dan_mm.description import check_description, describe
from dan_mm.errors import CheckpointLoadError, list_some
from .training_state import check_training_state, continue_schedule


def get_classes(dataset: Dataset) -> Optional[tuple]:
    """Get the names of the classes of a dataset, if it has them."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return tuple(classes) if classes else None


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Refuse datasets whose classes are not those of the model.

    :class:`mmpretrain.engine.ClassNumCheckHook` compares numbers of classes,
    and fails on MMEngine's wrappers of datasets. This hook also compares the
    names of the training and the validation set.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation set.

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
                f'set {expected}, expected the same. Set '
                '`val_dataloader.dataset.target_classes` to the latter.')

    def before_test(self, runner: Runner) -> None:
        """Check the test set.

        Raises:
            ValueError: If it has another number of classes than the model.
        """
        self._check_number(runner, runner.test_loop.dataloader.dataset)

    def _check_number(self, runner: Runner, dataset: Dataset) -> None:
        model = unwrap(runner.model)
        number = getattr(getattr(model, 'head', None), 'num_classes', None)
        classes = get_classes(dataset)
        if number and classes and number != len(classes):
            raise ValueError(
                f'The model has num_classes={number}, the dataset '
                f'{type(dataset).__name__} has {len(classes)} classes, '
                f'{classes}. Set `model.head.num_classes` to their number.')


def unwrap(model: nn.Module) -> nn.Module:
    """Get the model out of wrappers for distributed training and TTA."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def compare_weights(model: nn.Module,
                    weights: dict,
                    share: Optional[float] = None,
                    optional: str = '') -> List[str]:
    """List the weights that do not fit a model, which stays as it is: what is
    missing, unexpected, or of another shape.

    Instead of all, the ``share`` of the model's weights may be enough. Names
    that begin with ``optional`` need not fit.
    """
    own = model.state_dict()
    before = {
        key: value.clone()
        for key, value in own.items() if isinstance(value, torch.Tensor)
    }
    try:
        # Only loading tells, since networks convert weights of other versions
        # and sizes. It raises where a weight has another shape.
        keys = model.load_state_dict(weights, strict=False)
    except Exception as error:
        first, *lines = str(error).splitlines() or [type(error).__name__]
        return [line.strip() for line in lines] or [first]
    finally:
        for key, value in before.items():
            own[key].copy_(value)
    if share is not None:
        # PyTorch fills in the number of batches, which it did not always save.
        known = [key for key in own if 'num_batches_tracked' not in key]
        found = len(set(known).difference(keys.missing_keys))
        if found >= max(share * len(known), 1):
            return []
        return [
            f'of its {len(weights)} weights {found or "none"} '
            f'{"have names" if found > 1 else "has a name"} that the model '
            f'knows, which has {len(known)}'
        ]
    return [
        f'{key} is {what}'
        for names, what in ((keys.missing_keys, 'missing'),
                            (keys.unexpected_keys, 'unexpected'))
        for key in names if not (optional and key.startswith(optional))
    ]


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint whose weights are not those of the model.

    MMEngine loads what fits, logs the rest and goes on with random weights.
    ``tools/test.py`` and ``tools/train.py`` register this hook.

    Args:
        partial (bool): Whether some weights are enough, as for training that
            starts from other weights. Testing, resuming and fine-tuning need
            all of them. Defaults to False.
        new_classes (bool): Whether the dataset may have other classes than
            the checkpoint, as for training that does not resume: then the head
            (the classifier, its BatchNorm, the class centres) starts fresh.
            Otherwise the classes must be the same. Defaults to False.
    """

    # Other hooks change what is loaded.
    priority = 'VERY_HIGH'

    def __init__(self,
                 partial: bool = False,
                 new_classes: bool = False) -> None:
        self.partial = partial
        self.new_classes = new_classes
        self.classes = None  # their names, in a checkpoint that has them

    def before_run(self, runner: Runner) -> None:
        """Compare weights that parts of the model start from, with
        ``init_cfg=dict(type='Pretrained', checkpoint=...)``.

        Raises:
            CheckpointLoadError: If a weight has another shape, or less than
                half of the part gets weights.
        """
        # A test runs with the config of its training.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        for name, module in unwrap(runner.model).named_modules():
            starts = getattr(module, 'init_cfg', None) or []
            for start in [starts] if isinstance(starts, dict) else starts:
                if WEIGHT_INITIALIZERS.get(start['type']) is PretrainedInit:
                    hints = runner.cfg.get('checkpoint_hints', {})
                    self._compare_start(f'model.{name}'.rstrip('.'), module,
                                        start,
                                        hints.get(start['checkpoint'], ''))

    @staticmethod
    def _compare_start(name: str, module: nn.Module, start: dict,
                       hint: str) -> None:
        path, prefix = start['checkpoint'], start.get('prefix')
        weights = CheckpointLoader.load_checkpoint(
            path, map_location='cpu', logger='silent')['state_dict']
        prefix = f'{prefix.rstrip(".")}.' if prefix else ''
        weights = {
            key[len(prefix):]: value
            for key, value in weights.items() if key.startswith(prefix)
        }
        problems = compare_weights(module, weights, share=0.5)
        if problems:
            raise CheckpointLoadError(
                f'The weights {path} do not fit {name}: '
                f'{list_some(problems)}. Set `{name}.init_cfg` to others, '
                f'with their `prefix`, or to None. {hint}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the weights of the checkpoint and of the model.

        Raises:
            CheckpointLoadError: If a weight is missing, unexpected or of
                another shape, or training cannot resume from it.
        """
        self.classes = (checkpoint['meta'].get('dataset_meta')
                        or {}).get('classes')
        if self.new_classes:
            self._drop_other_head(runner, checkpoint)
        if runner._resume and 'optimizer' not in checkpoint:
            raise CheckpointLoadError(
                'The checkpoint has no state of the optimizer, expected one '
                'to resume from. Use `epoch_<number>.pth`, or start from the '
                'weights with `--cfg-options load_from=`.')
        # A tenth, since heads can be larger than the backbone that is known.
        # The class centres are for training only.
        model, weights = unwrap(runner.model), checkpoint['state_dict']
        problems = compare_weights(
            model,
            weights,
            share=0.1 if self.partial else None,
            optional='head.' if self.new_classes else 'head.loss_')
        if problems:
            raise CheckpointLoadError(
                'The checkpoint does not fit the model of this config: '
                f'{list_some(problems)}. Use it with the config of its '
                'training.')
        if self.new_classes:
            # What hooks copy, such as a moving average, is the fresh head.
            for key, value in model.state_dict().items():
                if key.startswith('head.'):
                    weights.setdefault(key, value.clone())
        if runner._resume:
            check_training_state(runner, checkpoint)
            continue_schedule(runner, checkpoint)

    def after_test_iter(self,
                        runner: Runner,
                        batch_idx: int,
                        data_batch: Any = None,
                        outputs: Optional[Sequence] = None) -> None:
        """Refuse scores that are no numbers: as an accuracy they would be 0.

        Validation does so, too.

        Raises:
            CheckpointLoadError: If scores are not finite.
        """
        for sample in outputs or ():
            scores = getattr(sample, 'pred_score', None)
            if scores is not None and not scores.isfinite().all():
                raise CheckpointLoadError(
                    'The model gives scores that are not finite (NaN or '
                    'infinity), expected numbers: its training has diverged. '
                    'Use an earlier checkpoint.')

    after_val_iter = after_test_iter

    def before_train(self, runner: Runner) -> None:
        """Compare the names of the classes where training resumes."""
        if not self.new_classes:
            self.compare_classes(runner.train_loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Compare the names of the classes."""
        self.compare_classes(runner.test_loop.dataloader.dataset)

    def compare_classes(self, dataset: Dataset) -> None:
        """Compare the names of the classes of the checkpoint and a dataset, or
        raise ValueError."""
        classes = get_classes(dataset)
        if self.classes and classes and tuple(self.classes) != classes:
            raise ValueError(
                'The checkpoint was trained on the classes '
                f'{tuple(self.classes)}, the dataset has {classes}, expected '
                'the same. Train it on these with `tools/train.py '
                '--finetune`, in another work folder.')

    def _drop_other_head(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the weights of a head that tells other classes apart."""
        classes = get_classes(runner.train_loop.dataloader.dataset)
        if not classes or self.classes and tuple(self.classes) == classes:
            return
        weights = checkpoint['state_dict']
        head = [key for key in weights if key.startswith('head.')]
        for key in head:
            del weights[key]
        if head:
            # `state_dict` has the averaged weights already.
            checkpoint.pop('ema_state_dict', None)
            known = tuple(self.classes) if self.classes else 'unknown names'
            runner.logger.info(
                f'The checkpoint has the classes {known}, the dataset has '
                f'{classes}: the head starts fresh ({", ".join(head)}).')


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train and test on batches in ``torch.channels_last`` order, which
    convolutions keep and with which they are faster on most processors.

    Results are the same but for rounding. The weights stay as they are: DDP
    would have to reorder their gradients.
    """

    def before_run(self, runner: Runner) -> None:
        """Reorder what comes out of the data preprocessor."""
        model = unwrap(runner.model)
        model.data_preprocessor.register_forward_hook(self.reorder)
        # DDP means weights of 1x1, for which both orders are the same.
        warnings.filterwarnings('ignore', 'Grad strides do not match')

    @staticmethod
    def reorder(preprocessor: nn.Module, args: tuple, data: dict) -> None:
        """Reorder the inputs of a batch, of shape ``(B, C, H, W)``."""
        inputs = data['inputs']
        if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            data['inputs'] = inputs.to(memory_format=torch.channels_last)


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
        """Note whether the loss is finite."""
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
                f'(epoch {runner.epoch + 1}), expected a number. Lower the '
                'rate, with `--cfg-options optim_wrapper.optimizer.lr=`; the '
                f'earlier checkpoints in {runner.work_dir} are good.')


@HOOKS.register_module()
class DescribeModelHook(Hook):
    """Put a description of the model and of its test pipeline into
    checkpoints, so that they can be used without their config: see
    :mod:`dan_mm.description`."""

    def before_train(self, runner: Runner) -> None:
        """Describe the model."""
        self.description = None
        try:
            description = describe(runner.cfg)
            check_description(*description, 'this config')
            self.description = description
        except ValueError as error:
            runner.logger.info(
                f'Checkpoints will need their config for inference: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it to a checkpoint."""
        if self.description:
            checkpoint['meta'].update(
                model=self.description.model,
                test_pipeline=self.description.pipeline)
