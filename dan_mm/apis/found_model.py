# Copyright (c) dan_mm contributors. All rights reserved.
import glob
import os.path as osp
from os import PathLike
from typing import NamedTuple, Optional, Union

from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmpretrain.apis import ModelHub

from dan_mm.description import (WITH_CONFIG, Description, check_description,
                                check_metainfo, describe)
from dan_mm.hub import download
from .model_index import register_model_index, shipped_model


class FoundModel(NamedTuple):
    """A model that can be built: its description, its weights, the path of its
    checkpoint, and what that says about the data that it was trained on, such
    as the names of the classes, the alignment and the licence."""
    description: Description
    weights: dict
    path: str
    metainfo: dict


def find_model(model: Union[str, PathLike, None] = None,
               config: Union[str, PathLike, None] = None) -> FoundModel:
    """Find a model: its description and its weights.

    A checkpoint describes its model as plain data: see
    :mod:`dan_mm.description`. Nothing beside it is read. One without a
    description, or with classes of your own, needs ``config``.

    Args:
        model (str | PathLike, optional): The path of a checkpoint or of a work
            folder, or a name of the model index, whose weights are downloaded
            once. Defaults to None, the model that is shipped with this
            package.
        config (str | PathLike, optional): The path of the config, which is
            code and runs. Defaults to None.

    Returns:
        FoundModel: The model.

    Raises:
        FileNotFoundError: If there is no such file, folder or name.
        ValueError: If the checkpoint does not describe a model that may be
            built, or has no weights.
        OSError: If the weights can't be downloaded.
        CheckpointLoadError: If the checkpoint is broken or holds code.
    """
    path = shipped_model() if model is None else _find_checkpoint(
        osp.expanduser(str(model)))
    checkpoint = CheckpointLoader.load_checkpoint(
        path, map_location='cpu', logger='silent')
    weights, meta = checkpoint['state_dict'], checkpoint['meta']
    if config is not None:
        config = osp.expanduser(str(config))
        if not osp.isfile(config):
            raise FileNotFoundError(
                f'Found no config {config}. Check the path.')
        description = describe(Config.fromfile(config))
    elif 'model' in meta:
        description = check_description(meta['model'],
                                        meta.get('test_pipeline'), path)
    else:
        raise ValueError(
            f'The checkpoint {path} does not describe its model, expected one '
            f'that `dan-mm train` wrote or that was converted. {WITH_CONFIG}')
    metainfo = check_metainfo(meta.get('dataset_meta'), path)
    calibration = meta.get('calibration')
    if isinstance(calibration, dict):
        metainfo['temperature'] = calibration.get('temperature')
    return FoundModel(description, weights, path, metainfo)


def _find_checkpoint(name: str) -> str:
    if osp.isdir(name):
        return _checkpoint_of_folder(name)
    if osp.isfile(name):
        if name.endswith('.py'):
            raise ValueError(
                f'Got the config {name} for a model, expected its checkpoint. '
                'Give the config as `config`.')
        return name
    register_model_index()
    if not ModelHub.has(name.lower()):
        raise FileNotFoundError(
            f'Found no checkpoint, work folder or model {name!r}, expected '
            f'one of them. {_what_there_is()}')
    return _weights_of_index(name)


def _checkpoint_of_folder(folder: str) -> str:
    """Get the best checkpoint of a work folder, or its last one."""
    found = glob.glob(osp.join(glob.escape(folder), 'best_*.pth'))
    if not found:
        last = osp.join(folder, 'last_checkpoint')
        if osp.isfile(last):
            with open(last, encoding='utf-8', errors='replace') as file:
                # The folder may have moved since.
                named = osp.join(folder, osp.basename(file.read().strip()))
            found = [named] if osp.isfile(named) else []
    found = found or glob.glob(osp.join(glob.escape(folder), '*.pth'))
    if not found:
        raise FileNotFoundError(
            f'Found no checkpoint in the folder {osp.abspath(folder)}, '
            'expected best_*.pth or another *.pth. Give a checkpoint.')
    return max(found, key=osp.getmtime)


def _weights_of_index(name: str) -> str:
    """Get the path of the weights of a name of the index, downloaded if they
    are not in the package."""
    entry = ModelHub._models_dict[name.lower()]
    if entry.weights and osp.isfile(entry.weights):
        return entry.weights
    digest = _sha256(entry)
    if not entry.weights or not digest:
        lacks = 'weights' if not entry.weights else 'SHA256 of its weights'
        raise FileNotFoundError(
            f'The model index has no {lacks} for {name!r}. Train it, `dan-mm '
            f'train {name}`, or give a checkpoint. {_what_there_is()}')
    return download(entry.weights, digest)


def _sha256(entry) -> Optional[str]:
    data = getattr(entry.metadata, 'data', None) or {}
    return data.get('SHA256')


def _what_there_is() -> str:
    """Say which models there are, in one sentence."""
    names = sorted(
        name for name, entry in ModelHub._models_dict.items()
        if entry.weights and (_sha256(entry) or osp.isfile(entry.weights)))
    found = glob.glob(osp.join('work_dirs', '*', '*.pth'))
    folders = sorted({osp.dirname(path) for path in found})
    also = f', the work folders {", ".join(folders)}' if folders else ''
    return f'There are the models {", ".join(names)}{also}.'
