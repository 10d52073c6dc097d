# Copyright (c) dan_mm contributors. All rights reserved.
"""Models of grey images, with one channel."""
import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from dan_mm.apis import FERInferencer


def train(root, work_dir, loading, **preprocessor):
    """Train a model of one channel for an epoch, as `dan-mm train` does."""
    pipeline = [*loading, dict(type='Resize', scale=32)]
    data = dict(type='FERPlus', data_root=root, split='val')
    loader = dict(
        batch_size=20,
        dataset=dict(data, pipeline=[*pipeline,
                                     dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False))
    torch.manual_seed(0)
    runner = Runner.from_cfg(
        Config(
            dict(
                default_scope='mmpretrain',
                work_dir=str(work_dir),
                model=dict(
                    type='ImageClassifier',
                    backbone=dict(
                        type='ResNet',
                        depth=18,
                        in_channels=1,
                        stem_channels=8,
                        base_channels=8),
                    neck=dict(type='MAN', in_channels=64, num_heads=2),
                    head=dict(type='AFN', num_classes=8, in_channels=64)),
                data_preprocessor=dict(
                    num_classes=8, mean=[128.], std=[64.], **preprocessor),
                train_dataloader=loader,
                test_dataloader=loader,
                test_evaluator=dict(type='Accuracy'),
                test_cfg=dict(),
                train_cfg=dict(by_epoch=True, max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                custom_hooks=[dict(type='DescribeModelHook')],
                default_hooks=dict(logger=None))))
    runner.train()
    return runner


@pytest.mark.parametrize('kind', ['LoadCheckedImage', 'LoadImageFromFile'])
@pytest.mark.filterwarnings('ignore:.*official split')
def test_predicts_what_it_was_trained_on(ferplus_root, tmp_path, kind):
    runner = train(
        ferplus_root,
        tmp_path, [dict(type=kind, color_type='grayscale')],
        to_rgb=True)
    runner.model.eval()
    data = next(iter(runner.test_loop.dataloader))
    with torch.no_grad():
        samples = runner.model.test_step(data)
    paths = [sample.img_path for sample in samples]
    expected = torch.stack([sample.pred_score for sample in samples])

    inferencer = FERInferencer(tmp_path, device='cpu')
    found = inferencer(paths, aligned=True, attention_maps=True)
    scores = [list(result.faces[0].scores.values()) for result in found]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    # Figures need colours.
    face = found[0].faces[0]
    assert face.crop.shape == (48, 48, 3)
    assert face.attention_maps.shape == (2, 1, 1)
    # Colour counts by its brightness alone.
    img = cv2.imread(paths[0])
    img[..., 0] ^= 64
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)
    one, other = (
        list(inferencer(array, aligned=True)[0].faces[0].scores.values())
        for array in (img, grey))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.filterwarnings('ignore:.*official split')
def test_a_pipeline_that_makes_grey_images_itself(ferplus_root, tmp_path):
    """It needs the config, as other transforms that are not plain data do."""
    loading = [
        dict(type='LoadCheckedImage'),
        dict(type='RandomGrayscale', prob=1., keep_channels=False)
    ]
    runner = train(ferplus_root, tmp_path, loading)
    runner.cfg.dump(tmp_path / 'config.py')
    inferencer = FERInferencer(tmp_path, tmp_path / 'config.py', device='cpu')
    result = inferencer(np.full((48, 48, 3), 99, np.uint8), aligned=True)[0]
    assert result.error is None
    assert sum(result.faces[0].scores.values()) == pytest.approx(1)
