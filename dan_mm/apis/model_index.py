# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp

from mmpretrain.apis import ModelHub

import dan_mm


def find_configs() -> str:
    """Find the folder of this project's configs.

    Returns:
        str: Its path, in a wheel or in a clone of the repository.

    Raises:
        FileNotFoundError: If this installation lacks it.
    """
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
    MMPretrain's inferencers know them: ``get_model('dan_rafdb')``. No weights
    come with them. A second call does nothing.

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
