# Copyright (c) dan_mm contributors. All rights reserved.
"""The transforms that replace torchvision's do the same."""
import cv2
import numpy as np
import pytest
import torch
from conftest import draw_face
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from dan_mm.datasets import RandomWarp


def colour(height, width):
    """A face whose left and right, top and bottom differ."""
    img = cv2.resize(draw_face(1, 240), (width, height))
    shade = np.linspace(0.3, 1, width)[None, :, None] * [1, 0.8, 0.6]
    return (img[..., None] * shade).astype(np.uint8)


@pytest.mark.parametrize('shape', [(48, 48), (100, 70), (223, 224), (350, 300),
                                   (500, 100)])
def test_resizes_as_pillow(shape):
    img = colour(*shape)
    resize = TRANSFORMS.build(dict(type='AntialiasResize', scale=(224, 200)))
    results = resize(dict(img=img))
    expected = Image.fromarray(img).resize((224, 200), Image.BILINEAR)
    difference = np.abs(results['img'].astype(int) - expected)
    shrinks = shape[0] > 200 or shape[1] > 224
    assert difference.max() <= (0 if shrinks else 1)
    assert results['img_shape'] == (200, 224)
    assert results['scale_factor'] == pytest.approx(
        (224 / shape[1], 200 / shape[0]))


@pytest.mark.parametrize('angle', [-20, 0.4, 13])
@pytest.mark.parametrize('scale', [0.8, 1])
def test_warps_as_torchvision(angle, scale):
    img = colour(200, 224)
    found = RandomWarp(20).warp(img, angle, (-17, 31), scale)
    expected = F.affine(Image.fromarray(img), angle, [-17, 31], scale, [0, 0])
    # Rounding decides between two pixels now and then.
    assert (found != expected).any(2).mean() < 0.005


@pytest.mark.parametrize('top', [-32, 0, 9])
@pytest.mark.parametrize('left', [-1, 0, 32])
def test_moves_as_torchvision_crops(top, left):
    img = colour(60, 80)
    padded = F.pad(Image.fromarray(img), 32)
    expected = F.crop(padded, top + 32, left + 32, 60, 80)
    assert np.array_equal(RandomWarp.move(img, top, left), expected)


@pytest.mark.parametrize('options, reference', [
    (dict(degrees=20, padding=32, prob=0.2),
     [transforms.RandomRotation(20),
      transforms.RandomCrop(224, padding=32)]),
    (dict(degrees=20, translate=(0.2, 0.2), scale=(0.8, 1),
          prob=0.7), [transforms.RandomAffine(20, (0.2, 0.2), (0.8, 1))]),
])
def test_has_the_distribution_of_the_original(options, reference):
    """Of each pixel, mean and spread over many draws are the same as those of
    the authors' transforms, within five standard errors."""
    img = colour(224, 224)
    warp = RandomWarp(**options)
    original = transforms.Compose([
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply(reference, p=options['prob'])
    ])
    torch.manual_seed(0)
    draws = 1500
    found, expected = (
        np.stack([np.asarray(draw())[::28, ::28] for _ in range(draws)])
        for draw in (lambda: warp(dict(img=img))['img'],
                     lambda: original(Image.fromarray(img))))
    spread = expected.std(0)
    error = 5 * np.hypot(found.std(0), spread) / draws**0.5
    assert (np.abs(found.mean(0) - expected.mean(0)) <= error + 0.5).all()
    assert spread.min() > 1
    assert found.std(0).mean() == pytest.approx(spread.mean(), rel=0.03)


@pytest.mark.parametrize('img', [
    colour(40, 30),
    colour(40, 30)[:, ::-1],
    colour(40, 30)[..., 0],
    colour(40, 30)[..., :1],
])
def test_packs_as_mmpretrain(img):
    sample = dict(img=img, gt_label=3, img_shape=img.shape[:2])
    found, expected = (
        TRANSFORMS.build(dict(type=name))(sample)
        for name in ('PackImage', 'PackInputs'))
    assert torch.equal(found['inputs'], expected['inputs'])
    assert found['inputs'].is_contiguous()
    assert found['data_samples'].gt_label == 3
    assert found['data_samples'].img_shape == img.shape[:2]


def test_grey_images():
    img = colour(60, 80)[..., 0]
    resize = TRANSFORMS.build(dict(type='AntialiasResize', scale=40))
    results = RandomWarp(20, padding=3)(resize(dict(img=img)))
    assert results['img'].shape == (40, 40)


@pytest.mark.parametrize('options', [
    dict(padding=-1),
    dict(prob=1.1),
    dict(flip_prob=-0.1),
    dict(scale=(0, 1)),
])
def test_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RandomWarp(20, **options)
