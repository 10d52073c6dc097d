# Copyright (c) dan_mm contributors. All rights reserved.
import importlib
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import dan_mm
from dan_mm import version

BUILD = '''
import dan_mm
dan_mm.register_all_modules()
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
for registry, names in (
    (MODELS, ('MAN', 'AFN', 'AffinityLoss', 'PartitionLoss', 'CenterLoss')),
    (DATASETS, ('RAFDB', 'FERPlus')), (METRICS, ('BalancedAccuracy', )),
    (TRANSFORMS, ('LoadCheckedImage', )), (HOOKS, ('EpochSeedHook', ))):
    for name in names:
        assert registry.get(name) is not None, name
assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
assert CheckpointLoader.load_checkpoint.__module__ == 'dan_mm.checkpoint'
print(dan_mm.__version__)
'''


def run(code: str) -> str:
    process = subprocess.run([sys.executable, '-c', code],
                             cwd=ROOT,
                             text=True,
                             stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    return f'{process.returncode}\n{process.stdout}'


def test_the_import_is_cheap():
    code = ('import sys; known = set(sys.modules); import dan_mm; '
            "print({name.split('.')[0] for name in set(sys.modules) - known} "
            '- set(sys.stdlib_module_names))')
    start = time.perf_counter()
    assert run(code) == "0\n{'dan_mm'}\n"
    # 0.1 s, on a machine that does nothing else
    assert time.perf_counter() - start < 2


def test_registers_everything_without_compiled_ops_or_a_detector():
    hidden = ("import sys; sys.modules['mmcv._ext'] = None; "
              "sys.modules['mmdet'] = None\n")
    output = run(hidden + BUILD)
    assert output.startswith('0\n'), output
    assert dan_mm.__version__ in output


def test_leaves_the_scope_alone():
    output = run('import dan_mm; from mmengine.registry import DefaultScope; '
                 'dan_mm.register_all_modules(init_default_scope=False); '
                 'print(DefaultScope.get_current_instance())')
    assert output.endswith('\nNone\n'), output


@pytest.mark.parametrize('package, found', [('onedl-mmcv', '1.7.2'),
                                            ('torch', '2.5.1+cpu'),
                                            ('torch', '2.13.0a0'),
                                            ('mmpretrain', '2.0.0'),
                                            ('mmengine', '0.7.0')])
def test_refuses_versions_that_do_not_fit(package, found, monkeypatch):
    installed = version.version
    monkeypatch.setattr(
        version, 'version', lambda name: found
        if name == package else installed(name))
    with pytest.warns(UserWarning, match=f'found {package} '):
        importlib.reload(dan_mm)
    with pytest.raises(ImportError) as error:
        version.check_versions()
    assert f'found {package} {found}, expected >=' in str(error.value)
    assert 'Install one with `pip install "' in str(error.value)


def test_loads_no_checkpoint_with_a_torch_that_does_not_fit():
    output = run('from dan_mm import version; '
                 'version.VERSIONS = [("torch", "torch", "98.0", "99.0")]; '
                 'import dan_mm.checkpoint')
    assert output.startswith('1\n') and 'expected >=98.0,<99.0' in output
