# Copyright (c) dan_mm contributors. All rights reserved.
"""From photographs to expressions, with the real detector and a DAN of random
weights: that the right pixels get to it."""
import csv
import json
import os.path as osp

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, shared
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dan_mm import cli
from dan_mm.apis import FERInferencer
from dan_mm.datasets import FERPlus, align_face
from dan_mm.description import describe


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The checkpoint of a DAN with random weights."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = MODELS.build(
            dict(cfg.model, data_preprocessor=dict(cfg.data_preprocessor)))
    path = tmp_path_factory.mktemp('model') / 'dan.pth'
    description = describe(cfg)
    meta = dict(
        dataset_meta=FERPlus.METAINFO,
        model=description.model,
        test_pipeline=description.pipeline)
    torch.save(dict(meta=meta, state_dict=built.state_dict()), path)
    return str(path)


def test_crops_of_photographs(model, face_detector):
    """They are where the landmarks of the index say."""
    folder = shared('data', 'faces_london')
    with open(f'{folder}/index.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['nose_x']][:6]
    fer = FERInferencer(model, detector=face_detector)
    results = fer([f'{folder}/{row["file"]}' for row in rows],
                  attention_maps=True)
    for row, result in zip(rows, results):
        [face] = result.faces
        image = cv2.imread(result.path)
        marked = np.array(list(row.values())[3:], float).reshape(5, 2)
        expected = align_face(image, marked, **FERPlus.METAINFO['alignment'])
        expected = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)
        # A few pixels are between these landmarks and those of the detector.
        found, expected = (
            cv2.GaussianBlur(item.astype(float), (0, 0), 3)
            for item in (face.crop[..., 0], expected))
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_the_group_photograph(model, checkpoint, tmp_path, capfd):
    """29 faces in one image, and others beside broken files, by the command
    line."""
    source = shared('data', 'group_photo', 'solvay_1927.jpg')
    portrait = shared('data', 'faces_london', '001_happiness.jpg')
    (tmp_path / 'broken.jpg').write_bytes(open(portrait, 'rb').read()[:20000])
    code = cli.main([
        'predict', source,
        str(tmp_path / 'broken.jpg'), portrait, '--model', model,
        '--detector-config',
        f'{ROOT}/configs/retinaface/retinaface_mobilenet0.25_widerface.py',
        '--detector-checkpoint', checkpoint, '--json', '-', '--out',
        str(tmp_path / 'out')
    ])
    output, error = capfd.readouterr()
    assert code == 1 and 'broken.jpg cannot be decoded' in error
    results = list(map(json.loads, output.splitlines()))
    assert [len(item['faces']) for item in results] == [29, 0, 1]
    assert osp.isfile(tmp_path / 'out' / 'solvay_1927.jpg')
