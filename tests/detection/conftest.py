# Copyright (c) dan_mm contributors. All rights reserved.
from copy import deepcopy

import pytest
import torch
from conftest import ROOT, shared
from mmengine.registry import DefaultScope
from retinaface_reference import RetinaFace

MOBILENET = 'configs/retinaface/retinaface_mobilenet0.25_widerface.py'


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    """These tests run in the scope of MMDet instead."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture(scope='session')
def original():
    """The reference with the public weights."""
    network = RetinaFace().eval()
    path = shared('weights', 'retinaface_mobilenet0.25.pth')
    network.load_state_dict(
        torch.load(path, map_location='cpu', weights_only=True))
    return network


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> str:
    """The public weights, converted."""
    from dan_mm.models.retinaface_weights import convert_file
    path = str(tmp_path_factory.mktemp('weights') / 'retinaface.pth')
    convert_file(shared('weights', 'retinaface_mobilenet0.25.pth'), path)
    return path


@pytest.fixture(scope='session')
def shared_detector(checkpoint):
    from mmdet.apis import init_detector

    # `init_detector` leaves its scope behind, to all tests that follow.
    with DefaultScope.overwrite_default_scope('mmdet'):
        return init_detector(f'{ROOT}/{MOBILENET}', checkpoint, device='cpu')


@pytest.fixture
def detector(shared_detector):
    """The detector with the public weights."""
    # `inference_detector` writes the kind of its last input into the config.
    cfg = shared_detector.cfg
    shared_detector.cfg = deepcopy(cfg)
    yield shared_detector
    shared_detector.cfg = cfg
