# Copyright (c) dan_mm contributors. All rights reserved.
"""The models by their names, in a clone and from a wheel."""
import glob
import os
import os.path as osp
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
import yaml
from conftest import ROOT
from mmpretrain import get_model, list_models

from dan_mm.apis import FERInferencer, register_model_index
from dan_mm.apis.model_index import DEFAULT_MODEL, shipped_model


def metafile():
    with open(f'{ROOT}/configs/metafile.yml') as file:
        return yaml.safe_load(file)['Models']


def test_the_index_has_every_config():
    configs = {
        osp.relpath(path, ROOT)
        for path in glob.glob(f'{ROOT}/configs/**/*.py', recursive=True)
        if '/_base_/' not in path and '/retinaface/' not in path
    }
    assert {model['Config'] for model in metafile()} == configs
    for model in metafile():
        assert model['Name'] == osp.basename(model['Config'])[:-len('.py')]


def test_models_by_name():
    register_model_index()
    register_model_index()
    assert {'dan_rafdb', 'dan-h8_rafdb',
            'resnet18_affectnet7'} <= set(list_models())
    assert list_models('dan_affect*') == ['dan_affectnet7', 'dan_affectnet8']
    model = get_model('DAN_RAFDB', head=dict(num_classes=3))
    assert model.head.num_classes == 3 and not model.training
    assert model._dataset_meta['classes'][0] == 'surprise'
    with torch.no_grad():
        assert model(torch.rand(1, 3, 224, 224)).shape[0] == 1


@pytest.mark.slow
def test_a_wheel_has_the_index(tmp_path):
    source = tmp_path / 'source'
    for name in 'dan_mm', 'configs':
        shutil.copytree(f'{ROOT}/{name}', source / name)
    for name in 'setup.py', 'README.md', 'MANIFEST.in':
        shutil.copy(f'{ROOT}/{name}', source)
    subprocess.run([
        sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
        '--no-build-isolation', '--wheel-dir',
        str(tmp_path),
        str(source)
    ],
                   check=True)
    wheel, = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / 'site')
    assert 'dan_mm/.mim/configs/metafile.yml' in names
    assert not [
        name for name in names if 'tests' in name or '__pycache__' in name
    ]
    code = ('import dan_mm, mmpretrain; '
            'from dan_mm.apis import register_model_index; '
            'register_model_index(); '
            "model = mmpretrain.get_model('dan_rafdb'); "
            'print(dan_mm.__file__, model._config.filename, '
            'model.neck.num_heads)')
    output = subprocess.run([sys.executable, '-c', code],
                            cwd=tmp_path,
                            env=dict(
                                os.environ, PYTHONPATH=str(tmp_path / 'site')),
                            check=True,
                            text=True,
                            capture_output=True).stdout
    found, config, heads = output.split()[-3:]
    assert found.startswith(str(tmp_path)) and heads == '4'
    assert config.startswith(f'{tmp_path}/site/dan_mm/.mim/configs/')


@torch.no_grad()
def test_the_shipped_weights_by_name():
    """MMPretrain gets the same model as :class:`FERInferencer`."""
    register_model_index()
    model = get_model(DEFAULT_MODEL, pretrained=True).eval()
    images = torch.rand(2, 3, 112, 112)
    expected = FERInferencer()._classifier.model(images)
    torch.testing.assert_close(model(images), expected)
    assert os.path.getsize(shipped_model()) < 14e6
