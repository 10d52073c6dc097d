# Copyright (c) dan_mm contributors. All rights reserved.
"""What each recipe feeds its model: the output of its datasets, pipelines and
preprocessor on fixed images and seeds, in numbers.

After a recipe was changed on purpose, ``python tests/test_recipes.py`` writes
``tests/data/recipes.json`` anew.
"""
import csv
import glob
import json
import os.path as osp
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmpretrain.registry import DATASETS, MODELS

RECIPES = sorted(
    osp.relpath(path, f'{ROOT}/configs')[:-len('.py')]
    for pattern in ('*.py', 'backbones/*dlibresnet*.py')
    for path in glob.glob(f'{ROOT}/configs/{pattern}'))
EXPECTED = f'{ROOT}/tests/data/recipes.json'


def write_images(paths):
    """Write coloured patterns, small and large by turns: they are enlarged
    and shrunk."""
    for i, path in enumerate(paths):
        size = 300 if i % 2 else 48
        y, x, channel = np.mgrid[:size, :size, :3]
        img = (7 * x + 3 * y + 50 * channel * (x > y) + 31 * i) % 240
        img = img * (channel + 1) // 3
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode('.png', img.astype(np.uint8))[1])


def make_data(root):
    """Make each dataset with a few images of each class."""
    emotions = 'Angry Disgust Fear Happy Neutral Sad Surprise'.split()
    write_images([
        *(root / 'affectnet' / split / f'{i}/a.png'
          for split in ('train', 'val') for i in range(8)),
        *(root / 'sfew' / split / name / 'a.png'
          for split in ('Train', 'Val') for name in emotions)
    ])  # yapf: disable
    names = [f'{split}_{i:04d}' for split in ('train', 'test')
             for i in range(7)]  # yapf: disable
    folder = root / 'rafdb' / 'Image' / 'aligned'
    write_images([folder / f'{name}_aligned.jpg' for name in names])
    path = root / 'rafdb' / 'EmoLabel' / 'list_patition_label.txt'
    path.parent.mkdir()
    path.write_text('\n'.join(f'{name}.jpg {i % 7 + 1}'
                              for i, name in enumerate(names)))
    rows = [
        [usage, f'{i}.png', *np.roll([a, 10 - a] + [0] * 8, i % 2)]
        for usage in ('Training', 'PublicTest')
        for i, a in enumerate([9, 8, 7, 6] * 5 + [5] * 4)
    ]  # yapf: disable
    folders = dict(Training='FER2013Train', PublicTest='FER2013Valid')
    write_images([root / 'ferplus' / folders[row[0]] / row[1] for row in rows])
    with open(root / 'ferplus' / 'fer2013new.csv', 'w') as file:
        csv.writer(file).writerows(rows)


def summarize(cfg, root, phases=('train', 'val', 'test')):
    """Summarize the inputs and targets of each phase of a config."""
    found = {}
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader')
        if loader is None:
            continue
        options = dict(
            data_root=f'{root}/{osp.basename(loader.dataset.data_root)}')
        if loader.dataset.type == 'SynthFace':
            options['num_identities'] = 1
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*official split')
            dataset = DATASETS.build({**loader.dataset, **options})
        preprocessor = MODELS.build(
            dict(cfg.data_preprocessor, type='ClsDataPreprocessor'))
        set_random_seed(0)
        batch = default_collate([dataset[i] for i in range(len(dataset))])
        data = preprocessor(batch, training=phase == 'train')
        img = data['inputs'].double()
        side = torch.linspace(-1, 1, img.shape[-1], dtype=img.dtype)
        samples = data['data_samples']
        one_hot = torch.eye(len(dataset.CLASSES), dtype=img.dtype)
        targets = torch.stack([
            sample.get('gt_score', one_hot[sample.gt_label[0]]).double()
            for sample in samples
        ])
        numbers = dict(
            shape=list(map(float, img.shape)),
            mean=img.mean((0, 2, 3)),
            std=img.std((0, 2, 3)),
            # Edges, of what is smoothed; tilt, of what is moved and flipped
            edges=[img.diff(dim=2).abs().mean(),
                   img.diff(dim=3).abs().mean()],
            tilt=[(img * side[:, None]).mean(), (img * side).mean()],
            targets=targets.mean(0),
            hardness=targets.max(1).values.mean())
        found[phase] = {
            name: np.round(torch.as_tensor(value), 4).tolist()
            for name, value in numbers.items()
        }
    return found


def differences(found, expected):
    """List the numbers that are not the same, but for rounding."""
    return [(phase, name, value, expected[phase][name])
            for phase, numbers in found.items()
            for name, value in numbers.items()
            if np.shape(value) != np.shape(expected[phase][name])
            or not np.allclose(value, expected[phase][name], atol=2e-3)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root


@pytest.fixture(scope='module')
def expected():
    with open(EXPECTED) as file:
        return json.load(file)


def load(name):
    return Config.fromfile(f'{ROOT}/configs/{name}.py')


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name, data, expected):
    found = summarize(load(name), data)
    assert found.keys() == expected[name].keys()
    assert differences(found, expected[name]) == []


def drop(kind):
    """Drop a transform."""

    def change(cfg, phase):
        dataset = cfg[f'{phase}_dataloader'].dataset
        steps = [step for step in dataset.pipeline if step.type != kind]
        assert len(steps) < len(dataset.pipeline)
        dataset.pipeline = steps

    return change


def change_step(kind, **options):
    """Set arguments of a transform, or drop them with None."""

    def change(cfg, phase):
        pipeline = cfg[f'{phase}_dataloader'].dataset.pipeline
        step, = (step for step in pipeline if step.type == kind)
        step.update(options)
        for key in options:
            if step[key] is None:
                del step[key]

    return change


def change_dataset(**options):

    def change(cfg, phase):
        cfg[f'{phase}_dataloader'].dataset.update(options)

    return change


def change_preprocessor(**options):

    def change(cfg, phase):
        cfg.data_preprocessor.update(options)

    return change


@pytest.mark.parametrize('name, phase, change', [
    ('dan_rafdb', 'test', change_preprocessor(to_rgb=False)),
    ('dan_affectnet7', 'test', change_preprocessor(to_rgb=False)),
    ('dlibresnet_ferplus', 'test', change_preprocessor(to_rgb=False)),
    ('dan_ferplus', 'test', change_preprocessor(std=[1., 1., 1.])),
    ('dan_rafdb', 'train', change_step('AntialiasResize', type='Resize')),
    ('dan_rafdb', 'test', change_step('Resize', backend=None)),
    ('dan_affectnet8', 'test', change_step('Resize', backend=None)),
    ('dan_sfew', 'test', change_step('Resize', interpolation='nearest')),
    ('dan-augmented_ferplus', 'train', change_dataset(soft_targets=False)),
    ('dlibresnet_ferplus', 'train', change_dataset(soft_targets=False,
                                                   ambiguous=False)),
    ('dlibresnet_ferplus', 'train', change_dataset(ambiguous=False)),
    ('dan-dlibresnet_ferplus', 'val', change_dataset(val_split=0.)),
    ('dan_sfew', 'test', change_dataset(split='train')),
    ('dan_rafdb', 'train', drop('RandomErasing')),
    ('dan_affectnet7', 'train', drop('RandomErasing')),
    ('dan-dlibresnet_ferplus', 'train', drop('RandomErasing')),
    ('dan_affectnet7', 'train',
     change_step('RandomErasing', max_area_ratio=.25)),
    ('dan_rafdb', 'train',
     change_step('RandomErasing', fill_color=(124., 116., 104.))),
    ('dan_rafdb', 'train', drop('RandomWarp')),
    ('dan_sfew', 'train', change_step('RandomWarp', flip_prob=0.)),
    ('dan_ferplus', 'train', drop('RandomFlip')),
    ('dan_ferplus', 'train', drop('RandomCrop')),
    ('dan_synthface', 'train', drop('RandomFlip')),
    ('dan-augmented_ferplus', 'train', drop('ColorJitter')),
    ('dlibresnet_ferplus', 'train',
     change_step('torchvision/RandomAffine', interpolation=None)),
])  # yapf: disable
def test_a_change_of_a_recipe_is_noticed(name, phase, change, data, expected):
    cfg = load(name)
    change(cfg, phase)
    assert differences(summarize(cfg, data, [phase]), expected[name])


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder, \
            DefaultScope.overwrite_default_scope('mmpretrain'):
        make_data(Path(folder))
        lines = [
            f'"{name}": {json.dumps(summarize(load(name), folder))}'
            for name in RECIPES
        ]
    with open(EXPECTED, 'w') as file:
        file.write('{' + ',\n'.join(lines) + '}\n')
