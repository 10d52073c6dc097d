# Copyright (c) dan_mm contributors. All rights reserved.
import ast
import glob
import os.path as osp
import re
import warnings
from os import PathLike
from typing import List, NamedTuple, Optional, Union

from mmengine.config import Config
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

    The config of a checkpoint is ``config``, or the one that MMEngine wrote
    beside the checkpoint, or the one of this project's with the name that the
    checkpoint has. The text of a config inside a checkpoint is never used, and
    of the files beside it only one with nothing but settings: a config is code
    and runs.

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
        beside = _config_beside(path, checkpoint)
        cfg = _load_config(beside) if beside else _config_by_name(
            path, checkpoint)
    return FoundModel(cfg, checkpoint, path, _metainfo(cfg, checkpoint))


def _load_config(path: str) -> Config:
    path = osp.expanduser(path)
    if not osp.isfile(path):
        raise FileNotFoundError(f'Found no config {path}. Check the path.')
    cfg = Config.fromfile(path)
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


def _is_dumped(path: str) -> bool:
    """Whether a Python file is what MMEngine writes of a config: settings
    and nothing that runs."""
    plain = (ast.Module, ast.Assign, ast.Name, ast.Store, ast.Load, ast.Dict,
             ast.List, ast.Tuple, ast.Constant, ast.keyword, ast.UnaryOp,
             ast.USub)
    try:
        with open(path, encoding='utf-8') as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if getattr(node.func, 'id', None) != 'dict' or node.args:
                return False
        elif not isinstance(node, plain):
            return False
    return any(
        getattr(target, 'id', None) == 'model' for node in tree.body
        for target in node.targets)


def _experiment(checkpoint: dict) -> str:
    """The name of the config that a checkpoint was trained with."""
    meta = checkpoint.get('meta')
    name = (meta if isinstance(meta, dict) else {}).get('experiment_name')
    return re.sub(r'_\d{8}_\d{6}$', '', name) if isinstance(name, str) else ''


def _config_beside(path: str, checkpoint: dict) -> Optional[str]:
    folder = osp.dirname(osp.abspath(path))
    found = [
        file for file in glob.glob(osp.join(glob.escape(folder), '*.py'))
        if _is_dumped(file)
    ]
    if len(found) > 1:
        named = osp.join(folder, f'{_experiment(checkpoint)}.py')
        if named not in found:
            raise ValueError(
                f'Found the configs {", ".join(sorted(found))} beside the '
                'checkpoint, expected one. Give the right one as `config`.')
        return named
    return found[0] if found else None


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
    if folders:
        parts.append(f'the work folders {", ".join(folders)}')
    parts.append(f'the names {", ".join(names)}'
                 if names else 'no published weights yet')
    return (f'There are {" and ".join(parts)}; give one of them or a '
            'checkpoint, such as one that `make demo` or `python '
            'tools/train.py CONFIG` trains.')


def _work_folders() -> List[str]:
    found = glob.glob(osp.join('work_dirs', '*', '*.pth'))
    return sorted({osp.dirname(path) for path in found})


def _metainfo(cfg: Config, checkpoint: dict) -> dict:
    """What is known about the training data."""
    dataset = (cfg.get('train_dataloader') or cfg.test_dataloader).dataset
    while 'dataset' in dataset:  # one of MMEngine's wrappers
        dataset = dataset.dataset
    known = DATASETS.get(dataset.get('type', ''))
    metainfo = dict(getattr(known, 'METAINFO', None) or {})
    meta = checkpoint.get('meta')
    said = (meta if isinstance(meta, dict) else {}).get('dataset_meta')
    said = said if isinstance(said, dict) else {}
    if not said.get('classes'):
        if metainfo.get('classes'):
            warnings.warn(
                'The checkpoint has no names of classes: those of '
                f'{known.__name__} are taken, as its config says. Convert an '
                'original checkpoint with `--dataset`.')
        return metainfo
    if tuple(said['classes']) != tuple(metainfo.get('classes') or ()):
        # Other data, of which nothing but that is known
        metainfo = {}
    return {**metainfo, **said}
