# Copyright (c) dan_mm contributors. All rights reserved.
"""What a checkpoint has to hold for training to resume from it."""
import math
import warnings
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from dan_mm.errors import CheckpointLoadError


def check_training_state(runner: Runner, checkpoint: dict) -> None:
    """Check what a training resumes from, except for the weights, or raise
    CheckpointLoadError.

    MMEngine copies it into its objects as it is, and fails in the first
    iteration that uses it, or trains on with other numbers.
    """
    try:
        meta = checkpoint['meta']
        for name in 'epoch', 'iter':
            _expect(
                type(meta.get(name)) is int and 0 <= meta[name] < 2**48,
                f'meta.{name}', 'a number >= 0')
        seed = meta.get('seed')
        _expect(
            seed is None or isinstance(seed, Integral) and 0 <= seed < 2**32,
            'meta.seed', 'a seed')
        _expect('message_hub' in checkpoint, 'message_hub',
                'the messages of MMEngine')
        _check_optimizer(runner.optim_wrapper, checkpoint.get('optimizer'))
        if runner.param_schedulers is not None:
            _check_schedulers(runner.param_schedulers,
                              checkpoint.get('param_schedulers'),
                              max(meta['epoch'], meta['iter']))
    except ValueError as error:
        raise CheckpointLoadError(
            f'Training cannot resume from the checkpoint: {error}. Use '
            '`epoch_<number>.pth` of a training with this config; of others '
            'only the weights, with `--cfg-options load_from=`.') from None


# A schedule is followed for so many iterations, which takes a minute or two;
# a checkpoint may name any number.
MAX_STEPS = 10**7
# What changes in training
PROGRESS = frozenset(('_global_step', '_last_value', 'best',
                      'cooldown_counter', 'last_step', 'num_bad_epochs'))


def continue_schedule(runner: Runner, checkpoint: dict) -> None:
    """Continue on the schedule of the config where it is not the checkpoint's,
    whose states are replaced. CheckpointLoadError is raised if that ends
    before the checkpoint, or cannot be continued.

    MMEngine would go on with the latter, even where it has come to its end.
    """
    schedulers = runner.param_schedulers or []
    states = checkpoint.get('param_schedulers') or []
    several = isinstance(schedulers, dict)  # of several optimizers
    pairs = zip(schedulers, states)
    if several:
        pairs = (
            pair for name in schedulers
            for pair in zip(schedulers[name], states[name]))
    changes = [
        f'{key} of {type(own).__name__} is {value!r:.60}, in the checkpoint '
        f'{state[key]!r:.60}' for own, state in pairs
        for key, value in own.state_dict().items()
        if key not in PROGRESS and value != state[key]
    ]
    if not changes:
        return
    epochs, iters = (checkpoint['meta'][key] for key in ('epoch', 'iter'))
    try:
        if (several or iters > MAX_STEPS
                or any(hasattr(one, 'monitor') for one in schedulers)):
            raise ValueError('it cannot be continued')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about steps of the optimizer
            for i in range(1, iters + 1):
                end = epochs and i * epochs % iters < epochs
                for by_epoch in (False, True) if end else (False, ):
                    for scheduler in schedulers:
                        if scheduler.by_epoch == by_epoch:
                            scheduler.step()
    except ValueError as error:
        raise CheckpointLoadError(
            'Training cannot resume on the schedule of this config: '
            f'{changes[0]} ({error}). Give the schedule of the checkpoint, or '
            'start a new training from its weights, with `--cfg-options '
            'load_from=`.') from None
    state = deepcopy(runner.optim_wrapper.state_dict())
    for key in state.keys() & {'param_groups', 'base_param_settings'}:
        checkpoint['optimizer'][key] = state[key]
    checkpoint['param_schedulers'] = [one.state_dict() for one in schedulers]
    runner.logger.warning(
        'Training continues on the schedule of this config, which is not '
        f'that of the checkpoint: {changes[0]}. The learning rate is '
        f'{state["param_groups"][0]["lr"]:.3g}.')


def _expect(fits: bool, place: str, expected: str) -> None:
    if not fits:
        raise ValueError(f'{place} is missing or wrong, expected {expected}')


def _check_optimizer(wrapper: Any, state: Any) -> None:
    own = wrapper.state_dict()
    _expect(isinstance(state, dict), 'optimizer', 'its state')
    if not isinstance(wrapper, OptimWrapper):  # of several optimizers
        for name, part in wrapper.items():
            _check_optimizer(part, state.get(name))
        return
    # A loss scaler may be there or not: mixed precision is an option.
    _expect(state.keys() <= {*own, 'loss_scaler'}, 'optimizer',
            f'nothing but {sorted(own)}')
    rest = own.keys() & state.keys() - {'state', 'param_groups'}
    _compare({key: own[key]
              for key in rest}, {key: state[key]
                                 for key in rest}, 'optimizer')
    moments = state.get('state')
    _expect(
        isinstance(moments, dict)
        and all(isinstance(key, int) for key in moments), 'optimizer.state',
        'that of each parameter')
    optimizer = deepcopy(wrapper.optimizer)
    try:
        # PyTorch checks next to nothing before the first step.
        optimizer.load_state_dict(
            dict(
                state=deepcopy(moments),
                param_groups=deepcopy(state['param_groups'])))
        params = [
            param for group in optimizer.param_groups
            for param in group['params']
        ]
        for param in params:
            param.grad = torch.zeros_like(param)
        # Schedulers replace the method of the instance that was copied.
        type(optimizer).step(optimizer)
        finite = all(bool(param.isfinite().all()) for param in params)
    except Exception as error:
        raise ValueError('optimizer is the state of another one '
                         f'({type(error).__name__}: {str(error):.100})')
    _expect(finite, 'optimizer', 'finite numbers')
    _expect(
        bool(moments) or not any(optimizer.state.values()), 'optimizer.state',
        'that of each parameter')


def _check_schedulers(own: Any, found: Any, steps: int) -> None:
    if isinstance(own, dict):  # for several optimizers
        _expect(
            isinstance(found, dict) and own.keys() == found.keys(),
            'param_schedulers', f'those of {sorted(own)}')
        for name in own:
            _check_schedulers(own[name], found[name], steps)
        return
    _expect(
        isinstance(found, (list, tuple)) and len(found) == len(own),
        'param_schedulers', f'the states of {len(own)}')
    for number, (scheduler, state) in enumerate(zip(own, found)):
        place = f'param_schedulers[{number}]'
        _compare(scheduler.state_dict(), state, place)
        for key in 'last_step', '_global_step':
            _expect(-1 <= state[key] <= steps + 1, f'{place}.{key}',
                    f'at most the {steps} of the training')


def _compare(own: Any, found: Any, place: str) -> None:
    """Compare the structure of two states: names and types, not numbers."""
    _expect(
        any(fits for fits in _fits(own, found)), place,
        f'{own!r:.60}' if isinstance(own, (str, bool)) else
        f'a {type(own).__name__} like that of this config')
    if isinstance(own, dict) and own:
        # Numbers are keys of milestones, which may be others.
        same = own.keys() == found.keys() or all(
            isinstance(key, int) for key in [*own, *found])
        _expect(same, place, f'the keys {sorted(map(str, own))}')
        first = next(iter(own.values()))
        for key, value in found.items():
            _compare(own.get(key, first), value, f'{place}.{key}')
    elif isinstance(own, (list, tuple)):
        for number, (one, other) in enumerate(zip(own, found)):
            _compare(one, other, f'{place}[{number}]')


def _fits(own: Any, found: Any) -> Iterator[bool]:
    yield own is None and (found is None or isinstance(found, Real))
    yield isinstance(own, str) and found == own
    yield isinstance(own, bool) and isinstance(found, bool)
    yield isinstance(own, Integral) and isinstance(found, Integral)
    yield (isinstance(own, Real) and not isinstance(own, Integral)
           and isinstance(found, Real)
           and (-math.inf < found < math.inf or found == own))
    yield isinstance(own, dict) and isinstance(found, dict)
    yield (isinstance(own, (list, tuple)) and isinstance(found, (list, tuple))
           and len(own) == len(found))
    yield isinstance(own, torch.Tensor) and isinstance(
        found, torch.Tensor) and own.shape == found.shape
    yield callable(own) and callable(found) and (
        own.__qualname__.split('.')[0] == found.__qualname__.split('.')[0])
