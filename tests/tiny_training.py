# Copyright (c) dan_mm contributors. All rights reserved.
"""A training of a few seconds."""
import torch
from conftest import ROOT
from mmengine.config import Config

EPOCHS = 4


def config(root, work_dir, **options):
    """DAN with the augmentation of RAF-DB on a few images of FER+."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    rafdb = Config.fromfile(f'{ROOT}/configs/dan_rafdb.py')
    pipeline = rafdb.train_dataloader.dataset.pipeline
    _, resize, warp, *_ = pipeline
    resize.scale = (32, 32)
    warp.padding = 4
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    for phase in 'train', 'val', 'test':
        loader = cfg[f'{phase}_dataloader']
        loader.batch_size = 8
        loader.dataset.update(data_root=str(root), indices=24)
    cfg.val_dataloader.num_workers = 0
    cfg.merge_from_dict({
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        # Random numbers in the model, too
        'model.backbone.drop_path_rate': 0.5,
        'model.neck.in_channels': 64,
        'model.head.in_channels': 64,
        'train_cfg.max_epochs': EPOCHS,
        'work_dir': str(work_dir),
        **{
            key.replace('__', '.'): value
            for key, value in options.items()
        }
    })
    return cfg


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(one, other):
    """The same weights, statistics and states, to the last bit."""
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for key, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][key]), key
    for one, other in zip(*(checkpoint['optimizer']['state'].values()
                            for checkpoint in (one, other))):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
