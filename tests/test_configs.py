# Copyright (c) dan_mm contributors. All rights reserved.
import glob
import os.path as osp

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from mmcv.transforms import Compose
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CONFIGS = sorted(
    osp.relpath(path, f'{ROOT}/configs')
    for path in glob.glob(f'{ROOT}/configs/*.py'))


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_runs(name, tmp_path):
    cfg = Config.fromfile(f'{ROOT}/configs/{name}')
    method, dataset = name[:-len('.py')].split('_')
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    assert model.head.num_classes == cfg.data_preprocessor.num_classes
    assert type(model.head).__name__ == ('AFN' if method.startswith('dan') else
                                         'LinearClsHead')

    cv2.imwrite(str(tmp_path / 'face.png'), draw_face(0, 100))
    inputs = {}
    for phase in 'train', 'test':
        pipeline = Compose(cfg[f'{phase}_dataloader'].dataset.pipeline)
        results = dict(img_path=str(tmp_path / 'face.png'), gt_label=1)
        inputs[phase] = pipeline(results)['inputs']
    assert inputs['train'].shape == inputs['test'].shape
    assert inputs['test'].dtype == torch.uint8

    data = model.data_preprocessor(
        dict(
            inputs=torch.stack(list(inputs.values())),
            data_samples=[DataSample().set_gt_label(1)] * 2))
    losses = model(**data, mode='loss')
    assert all(value.isfinite() for value in losses.values())
    model.eval()
    prediction = model(**data, mode='predict')[0]
    assert prediction.pred_score.shape == (cfg.model.head.num_classes, )


@pytest.mark.parametrize('method', ['dan', 'resnet18'])
def test_rafdb_is_the_recipe_of_the_original_code(method):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_rafdb.py')
    assert cfg.train_dataloader.batch_size == 256
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 40
    assert cfg.param_scheduler.milestones == [10, 20, 30]
    # Trained on all of the training set, with nothing chosen on the test set.
    assert cfg.val_dataloader is None and cfg.val_cfg is None
    assert 'val_split' not in cfg.train_dataloader.dataset
    assert 'save_best' not in cfg.default_hooks.checkpoint
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('msceleb.pth')


def test_rafdb_augmentation():
    """The shares of turned and erased pictures, on a white one."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_rafdb.py')
    # The first transform loads a picture, the last packs it.
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline[1:-1])
    np.random.seed(0)
    torch.manual_seed(0)
    turned, erased = [], []
    for _ in range(400):
        results = dict(img=np.full((100, 100, 3), 255, np.uint8))
        img = pipeline(results)['img']
        assert img.shape == (224, 224, 3)
        # Rotation and padding fill with black, erasing with the mean.
        turned.append((img == 0).all(2).any())
        grey = (img == (103, 116, 123)).all(2).mean()
        erased.append(grey > 0)
        assert grey == 0 or 0.015 < grey < 0.26
    assert 0.14 < np.mean(turned) < 0.26
    assert 0.42 < np.mean(erased) < 0.58


@pytest.mark.parametrize('method',
                         ['dan', 'resnet18', 'dan-7x7', 'resnet18-7x7'])
def test_ferplus_chooses_on_training_pictures(method):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_ferplus.py')
    for phase, split, share in (('train', 'train', 0.1), ('val', 'val', 0.1),
                                ('test', 'val', None)):
        dataset = cfg[f'{phase}_dataloader'].dataset
        assert dataset.split == split
        assert dataset.get('val_split') == share
    metrics = [metric.type for metric in cfg.test_evaluator]
    assert metrics == ['Accuracy', 'BalancedAccuracy']


@pytest.mark.parametrize('name', ['dan_synthface', 'dan-7x7_ferplus'])
def test_maps_of_7x7(name):
    cfg = Config.fromfile(f'{ROOT}/configs/{name}.py')
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg.model).eval()
    feats = model.backbone(torch.rand(1, 3, 112, 112))
    assert model.neck.attention_maps(feats).shape == (1, 4, 7, 7)
