# Copyright (c) dan_mm contributors. All rights reserved.
import os
import subprocess
import sys
from argparse import Namespace

import pytest
from conftest import ROOT

from dan_mm.cli import doctor
from dan_mm.version import requirement

OLD_DRIVER = 'The NVIDIA driver on your system is too old'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules and distributions come first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, 'TIMEOUT', 20)
    return tmp_path


def write(folder, **modules):
    for name, code in modules.items():
        (folder / name).mkdir()
        (folder / name / '__init__.py').write_text(code)


def distribute(folder, requires='', **versions):
    for name, version in versions.items():
        info = folder / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name.replace("_", "-")}\n'
            f'Version: {version}\n{requires}')


def run(capsys):
    status = doctor.run(Namespace())
    return status, ' '.join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_finds_no_problem_here(capsys):
    status, output = run(capsys)
    assert status == 0, output
    assert 'problems: 0, warnings: ' in output
    for text in ('Python 3.', 'ok torch: torch 2.', 'ok mmcv: onedl-mmcv',
                 'MMEngine 0.'):
        assert text in output, output
    assert ('ok everything' in output) or ('no compiled ops' in output)


def test_needs_the_standard_library_alone():
    code = ('import sys; known = set(sys.modules); import dan_mm.cli.doctor; '
            "print({name.split('.')[0] for name in set(sys.modules) - known} "
            '- set(sys.stdlib_module_names))')
    output = subprocess.check_output([sys.executable, '-S', '-c', code],
                                     cwd=ROOT,
                                     text=True)
    assert output == "{'dan_mm'}\n"


@pytest.mark.parametrize('code, error', [
    ('import os; os.abort()', 'Fatal Python error: Aborted'),
    ('import time; time.sleep(60)', 'Timeout (0:00:02)'),
    ('import os; os._exit(0)', 'Python ended'),
    ('import sys; sys.exit("Bye.")', 'Python ended'),
    ('print("{}"); raise RuntimeError("no luck")', 'RuntimeError: no luck'),
    ('import absent', "ModuleNotFoundError: No module named 'absent'"),
])
def test_survives_modules_that_crash_hang_exit_and_print(
        code, error, folder, monkeypatch, capsys):
    write(folder, torch=code)
    monkeypatch.setattr(doctor, 'TIMEOUT', 2)
    monkeypatch.setattr(doctor, 'check_requirements', lambda: ())
    status, output = run(capsys)
    assert status == 1
    assert f'problem torch fails: {error}' in output
    assert requirement('torch') in output
    # One cause is one problem.
    assert 'problems: 1, warnings: 1' in output
    assert 'the rest was not examined' in output


def test_a_missing_module_is_one_problem(folder, monkeypatch, capsys):
    find = doctor.find
    monkeypatch.setattr(doctor, 'find',
                        lambda name: name != 'mmengine' and find(name))
    write(folder, torch='raise ImportError("torch")')
    monkeypatch.setattr(doctor, 'check_requirements', lambda: ())
    status, output = run(capsys)
    assert 'problem mmengine is missing, expected onedl-mmengine' in output
    assert 'problem torch fails' in output and 'problems: 2' in output
    (folder / 'torch' / '__init__.py').write_text('import mmengine')
    monkeypatch.setattr(
        doctor, 'start', lambda *_, **kwargs:
        ('\nStep mmengine\n', "No module named 'mmengine'"))
    status, output = run(capsys)
    assert status == 1 and 'problems: 1, warnings: 1' in output


def test_leftovers_are_no_modules(tmp_path, monkeypatch):
    (tmp_path / 'leftover').mkdir()
    write(tmp_path, whole='')
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.find('whole')
    assert not doctor.find('leftover') and not doctor.find('absent')


@pytest.mark.parametrize('step, error, level, found, fix', [
    ('mmcv._ext', "ModuleNotFoundError: No module named 'mmcv._ext'", 'hint',
     'no compiled ops', '--no-build-isolation --no-cache-dir "onedl-mmcv>='),
    ('mmcv._ext', 'ImportError: /x/_ext.so: undefined symbol: _ZN3c10',
     'problem', 'undefined symbol', '--no-build-isolation'),
    ('cv2', 'ImportError: libGL.so.1: cannot open shared object file',
     'problem', 'libGL.so.1', 'apt-get install libgl1 libglib2.0-0'),
    ('torchvision', 'RuntimeError: operator torchvision::nms does not exist',
     'problem', 'the torchvision of torch 2.6.0+cpu',
     'torchvision==0.21.0 --index-url https://download.pytorch.org/whl/cpu'),
    ('the GPU', 'RuntimeError: no kernel image is available', 'problem',
     'no kernel image', 'export CUDA_VISIBLE_DEVICES=  '),
    ('mmcv', "ModuleNotFoundError: No module named 'addict'", 'problem',
     'addict', f'pip install "{requirement("mmcv")}"'),
    ('mmcv', 'Fatal Python error: Aborted', 'problem', 'Aborted',
     f'--force-reinstall --no-deps "{requirement("mmcv")}"'),
    ('dan_mm.apis', 'SyntaxError: invalid syntax', 'problem',
     'dan_mm.apis fails', '"dan-mm"'),
])
def test_explains_what_fails(step, error, level, found, fix, monkeypatch):
    monkeypatch.setattr(doctor, 'installed', lambda name: '2.6.0+cpu')
    monkeypatch.setattr(doctor, 'find', lambda name: False)
    finding = doctor.explain(step, error)
    assert finding.level == level
    assert found in finding.found and fix in finding.fix
    monkeypatch.setattr(doctor, 'find', lambda name: True)
    expected = 'warning' if level == 'hint' else level
    assert doctor.explain(step, error).level == expected


@pytest.mark.parametrize('module, versions, level, fix', [
    ('mmcv', dict(onedl_mmcv='2.3.6'), 'ok', ''),
    ('mmcv', dict(onedl_mmcv='1.7.2'), 'problem', 'pip install "onedl-mmcv>='),
    ('mmcv', dict(onedl_mmcv='2.4.0'), 'problem', 'pip install "onedl-mmcv>='),
    ('mmcv', dict(onedl_mmcv='2.3.6', mmcv_lite='2.3.6'), 'problem',
     'pip uninstall -y mmcv-lite onedl-mmcv\n'),
    ('mmengine', dict(onedl_mmengine='0.10.12', mmengine='0.10.7'), 'problem',
     'pip uninstall -y mmengine onedl-mmengine\n'),
    ('cv2', dict(
        opencv_python='4.12.0.88',
        opencv_python_headless='4.12.0.88'), 'ok', ''),
    ('cv2', dict(opencv_python='5.0.0.1',
                 opencv_python_headless=''), 'problem', '"opencv-python>='),
    ('cv2', dict(opencv_python_headless='4.11.0.86',
                 opencv_python=''), 'ok', ''),
    ('cv2', dict(
        opencv_python='4.12.0.88', opencv_python_headless='4.11.0.86'),
     'problem', 'opencv-python==4.12.0.88 opencv-python-headless==4.12.0.88'),
])
def test_versions_and_rivals(module, versions, level, fix, monkeypatch):
    monkeypatch.setattr(doctor, 'find', lambda name: True)
    versions = {
        name.replace('_', '-'): version
        for name, version in versions.items()
    }
    monkeypatch.setattr(doctor, 'installed',
                        lambda name: versions.get(name, ''))
    monkeypatch.setattr(doctor, 'packages_distributions',
                        lambda: {module: [*versions, None]})
    finding = doctor.check_package(module)
    assert finding.level == level
    assert fix in finding.fix and bool(fix) == bool(finding.fix)
    for name, version in versions.items():
        if version:
            assert f'{name} {version}' in finding.found


def test_requirements(folder):
    distribute(folder, 'Requires-Dist: absent-package>=2', other_package='1.0')
    distribute(
        folder,
        'Requires-Dist: rich>=9999\nRequires-Dist: torch>=9999',
        dan_mm='0.1.0')
    findings = {finding.level: finding
                for finding in doctor.check_requirements()}  # yapf: disable
    assert 'rich' in findings['problem'].found
    assert findings['problem'].fix.endswith("install 'rich>=9999'")
    assert 'absent-package' in findings['warning'].found
    assert findings['warning'].fix.endswith('install absent-package')


@pytest.mark.parametrize('result, driver, hidden, level, text', [
    ((True, '13.0', ''), '', False, 'ok', 'uses the GPU'),
    ((False, '13.0', ''), 'exit 9', False, 'ok', 'no NVIDIA GPU'),
    ((False, '13.0', ''), 'exec sleep 60', False, 'ok', 'no NVIDIA GPU'),
    ((False, None, ''), 'echo "GPU 0: Tesla T4 (UUID: GPU-2)"', False,
     'warning', 'Tesla T4 is not used: torch was built without CUDA'),
    ((False, '13.0', ''), 'echo "GPU 0: Tesla T4 (UUID: GPU-2)"', True, 'hint',
     'CUDA_VISIBLE_DEVICES'),
    ((False, '13.0', ''), 'echo "GPU 0: Tesla T4 (UUID: GPU-2)"', False,
     'warning', 'does not find it'),
    ((False, '13.0', OLD_DRIVER), 'exit 9', False, 'warning', OLD_DRIVER),
])
def test_gpus(result, driver, hidden, level, text, tmp_path, monkeypatch):
    path = tmp_path / 'nvidia-smi'
    path.write_text(f'#!/bin/sh\n{driver}\n')
    path.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(doctor.start, '__kwdefaults__', dict(timeout=2))
    finding = doctor.check_gpu(*result)
    assert finding.level == level and text in finding.found
    assert bool(finding.fix) == (level != 'ok')
