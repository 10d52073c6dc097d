# Copyright (c) dan_mm contributors. All rights reserved.
"""The benchmark of inference, on tiny sizes."""
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision import transforms

from dan_mm.apis import FERInferencer
from dan_mm.reading.videos import read_video

sys.path.append(f'{ROOT}/tools/analysis_tools')
import benchmark  # noqa: E402 isort: skip
from benchmarks import inference  # noqa: E402 isort: skip
from benchmarks.common import Reference  # noqa: E402 isort: skip


def test_the_reference_and_ours_have_the_same_weights(tmp_path):
    torch.manual_seed(0)
    reference = Reference().eval()
    path = str(tmp_path / 'dan.pth')
    reference.save(path)
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (224, 224, 3), np.uint8)
    with pytest.warns(UserWarning, match='aligned'):
        inferencer = FERInferencer(path, device='cpu')
    scores = inferencer._classifier([crop], False, False).scores
    with torch.no_grad():
        expected = reference(inference.normalise([crop]))[2].softmax(1)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_normalises_as_torchvision():
    img = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    expected = transforms.Compose([
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ])(
        img[..., ::-1].copy())
    torch.testing.assert_close(
        inference.normalise([img])[0], expected, atol=1e-4, rtol=1e-4)


def test_counts_operations_and_bytes():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, bias=False))
    operations, moved = inference.cost(model, torch.rand(2, 3, 6, 6))
    # Multiplications and additions; input, output and weights in float32
    assert operations == 2 * (2 * 4 * 4) * 5 * 3 * 9
    assert moved == 4 * (2 * 3 * 36 + 2 * 5 * 16 + 5 * 3 * 9)


def test_rows_are_ratios_to_the_reference(capsys):
    table = inference.Table()
    table.add('a section', dict(slow=[2., 4., 6.], fast=[1., 1., 2.]), 'slow',
              8)
    slow, fast = table.rows
    assert slow == dict(
        section='a section', row='slow', per_second=2., ratio=1.)
    assert (fast['per_second'], fast['ratio']) == (8., 3.)
    assert '3.00x' in capsys.readouterr().out


def test_the_video_is_720p(tmp_path):
    img = cv2.imread(f'{ROOT}/docs/images/astronaut.jpg')
    inference.write_video(str(tmp_path / 'a.mp4'), img, 3)
    frames = list(read_video(str(tmp_path / 'a.mp4')))
    assert [frame.img.shape for frame in frames] == 3 * [(720, 1280, 3)]
    assert frames[0].img.std() > 20


def test_the_machine_has_limits():
    name, operations, bandwidth = inference.machine()
    assert 'processors' in name and operations > 1e8 and bandwidth > 1e8


@pytest.mark.parametrize('command', ['inference', 'train'])
def test_a_missing_image_is_named(command):
    with pytest.raises(SystemExit, match='no image missing.jpg'):
        benchmark.main([command, '--images', 'missing.jpg'])


def test_help_says_what_it_measures(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['--help'])
    assert 'Measure inference' in capsys.readouterr().out
