# Copyright (c) dan_mm contributors. All rights reserved.
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from watch import META, MODEL

from dan_mm.apis import FERInferencer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of files, with a module that must not be imported."""
    folder = tmp_path_factory.mktemp('fuzz')
    (folder / 'evil.py').write_text('raise SystemExit("ran")')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


class Weights(dict):
    """Weights that a failing example does not print."""

    def __repr__(self):
        return 'weights'


@pytest.fixture(scope='module')
def weights(folder):
    """The weights of the model above. What is imported late is imported."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = deepcopy(MODEL)
        model['data_preprocessor']['type'] = 'ClsDataPreprocessor'
        weights = Weights(MODELS.build(model).state_dict())
    path = folder / 'whole.pth'
    torch.save(dict(meta=META, state_dict=dict(weights)), path)
    inferencer = FERInferencer(path, device='cpu')
    assert inferencer(np.zeros((32, 32, 3), np.uint8), aligned=True)[0].faces
    return weights
