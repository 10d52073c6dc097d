# Copyright (c) dan_mm contributors. All rights reserved.
import ast
import glob
import math
import os.path as osp
import re
import warnings
from os import PathLike
from typing import Any, List, NamedTuple, Optional, Union

import mmengine.registry
import mmpretrain.registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader
from mmpretrain.apis import ModelHub
from mmpretrain.registry import DATASETS

from dan_mm.checkpoint import download
from .model_index import register_model_index


class FoundModel(NamedTuple):
    """A model that can be built.

    Args:
        cfg (Config): Its config.
        checkpoint (dict): What its checkpoint holds.
        path (str): The path of its checkpoint.
        metainfo (dict): What is known about the data that it was trained on:
            of the class of the data set, and what the checkpoint says.
    """
    cfg: Config
    checkpoint: dict
    path: str
    metainfo: dict


def find_model(model: Union[str, PathLike, None] = None,
               config: Union[str, PathLike, None] = None) -> FoundModel:
    """Find the config and the weights of a model.

    The config of a checkpoint is ``config``, which is code and runs, or the
    one that MMEngine wrote beside the checkpoint, or the one of this project's
    with the name that the checkpoint has. The one beside it is read, not run,
    and can only build what is registered. The text of a config inside a
    checkpoint is never used.

    Args:
        model (str | PathLike, optional): The path of a checkpoint or of a work
            folder, or a name of the model index, whose weights are downloaded
            once. Defaults to None, which raises an error that lists what there
            is.
        config (str | PathLike, optional): The path of the config, which is
            code and runs. Defaults to None.

    Returns:
        FoundModel: The model.

    Raises:
        FileNotFoundError: If there is no such file, folder or name.
        ValueError: If no model is given, or its config can't be told.
        OSError: If the weights can't be downloaded.
        CheckpointLoadError: If the checkpoint is broken or holds code.
    """
    register_model_index()
    if model is None:
        raise ValueError(f'Got no model, expected one. {_what_there_is()}')
    name = osp.expanduser(str(model))
    if osp.isdir(name):
        path = _checkpoint_of_folder(name)
    elif osp.isfile(name):
        path = name
    elif ModelHub.has(str(model)):
        path, indexed = _download(str(model))
        config = config or indexed
    else:
        raise FileNotFoundError(
            f'Found no checkpoint, work folder or model {str(model)!r}, '
            f'expected one of them. {_what_there_is()}')
    if path.endswith('.py'):
        raise ValueError(
            f'Got the config {path} for a model, expected its checkpoint or '
            "its work folder. Give the checkpoint, and the config as "
            '`config`.')
    checkpoint = CheckpointLoader.load_checkpoint(
        path, map_location='cpu', logger=None)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'The checkpoint {path} holds a '
                         f'{type(checkpoint).__name__}, expected weights.')
    if 'state_dict' not in checkpoint:
        if 'model_state_dict' in checkpoint:
            raise ValueError(
                f'The checkpoint {path} is one of the original code, expected '
                'a converted one. Convert it: `python tools/model_converters/'
                f'dan_to_mmpretrain.py {path} NEW.pth --dataset rafdb`.')
        checkpoint = dict(state_dict=checkpoint)
    if config is not None:
        cfg = _load_config(str(config))
    else:
        cfg = _config_beside(path, checkpoint) or _config_by_name(
            path, checkpoint)
    return FoundModel(cfg, checkpoint, path, _metainfo(cfg, checkpoint))


def _load_config(path: str) -> Config:
    path = osp.expanduser(path)
    if not osp.isfile(path):
        raise FileNotFoundError(f'Found no config {path}. Check the path.')
    return _check_config(Config.fromfile(path), path)


def _check_config(cfg: Config, path: str) -> Config:
    missing = [
        key for key in ('model', 'test_dataloader') if cfg.get(key) is None
    ]
    if missing:
        raise ValueError(
            f'The config {path} has no {" and no ".join(missing)}, expected '
            'a model and how it is tested. Give the config that the model '
            'was trained with.')
    return cfg


def _checkpoint_of_folder(folder: str) -> str:
    """Get the best checkpoint of a work folder, or its last one."""
    found = glob.glob(osp.join(glob.escape(folder), 'best_*.pth'))
    if not found:
        last = osp.join(folder, 'last_checkpoint')
        if osp.isfile(last):
            with open(last, encoding='utf-8') as file:
                # The folder may have moved since.
                named = osp.join(folder, osp.basename(file.read().strip()))
            found = [named] if osp.isfile(named) else []
    found = found or glob.glob(osp.join(glob.escape(folder), '*.pth'))
    if not found:
        raise FileNotFoundError(
            f'Found no checkpoint in the folder {osp.abspath(folder)}, '
            'expected best_*.pth or another *.pth. Give a work folder of '
            '`tools/train.py`, or a checkpoint.')
    return max(found, key=osp.getmtime)


def _evaluate(node: ast.AST, known: dict) -> Any:
    """Get the value of an expression of literals, ``dict(...)`` and names
    that have a value, as MMEngine writes configs.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(node, ast.Call):
        if getattr(node.func, 'id', None) != 'dict' or len(node.args) > 1:
            raise ValueError('it calls something')
        value = {}
        for part in node.args:
            value.update(_evaluate(part, known))
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError('it unpacks something')
            value[keyword.arg] = _evaluate(keyword.value, known)
        return value
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _evaluate(key, known): _evaluate(value, known)
            for key, value in zip(node.keys, node.values)
        }
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = dict(List=list, Tuple=tuple, Set=set)[type(node).__name__]
        return kind(_evaluate(item, known) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    return ast.literal_eval(node)


def _read_settings(path: str) -> Optional[dict]:
    """Read a file of settings as MMEngine writes configs, without running
    anything.

    Returns:
        dict | None: The settings, None where the file has anything else or no
        model.
    """
    settings: dict = dict(inf=math.inf, nan=math.nan)
    try:
        with open(path, encoding='utf-8') as file:
            tree = ast.parse(file.read())
        for node in tree.body:
            if not isinstance(node, ast.Assign) or len(node.targets) > 1:
                return None
            settings[node.targets[0].id] = _evaluate(node.value, settings)
    except (AttributeError, OSError, RecursionError, SyntaxError, TypeError,
            ValueError):
        return None
    return settings if 'model' in settings else None


def _check_types(settings: Any, path: str) -> None:
    """Refuse settings that would build anything but what is registered:
    MMEngine would import and call whatever a ``type`` names."""
    if isinstance(settings, dict):
        if isinstance(settings.get('type'), str):
            _check_type(settings['type'], path)
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        for item in settings:
            _check_types(item, path)


def _check_type(name: str, path: str) -> None:
    for package in mmengine.registry, mmpretrain.registry:
        for registry in vars(package).values():
            if not isinstance(registry, Registry):
                continue
            for key in name, name.rsplit('.', 1)[-1]:
                found = registry.module_dict.get(key)
                # By its name, with a scope, or in full
                if found is not None and name in (
                        key, f'mmpretrain.{key}', f'mmengine.{key}',
                        f'{found.__module__}.'
                        f'{getattr(found, "__name__", "")}'):
                    return
    raise ValueError(
        f'The config {path} has the type {name!r}, expected one that is '
        'registered. Import the module that registers it, or, if you trust '
        'that config, give it as `config`: then it runs.')


def _experiment(checkpoint: dict) -> str:
    """The name of the config that a checkpoint was trained with."""
    meta = checkpoint.get('meta')
    name = (meta if isinstance(meta, dict) else {}).get('experiment_name')
    return re.sub(r'_\d{8}_\d{6}$', '', name) if isinstance(name, str) else ''


def _config_beside(path: str, checkpoint: dict) -> Optional[Config]:
    """Read the config beside a checkpoint, if there is one."""
    folder = osp.dirname(osp.abspath(path))
    files = sorted(glob.glob(osp.join(glob.escape(folder), '*.py')))
    read = {file: _read_settings(file) for file in files}
    found = [file for file in files if read[file] is not None]
    named = osp.join(folder, f'{_experiment(checkpoint)}.py')
    if named in files:
        if named not in found:
            raise ValueError(
                f'The config {named} has more than settings, expected it as '
                'MMEngine writes it. If you trust it, give it as `config`: '
                'then it runs.')
        found = [named]
    if len(found) > 1:
        raise ValueError(
            f'Found the configs {", ".join(found)} beside the checkpoint, '
            'expected one. Give the right one as `config`.')
    if not found:
        if files:
            warnings.warn(
                f'{", ".join(files)} beside the checkpoint has more than '
                'settings and is not used. If it is its config, and you trust '
                'it, give it as `config`: then it runs.')
        return None
    # Nothing else is used.
    settings = {
        key: read[found[0]][key]
        for key in ('model', 'data_preprocessor', 'train_dataloader',
                    'test_dataloader') if key in read[found[0]]
    }
    _check_types(settings, found[0])
    return _check_config(Config(settings, filename=found[0]), found[0])


def _config_by_name(path: str, checkpoint: dict) -> Config:
    name = _experiment(checkpoint)
    if not ModelHub.has(name):
        says = f'names {name!r}' if name else 'names none'
        raise ValueError(
            f'The config of {path} is not known: there is none beside it, and '
            f'the checkpoint {says}, expected a config of this project. '
            'Give the one that it was trained with as `config`.')
    cfg = ModelHub.get(name).config
    weights = checkpoint['state_dict']
    # What the original code's checkpoints differ in
    heads = {
        match[1]
        for match in (re.match(r'neck\.heads\.(\d+)\.', str(key))
                      for key in weights) if match
    }
    if heads and 'neck' in cfg.model:
        cfg.model.neck.num_heads = len(heads)
    return cfg


def _download(name: str) -> tuple:
    """Download the weights of a name of the index.

    Returns:
        tuple[str, str]: The paths of the weights and of the config.
    """
    entry = ModelHub._models_dict[name.lower()]
    digest = _sha256(entry)
    if not entry.weights or not digest:
        lacks = 'weights' if not entry.weights else 'SHA256 of its weights'
        raise FileNotFoundError(
            f'The model index has no {lacks} for {name!r}, expected a URL and '
            f'a sum to check. Train it, `python tools/train.py '
            f'{entry.config}`, or give a checkpoint. {_what_there_is()}')
    return download(entry.weights, digest), entry.config


def _sha256(entry) -> Optional[str]:
    data = getattr(entry.metadata, 'data', None) or {}
    return data.get('SHA256')


def _what_there_is() -> str:
    """Say which models there are, in one sentence."""
    names = sorted(name for name, entry in ModelHub._models_dict.items()
                   if entry.weights and _sha256(entry))
    folders = _work_folders()
    parts = []
    if names:
        parts.append(f'the names {", ".join(names)}')
    if folders:
        parts.append(f'the work folders {", ".join(folders)}')
    there = f'are {" and ".join(parts)}; give one of them or' if parts else (
        'are no published weights yet, and no work folders here; give')
    return (f'There {there} a checkpoint, such as one that `python '
            'tools/train.py CONFIG` or `make demo` trains.')


def _work_folders() -> List[str]:
    found = glob.glob(osp.join('work_dirs', '*', '*.pth'))
    return sorted({osp.dirname(path) for path in found})


def _metainfo(cfg: Config, checkpoint: dict) -> dict:
    """What is known about the training data."""
    dataset = (cfg.get('train_dataloader') or cfg.test_dataloader).dataset
    # MMEngine's wrappers
    while 'dataset' in dataset or dataset.get('datasets'):
        dataset = dataset.get('dataset') or dataset.datasets[0]
    name = str(dataset.get('type', '')).rsplit('.', 1)[-1]
    known = DATASETS.module_dict.get(name)
    metainfo = dict(getattr(known, 'METAINFO', None) or {})
    if 'num_classes' in dataset and metainfo.get('classes'):
        metainfo['classes'] = metainfo['classes'][:dataset.num_classes]
    meta = checkpoint.get('meta')
    said = (meta if isinstance(meta, dict) else {}).get('dataset_meta')
    said = said if isinstance(said, dict) else {}
    if not isinstance(said.get('classes'), (list, tuple)):
        if metainfo.get('classes'):
            warnings.warn(
                'The checkpoint has no names of classes: those of '
                f'{known.__name__} are taken, as its config says. Convert an '
                'original checkpoint with `--dataset`.')
        return metainfo
    same = tuple(said['classes']) == tuple(metainfo.get('classes') or ())
    if not same or said.get('dataset_name') not in (
            None, metainfo.get('dataset_name')):
        # Other data, of which nothing but that is known
        metainfo = {}
    return {**metainfo, **said}
