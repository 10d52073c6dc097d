# Copyright (c) dan_mm contributors. All rights reserved.
"""A checkpoint is data, never code.

Importing this module, as :func:`dan_mm.register_all_modules`, the configs and
:mod:`dan_mm.apis` do, registers loaders for all schemes of MMEngine's
:class:`~mmengine.runner.CheckpointLoader`, which training, resuming, testing,
``Pretrained`` and the inferencers use. MMEngine's own loaders unpickle
whatever a file holds.
"""
import math
import os
import os.path as osp
import re
import threading
import zipfile
from functools import reduce
from numbers import Real
from typing import Any, Callable, Optional, Sequence, Tuple
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import (CheckpointLoader, get_deprecated_model_names,
                             get_external_models, get_mmcls_models,
                             get_torchvision_models)
from torch.serialization import (add_safe_globals, clear_safe_globals,
                                 get_safe_globals)

from .errors import CheckpointLoadError, CheckpointNotFoundError, list_some
from .version import check_versions

# Versions of torch that do not fit run code from weights-only files
# (CVE-2025-32434).
check_versions()

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


_core = np._core if hasattr(np, '_core') else np.core
_ARRAYS = _core.multiarray._reconstruct, _core.multiarray.scalar
SAFE_GLOBALS = [
    *FUNCTIONS,
    (_get_function, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *_ARRAYS,
    # the names that NumPy 1 writes
    *((function, f'numpy.core.multiarray.{function.__name__}')
      for function in _ARRAYS),
    *(type(np.dtype(kind))
      for kind in (np.bool_, np.uint8, np.uint32, np.int32, np.int64,
                   np.float32, np.float64)),
]
_lock = threading.Lock()


def _check_archive(path: str) -> None:
    """Refuse an archive of code, and one that needs more memory than its size
    says: a small file could hold many gigabytes of zeros."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(item.filename.endswith('/constants.pkl') for item in members):
        raise CheckpointLoadError('it is TorchScript, which is code')
    if sum(item.file_size for item in members) > osp.getsize(path):
        raise CheckpointLoadError('it is compressed')


def _without_attributes(value: Any, memo: dict) -> Any:
    """Copy containers and tensors: a file can give them attributes that hide
    their methods."""
    if id(value) in memo:
        return memo[id(value)]
    copy = value
    if isinstance(value, torch.Tensor):
        copy = torch.Tensor.detach(value)
    elif isinstance(value, dict):
        # A dict, an OrderedDict or a Counter
        copy = memo[id(value)] = type(value)()
        for key, item in dict.items(value):
            copy[key] = _without_attributes(item, memo)
        # The versions of modules, from `Module.state_dict`
        modules = getattr(value, '_metadata', None)
        if isinstance(modules, dict):
            copy._metadata = {
                name: dict(version=item['version'])
                for name, item in dict.items(modules)
                if isinstance(item, dict)
                and isinstance(item.get('version'), int)
            }
    elif type(value) in (list, tuple):
        copy = type(value)(_without_attributes(item, memo) for item in value)
    memo[id(value)] = copy
    return copy


def load_file(path: str, map_location: Any = 'cpu') -> Any:
    """Load weights and plain data from a file that :func:`torch.save` wrote,
    without running anything in it. CheckpointLoadError is raised if it cannot
    be read, is broken, or holds anything else, and CheckpointNotFoundError if
    it is missing."""
    path = osp.expanduser(path)
    if not osp.isfile(path):
        found = f'no checkpoint {path}'
        if osp.exists(path):
            found = f'no regular file {path}, expected a checkpoint'
        raise CheckpointNotFoundError(f'Found {found}. Check the path.')
    try:
        _check_archive(path)
        with _lock:
            # MMEngine allows `getattr`, with which a checkpoint reads
            # anything.
            allowed = get_safe_globals()
            clear_safe_globals()
            add_safe_globals(SAFE_GLOBALS)
            try:
                content = torch.load(path, map_location, weights_only=True)
            finally:
                clear_safe_globals()
                add_safe_globals(allowed)
        return _without_attributes(content, {})
    except OSError as error:
        raise CheckpointLoadError(
            f'The checkpoint {path} cannot be read: {error}. Expected a '
            'readable file. Check the path and its permissions.') from error
    except Exception as error:
        # PyTorch's own text recommends the unsafe way.
        code = re.search(r'(?:GLOBAL|function) (\S+)', str(error))
        known = isinstance(error, (CheckpointLoadError, RuntimeError))
        found = 'it is no file of weights'
        if code:
            found = f'it refers to the code {code[1]}'
        elif known and 'weights_only' not in str(error):
            found = str(error).split('\n')[0]
        raise CheckpointLoadError(
            f'The checkpoint {path} cannot be loaded: {found}. Expected a '
            'complete file of weights and plain data from `torch.save`, '
            'since other content could run code.') from None


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
    """Check that weights are finite tensors by their names, or raise
    CheckpointLoadError with ``what`` for the checkpoint."""
    if not isinstance(weights, dict) or not weights:
        found = type(weights).__name__
        found = 'nothing' if found in ('dict', 'OrderedDict') else found
        raise CheckpointLoadError(f'{what} holds {found}, expected weights '
                                  'by their names. Convert it first.')
    strange = [
        key for key, value in weights.items()
        if not (isinstance(key, str) and _is_whole(value))
    ]
    if strange:
        raise CheckpointLoadError(
            f'{what} holds {sorted(map(str, strange))!r:.100}, expected '
            'weights by their names: dense tensors of real numbers.')
    broken = [
        key for key, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CheckpointLoadError(
            f'{what} has {len(broken)} weights that are not finite (NaN or '
            f'infinity), such as {broken[0]}, expected numbers. Use an '
            'earlier checkpoint: the training had diverged.')


def rename_weights(source: dict,
                   weights: dict,
                   rules: Sequence[tuple],
                   optional: str = '') -> dict:
    """Give the weights of other code our names, and copy them, or raise
    CheckpointLoadError if they are others.

    ``weights`` are ours, for their names and shapes. ``rules`` are patterns
    and replacements, see :func:`re.sub`, one after the other, from our names
    to the original ones, of which ``optional`` may be missing.
    """
    names = {
        key: reduce(lambda name, rule: re.sub(*rule, name), rules, key)
        for key in weights
    }
    # Checkpoints of PyTorch < 0.4.1 do not count batches.
    problems = {
        'Missing keys': [
            name for name in names.values() if name not in source
            and name != optional and not name.endswith('num_batches_tracked')
        ],
        'Unexpected keys':
        sorted(source.keys() - set(names.values())),
        'Keys of another shape': [
            f'{name} {tuple(source[name].shape)} instead of '
            f'{tuple(weights[key].shape)}' for key, name in names.items()
            if name in source and source[name].shape != weights[key].shape
        ]
    }
    if any(problems.values()):
        raise CheckpointLoadError(' '.join(
            f'{what}: {len(found)} ({list_some(found, 10)}).'
            for what, found in problems.items()))
    return {
        key: source[name].clone()
        for key, name in names.items() if name in source
    }


def _get_dict(holder: dict, key: str) -> Optional[dict]:
    """Get a dictionary, empty for None, or None for another value."""
    value = {} if holder.get(key) is None else holder[key]
    return value if isinstance(value, dict) else None


def _check_checkpoint(checkpoint: Any, path: str) -> dict:
    """Check what all users of a checkpoint read."""
    if not isinstance(checkpoint, dict):
        raise CheckpointLoadError(
            f'The checkpoint {path} is a {type(checkpoint).__name__}, '
            "expected a dictionary with 'state_dict'.")
    if 'model_state_dict' in checkpoint:
        raise CheckpointLoadError(
            f'The checkpoint {path} is one of the original code, expected a '
            'converted one. Convert it: `python tools/model_converters/'
            f'dan_to_mmpretrain.py {path} NEW.pth --dataset rafdb`.')
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    weights = checkpoint['state_dict']
    check_weights(weights, f'The checkpoint {path}')
    # The names in a wrapper, such as that of distributed training
    for key in [key for key in weights if key.startswith('module.')]:
        weights[key[len('module.'):]] = weights.pop(key)
    average = checkpoint.get('ema_state_dict')
    if average is not None:
        check_weights(average, f'The checkpoint {path}')
        shapes = dict(steps=torch.Size(()))
        shapes.update((f'module.{key}', weights[key].shape) for key in weights)
        strange = [
            key for key, value in average.items()
            if value.shape != shapes.get(key) and (
                key in shapes or key.startswith('module.'))
        ]
        if strange:
            raise CheckpointLoadError(
                f'The checkpoint {path} has {strange[0]!r:.100} in '
                "'ema_state_dict', expected the keys of 'state_dict'.")

    meta = checkpoint['meta'] = _get_dict(checkpoint, 'meta')
    data = meta is not None and _get_dict(meta, 'dataset_meta')
    classes = data.get('classes') if isinstance(data, dict) else 0
    if not (classes is None or isinstance(classes, (list, tuple))
            and all(isinstance(name, str) for name in classes)):
        raise CheckpointLoadError(
            f"The checkpoint {path} has unreadable metadata in 'meta', "
            "expected the names of the 'classes' in 'dataset_meta'.")
    # MMEngine would execute the configs.
    meta.pop('config', None)
    meta.pop('cfg', None)
    if 'message_hub' in checkpoint:
        checkpoint['message_hub'] = _clean_messages(checkpoint['message_hub'])
        if checkpoint['message_hub'] is None:
            del checkpoint['message_hub']
    return checkpoint


def _clean_messages(hub: Any) -> Optional[dict]:
    """Keep only the numbers of the ``message_hub`` of a checkpoint.

    MMEngine deletes and overwrites files that the rest names, and executes a
    config there. ``best_step`` is the epoch or iteration in the name of
    ``best_ckpt``. Returns None if it is something else.
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


@CheckpointLoader.register_scheme('', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint without running anything in it: finite weights in
    ``state_dict`` and a dictionary in ``meta``, whatever the file has.

    Names of files and configs that it carries are dropped: MMEngine would
    delete and overwrite the former and execute the latter.
    CheckpointNotFoundError is raised if it is missing, CheckpointLoadError if
    it holds anything else, or is broken.
    """
    return _check_checkpoint(load_file(filename, map_location), filename)


@CheckpointLoader.register_scheme(('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict:
    """Download a checkpoint, unless it is in PyTorch's cache, and load it: see
    :func:`load_from_local`."""
    path = osp.join(torch.hub.get_dir(), 'checkpoints',
                    osp.basename(urlparse(filename).path))
    for first in True, False:
        # The other processes of a machine find what the first one downloaded.
        if first == is_main_process() and not osp.exists(path):
            os.makedirs(osp.dirname(path), exist_ok=True)
            try:
                torch.hub.download_url_to_file(filename, path)
            except (OSError, ValueError) as error:
                raise CheckpointLoadError(
                    f'Cannot download the checkpoint {filename}: {error}. '
                    'Check the URL and the network.') from error
        barrier()
    return load_from_local(path, map_location)


@CheckpointLoader.register_scheme(
    ('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://',
     'mmcls://'),
    force=True)
def load_from_hub(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint that MMEngine knows by name: see
    :func:`load_from_local`."""
    scheme, name = filename.split('://', 1)
    if scheme in ('modelzoo', 'torchvision'):
        models = get_torchvision_models()
    elif scheme == 'mmcls':
        models = get_mmcls_models()
    else:
        models = get_external_models()
        name = get_deprecated_model_names().get(name, name)
    url = models.get(name, '')
    if not url.startswith(('http://', 'https://')):
        raise CheckpointNotFoundError(
            f'Found no checkpoint {filename}, expected a name that MMEngine '
            'knows. Check the name.')
    checkpoint = load_from_http(url, map_location)
    if scheme == 'mmcls':
        checkpoint['state_dict'] = {
            key[len('backbone.'):]: value
            for key, value in checkpoint['state_dict'].items()
            if key.startswith('backbone.')
        }
    return checkpoint


@CheckpointLoader.register_scheme(
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'), force=True)
def load_from_storage(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint from a storage of MMEngine: see
    :func:`load_from_local`."""
    try:
        with get_local_path(filename) as path:
            return load_from_local(str(path), map_location)
    except (ImportError, KeyError) as error:
        raise CheckpointLoadError(
            f'Cannot read the checkpoint {filename}: {error}. Download it, '
            'and give its path.') from error


def load_classes(filename: str) -> Optional[Tuple[str, ...]]:
    """Load the names of the classes that a checkpoint was trained on, if it
    has them: see :func:`load_from_local`."""
    checkpoint = CheckpointLoader.load_checkpoint(
        filename, map_location='cpu', logger=None)
    classes = (checkpoint['meta'].get('dataset_meta') or {}).get('classes')
    return tuple(classes) if classes else None
