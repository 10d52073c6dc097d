# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp

from mmpretrain.apis import ModelHub

import dan_mm

# The folder of the models that are shipped, and the one that is used where
# none is named
WEIGHTS = osp.join(osp.dirname(osp.abspath(dan_mm.__file__)), 'weights')
DEFAULT_MODEL = 'dan-dlibresnet_ferplus'


def shipped_model(name: str = DEFAULT_MODEL) -> str:
    """Find the checkpoint of a model that is shipped with this package, by its
    name in the model index. FileNotFoundError is raised if this installation
    lacks it."""
    path = osp.join(WEIGHTS, f'{name}.pth')
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'Found no {path}, expected the model that is shipped with '
            'dan_mm. Install dan_mm anew, or give a checkpoint.')
    return path


def find_configs() -> str:
    """Find the folder of this project's configs, in a wheel or in a clone of
    the repository. FileNotFoundError is raised if this installation lacks
    it."""
    package = osp.dirname(osp.abspath(dan_mm.__file__))
    for folder in osp.join(package, '.mim'), osp.dirname(package):
        configs = osp.join(folder, 'configs')
        if osp.isfile(osp.join(configs, 'metafile.yml')):
            return configs
    raise FileNotFoundError(
        f'Found no configs/metafile.yml in {package}/.mim or beside '
        f'{package}, expected it in one of them. Install dan_mm anew.')


def register_model_index() -> None:
    """Make the configs of this project known to MMPretrain by their names.

    After that :func:`mmpretrain.get_model`, :func:`mmpretrain.list_models` and
    MMPretrain's inferencers know them: ``get_model('dan_rafdb')``. The weights
    of shipped models are found in this package. A second call does nothing.

    Raises:
        FileNotFoundError: If this installation lacks the configs.

    Examples:
        >>> from mmpretrain import get_model
        >>> from dan_mm.apis import register_model_index
        >>> register_model_index()
        >>> model = get_model('dan_rafdb')
        >>> model.head.num_classes
        7
    """
    configs = find_configs()
    if not ModelHub.has('dan_rafdb'):
        ModelHub.register_model_index(
            osp.join(configs, 'metafile.yml'),
            config_prefix=osp.dirname(configs))
        for entry in ModelHub._models_dict.values():
            if str(entry.weights).startswith('dan_mm/weights/'):
                entry.weights = osp.join(WEIGHTS, osp.basename(entry.weights))
