# Copyright (c) dan_mm contributors. All rights reserved.
import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dan_mm.apis.faces import Face
from dan_mm.apis.orientation import UPRIGHT
from dan_mm.datasets import FERPlus
from dan_mm.description import describe

# The side of the drawn faces that the detector below finds
SIDE = 60


class StubDetector:
    """A detector that finds as many faces as the blue of the first pixel
    says, one beside the other, and counts what it was given."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return [[
            Face(
                np.array([SIDE * i, 0, SIDE * (i + 1), SIDE],
                         np.float32), 0.99 - 0.0001 * i,
                (SIDE * (UPRIGHT + (i + 0.5, 0.6))).astype('f4'))
            for i in range(image[0, 0, 0])
        ] for image in images]


@pytest.fixture
def image_of():
    """A function that draws an image of so many faces for that detector:
    uint8 (60, 60 * number, 3)."""

    def draw(number, seed=0):
        faces = [draw_face(seed + i, SIDE) for i in range(max(number, 1))]
        image = cv2.cvtColor(np.hstack(faces), cv2.COLOR_GRAY2BGR)
        image[0, 0] = number
        return image

    return draw


@pytest.fixture
def detector():
    return StubDetector()


@pytest.fixture(scope='session')
def narrow_config():
    """The config of a narrow DAN."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    cfg.model.backbone.base_channels = 8
    cfg.model.backbone.stem_channels = 8
    cfg.model.neck.in_channels = cfg.model.head.in_channels = 64
    return cfg


@pytest.fixture(scope='session')
def work_dir(tmp_path_factory, narrow_config):
    """A work folder of a narrow DAN with random weights."""
    folder = tmp_path_factory.mktemp('work_dirs') / 'dan_ferplus'
    folder.mkdir()
    cfg = narrow_config.copy()
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(cfg.model, data_preprocessor=dict(cfg.data_preprocessor)))
    # Far from equal scores
    model.head.fc.weight.data *= 30
    description = describe(cfg)
    meta = dict(
        dataset_meta=FERPlus.METAINFO,
        model=description.model,
        test_pipeline=description.pipeline)
    torch.save(
        dict(meta=meta, state_dict=model.state_dict()), folder / 'epoch_5.pth')
    (folder / 'last_checkpoint').write_text('/moved/epoch_5.pth')
    return folder


@pytest.fixture
def write_video():
    """A function that writes a video of frames."""

    def write(path, frames, code='mp4v', rate=25):
        writer = cv2.VideoWriter(
            str(path), cv2.VideoWriter_fourcc(*code), rate,
            frames[0].shape[1::-1])
        assert writer.isOpened()
        for frame in frames:
            writer.write(frame)
        writer.release()
        return str(path)

    return write
