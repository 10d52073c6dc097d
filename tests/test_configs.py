# Copyright (c) dan_mm contributors. All rights reserved.
import glob
import os.path as osp

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, draw_face
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CONFIGS = sorted(
    osp.relpath(path, f'{ROOT}/configs')
    for path in glob.glob(f'{ROOT}/configs/**/*.py', recursive=True)
    if '/_base_/' not in path and '/retinaface/' not in path)
with open(f'{ROOT}/configs/metafile.yml') as metafile:
    PARAMETERS = {
        model['Config']: model['Metadata']['Parameters']
        for model in yaml.safe_load(metafile)['Models']
    }


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_runs(name, tmp_path):
    cfg = Config.fromfile(f'{ROOT}/configs/{name}')
    method, dataset = osp.basename(name)[:-len('.py')].split('_')
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    parameters = sum(value.numel() for key, value in model.named_parameters()
                     if not key.endswith('centers'))
    assert parameters == PARAMETERS[f'configs/{name}']
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


@pytest.mark.parametrize('name, largest, moved', [
    ('rafdb', 0.26, 0.2),
    ('affectnet8', 0.34, 0.7),
])
def test_augmentation(name, largest, moved):
    """The ratios of moved and erased images, on a white one."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_{name}.py')
    # The first transform loads an image, the last packs it.
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline[1:-1])
    np.random.seed(0)
    torch.manual_seed(0)
    erased, black = [], []
    for _ in range(400):
        results = dict(img=np.full((100, 100, 3), 255, np.uint8))
        img = pipeline(results)['img']
        assert img.shape == (224, 224, 3)
        # Rotation, shifts and padding fill with black, erasing with the mean.
        black.append((img == 0).all(2).mean())
        erased.append((img == (103, 116, 123)).all(2).mean())
    black, erased = np.array(black), np.array(erased)
    assert abs((black > 0).mean() - moved) < 0.08
    assert abs((erased > 0).mean() - 0.5) < 0.08
    assert 0.015 < erased[erased > 0].min() and erased.max() < largest
    # AffectNet: shifts by a fifth in both directions, a scale of at least 0.8
    assert name == 'rafdb' or 0.4 < black.max() < 0.6


@pytest.mark.parametrize('method', ['dan', 'resnet18'])
@pytest.mark.parametrize('classes', [7, 8])
def test_affectnet_is_the_recipe_of_the_original_code(method, classes):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_affectnet{classes}.py')
    assert cfg.optim_wrapper.optimizer == dict(type='Adam', lr=1e-4)
    assert cfg.param_scheduler.type == 'ExponentialLR'
    assert cfg.param_scheduler.gamma == 0.6 and cfg.param_scheduler.by_epoch
    assert cfg.train_cfg.max_epochs == 40
    loader = cfg.train_dataloader
    assert loader.batch_size == 256
    assert loader.sampler.type == 'BalancedSampler'
    assert cfg.val_dataloader is None and cfg.val_cfg is None
    assert cfg.test_dataloader.dataset.split == 'val'
    for dataset in loader.dataset, cfg.test_dataloader.dataset:
        assert dataset.num_classes == classes == cfg.model.head.num_classes
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('msceleb.pth')


def differences(one, other, path=()):
    """The keys whose values are not the same, as a dictionary of paths."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = {}
        for key in one.keys() | other.keys():
            found.update(
                differences(one.get(key), other.get(key), (*path, key)))
        return found
    return {} if one == other else {'.'.join(path): other}


@pytest.mark.parametrize('variant, key, value', [
    ('fcn-none', 'model.head.loss_affinity', None),
    ('fcn-center', 'model.head.loss_affinity', dict(type='CenterLoss')),
    ('afn-none', 'model.head.loss_partition', None),
    ('affinity-w0p1', 'model.head.loss_affinity',
     dict(type='AffinityLoss', loss_weight=0.1)),
    ('affinity-w10', 'model.head.loss_affinity',
     dict(type='AffinityLoss', loss_weight=10.)),
    ('partition-w0p1', 'model.head.loss_partition',
     dict(type='PartitionLoss', loss_weight=0.1)),
    ('partition-w10', 'model.head.loss_partition',
     dict(type='PartitionLoss', loss_weight=10.)),
    *((f'h{k}', 'model.neck.num_heads', k) for k in (1, 2, 3, 5, 6, 7, 8)),
])
def test_ablations_change_one_thing(variant, key, value):
    base = Config.fromfile(f'{ROOT}/configs/dan_rafdb.py').to_dict()
    cfg = Config.fromfile(
        f'{ROOT}/configs/ablation/dan-{variant}_rafdb.py').to_dict()
    # `None` and a loss that is not mentioned, its default, are not the same.
    assert key.rsplit('.', 1)[1] in cfg['model'][key.split('.')[1]]
    base['model']['head'].setdefault('loss_affinity', 'default')
    base['model']['head'].setdefault('loss_partition', 'default')
    for name, default in base['model']['head'].items():
        cfg['model']['head'].setdefault(name, default)
    assert differences(base, cfg) == {key: value}


@pytest.mark.parametrize('method',
                         ['dan', 'resnet18', 'dan-7x7', 'resnet18-7x7',
                          'dan-augmented', 'dan-dlibresnet',
                          'dlibresnet'])  # yapf: disable
def test_ferplus_chooses_on_training_images(method):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_ferplus.py')
    for phase, split, share in (('train', 'train', 0.1), ('val', 'val', 0.1),
                                ('test', 'val', None)):
        dataset = cfg[f'{phase}_dataloader'].dataset
        assert dataset.split == split
        assert dataset.get('val_split') == share
    metrics = [metric.type for metric in cfg.test_evaluator]
    assert metrics == ['Accuracy', 'BalancedAccuracy', 'CalibrationError']


def test_dlibresnet_and_its_baseline_share_a_recipe():
    dan, plain = (
        Config.fromfile(f'{ROOT}/configs/{name}_ferplus.py')
        for name in ('dan-dlibresnet', 'dlibresnet'))
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler',
                'train_cfg', 'custom_hooks', 'data_preprocessor'):
        assert dan[key] == plain[key]
    assert dan.model.backbone == plain.model.backbone
    dataset = dan.train_dataloader.dataset
    assert dataset.soft_targets and dataset.ambiguous
    for name in 'val_dataloader', 'test_dataloader':
        assert not dan[name].dataset.get('ambiguous')
    assert dan.param_scheduler[1].end == dan.train_cfg.max_epochs


@pytest.mark.parametrize('method', ['dan', 'resnet18', 'dan-augmented'])
def test_ferplus_cycles_rate_and_momentum_as_torch_does(method):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_ferplus.py')
    epochs, steps = cfg.train_cfg.max_epochs, 196
    options = dict(cfg.optim_wrapper.optimizer)
    assert options.pop('type') == 'Adam'
    ours, theirs = (
        torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], **options)
        for _ in range(2))
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(scheduler, epoch_length=steps),
            default_args=dict(optimizer=ours))
        for scheduler in cfg.param_scheduler
    ]
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs,
        max_lr=cfg.param_scheduler[0].eta_max,
        epochs=epochs,
        steps_per_epoch=steps)
    values = []
    for step in range(epochs * steps):
        if step:
            for scheduler in [*schedulers, reference]:
                scheduler.optimizer.step()
                scheduler.step()
        values.append([(group['lr'], group['betas'][0])
                       for optimizer in (ours, theirs)
                       for group in optimizer.param_groups])
    rates, betas = np.moveaxis(values, 2, 0)
    np.testing.assert_allclose(*rates.T, rtol=1e-6)
    # torch turns round one step earlier
    np.testing.assert_allclose(*betas.T, atol=5e-4)
    assert betas.min() < 0.8501 and betas[-1].min() > 0.9499


@pytest.mark.parametrize('name', ['dan_synthface', 'dan-7x7_ferplus'])
def test_maps_of_7x7(name):
    cfg = Config.fromfile(f'{ROOT}/configs/{name}.py')
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg.model).eval()
    feats = model.backbone(torch.rand(1, 3, 112, 112))
    assert model.neck.attention_maps(feats).shape == (1, 4, 7, 7)
