# Copyright (c) dan_mm contributors. All rights reserved.
import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import dan_mm
from dan_mm import version

BUILD = '''
import dan_mm
from mmengine.registry import DefaultScope
dan_mm.register_all_modules(init_default_scope=False)
assert DefaultScope.get_current_instance() is None
dan_mm.register_all_modules()
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
for registry, names in (
    (MODELS, ('MAN', 'AFN', 'AffinityLoss', 'PartitionLoss', 'CenterLoss')),
    (DATASETS, ('RAFDB', 'FERPlus')), (METRICS, ('BalancedAccuracy', )),
    (TRANSFORMS, ('LoadCheckedImage', )), (HOOKS, ('EpochSeedHook', ))):
    for name in names:
        assert registry.get(name) is not None, name
assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
loaders = CheckpointLoader._schemes.values()
assert {loader.__module__ for loader in loaders} == {'dan_mm.checkpoint'}
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


@pytest.mark.parametrize('package, found', [('onedl-mmcv', '1.7.2'),
                                            ('torch', '2.5.1+cpu'),
                                            ('torch', '2.13.0a0'),
                                            ('mmpretrain', '2.0.0'),
                                            ('mmcv', '2.2.0'),
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
    module = package.replace('onedl-', '')
    assert f'pip install "{version.requirement(module)}"' in str(error.value)


def test_loads_no_checkpoint_with_a_torch_that_does_not_fit():
    output = run('from dan_mm import version; '
                 'version.VERSIONS["torch"] = ("torch", "98.0", "99.0"); '
                 'import dan_mm.checkpoint')
    assert output.startswith('1\n') and 'expected >=98.0,<99.0' in output


@pytest.mark.parametrize('metadata', [None, b'', b'\xff\xfe\x00'])
def test_survives_what_an_interrupted_pip_leaves(metadata, tmp_path,
                                                 monkeypatch):
    info = tmp_path / 'onedl_mmcv-2.3.6.dist-info'
    info.mkdir()
    if metadata is not None:
        (info / 'METADATA').write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    assert version.installed('onedl-mmcv') == ''
    version.check_versions()


def test_versions_are_the_same_everywhere():
    """Bounds stand in dan_mm/version.py alone. Where a user reads or copies
    them, they are equal; what is pinned is in them, and pinned once."""
    files = [
        *Path(ROOT).glob('*.*'), *Path(ROOT).glob('.ci/*'),
        Path(ROOT, 'Makefile'),
        *(path for folder in ('dan_mm', 'docs', 'configs', 'tools')
          for path in Path(ROOT, folder).rglob('*'))
    ]
    texts = {
        path: path.read_text()
        for path in files
        if path.is_file() and path.suffix in ('', '.cfg', '.md', '.py',
                                              '.toml', '.txt', '.yaml', '.yml')
    }
    pins = {}
    for module, (package, low, high) in version.VERSIONS.items():
        pattern = fr'(?<![\w-])(?:{package}|{module})((?:[<>=!~]=?[\d.]+,?)+)'
        for path, text in texts.items():
            for found in re.findall(pattern, text):
                if found.startswith('=='):
                    assert version.fits(found[2:], low, high), (path, found)
                    pins.setdefault(module, {})[found] = path
                else:
                    bounds = version.requirement(module)[len(package):]
                    assert found.strip(',') == bounds, (path, module)
    assert {'torch', 'mmcv'} <= set(pins)
    for found in pins.values():
        assert len(found) == 1, found
    # In words
    for name, (low, high) in dict(
            Python=version.PYTHON,
            torch=version.VERSIONS['torch'][1:]).items():
        major, minor = high.split('.')
        for path, text in texts.items():
            for found in re.findall(fr'{name}\s(\d\.\d+)\sto\s(\d\.\d+)',
                                    text):
                assert found == (low, f'{major}.{int(minor) - 1}'), path


def test_the_package_requires_the_versions_of_the_table():
    code = ('import setuptools, runpy\n'
            'setuptools.setup = lambda **kwargs: print(kwargs)\n'
            "runpy.run_path('setup.py')")
    output = run(code)
    for module in version.VERSIONS:
        assert repr(version.requirement(module)) in output
    assert "'python_requires': '>={},<{}'".format(*version.PYTHON) in output
