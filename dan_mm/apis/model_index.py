# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp

from mmpretrain.apis import ModelHub

import dan_mm


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
    package = osp.dirname(osp.abspath(dan_mm.__file__))
    # In a wheel, and in a clone of the repository.
    for folder in osp.join(package, '.mim'), osp.dirname(package):
        path = osp.join(folder, 'configs', 'metafile.yml')
        if osp.isfile(path):
            break
    else:
        raise FileNotFoundError(
            f'Found no configs/metafile.yml in {package}/.mim or beside '
            f'{package}, expected it in one of them. Install dan_mm anew.')
    if not ModelHub.has('dan_rafdb'):
        ModelHub.register_model_index(path, config_prefix=folder)
