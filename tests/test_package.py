# Copyright (c) dan_mm contributors. All rights reserved.
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

import dan_mm

BUILD = '''
import dan_mm
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, METRICS, MODELS, TRANSFORMS
init_default_scope('mmpretrain')
for registry, names in (
    (MODELS, ('MAN', 'AFN', 'AffinityLoss', 'PartitionLoss', 'CenterLoss')),
    (DATASETS, ('RAFDB', 'FERPlus')), (METRICS, ('BalancedAccuracy', )),
    (TRANSFORMS, ('LoadCheckedImage', ))):
    for name in names:
        assert registry.get(name) is not None, name
print(dan_mm.__version__)
'''


def run(code: str) -> str:
    process = subprocess.run([sys.executable, '-c', code],
                             cwd=ROOT,
                             text=True,
                             stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    return f'{process.returncode}\n{process.stdout}'


def test_registers_everything_without_compiled_ops_or_a_detector():
    hidden = ("import sys; sys.modules['mmcv._ext'] = None; "
              "sys.modules['mmdet'] = None\n")
    output = run(hidden + BUILD)
    assert output.startswith('0\n'), output
    assert '0.1.0' in output


@pytest.mark.parametrize('package, version', [('mmcv', '1.7.2'),
                                              ('torch', '2.5.1+cpu'),
                                              ('mmpretrain', '2.0.0'),
                                              ('mmengine', '0.7.0')])
def test_refuses_versions_that_do_not_fit(package, version, monkeypatch):
    monkeypatch.setattr(sys.modules[package], '__version__', version)
    with pytest.raises(ImportError) as error:
        importlib.reload(dan_mm)
    assert f'found {package} {version}, expected >=' in str(error.value)
    assert 'Install one with `pip install "' in str(error.value)
