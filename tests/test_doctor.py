# Copyright (c) dan_mm contributors. All rights reserved.
import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple

import pytest
from conftest import ROOT

from dan_mm import doctor
from dan_mm.doctor import Need

TORCH = '2.12.1+cu130'
CV2 = Need('cv2', 'opencv-python')
MMCV = Need('mmcv', 'onedl-mmcv', '2.0.0', '2.4.0')


def failed(error: str, missing: bool = False) -> dict:
    return dict(error=error, missing=missing, follows=False)


def write(folder, **modules: str) -> None:
    for name, code in modules.items():
        (folder / name).mkdir()
        (folder / name / '__init__.py').write_text(code)


def add_distribution(folder, name: str, version: str, module: str) -> None:
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA'
     ).write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (info / 'RECORD').write_text(f'{module}/__init__.py,,\n')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules and distributions come first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_finds_no_problem_here(capsys):
    status = doctor.main()
    output = ' '.join(capsys.readouterr().out.split())
    assert status == 0, output
    assert 'problems: 0, warnings: ' in output
    for text in ('ok Python 3.', 'ok torch 2.', 'ok mmcv 2.', 'ok dan_mm: ',
                 'ok the configs: '):
        assert text in output, output
    if len(doctor.find_owners()['cv2']) > 1:
        assert 'are both cv2' in output


def test_needs_the_standard_library_alone():
    code = ("import runpy, sys; known = set(sys.modules); runpy.run_path('"
            f"{doctor.__file__}'); print({{name.split('.')[0] for name in set("
            "sys.modules) - known} - set(sys.stdlib_module_names))")
    output = subprocess.check_output([sys.executable, '-S', '-c', code],
                                     cwd=ROOT,
                                     text=True)
    assert output == 'set()\n'


def test_knows_all_that_is_required():
    modules = [*doctor.VERSIONS, *doctor.OTHERS]
    requirements = importlib.metadata.requires('dan-mm')
    names = {
        doctor.re.match('[A-Za-z0-9-]+', requirement)[0]
        for requirement in requirements if 'extra ==' not in requirement
    }
    assert names <= {module[1] for module in modules}


def test_survives_modules_that_crash_hang_exit_and_print(folder):
    write(
        folder,
        crashing='import os\nos.abort()',
        hanging='import time\ntime.sleep(60)',
        leaving='import os\nos._exit(3)',
        printing='print("{}")\n__version__ = "1.2"',
        importing='import crashing',
        raising='raise RuntimeError("no luck")')
    (folder / 'leftover').mkdir()
    answers = doctor.ask([
        'crashing', 'hanging', 'leaving', 'printing', 'importing', 'raising',
        'leftover', 'absent_module'
    ], 2)
    assert 'Aborted' in answers['crashing']['error']
    assert 'crashing/__init__.py, line 2' in answers['crashing']['error']
    assert answers['hanging']['error'].startswith('Timeout (0:00:02)')
    assert 'hanging/__init__.py, line 2' in answers['hanging']['error']
    assert 'with status 3' in answers['leaving']['error']
    assert answers['printing']['version'] == '1.2'
    assert answers['importing']['follows']
    assert answers['raising']['error'] == 'RuntimeError: no luck'
    assert 'without code' in answers['leftover']['error']
    assert [name for name in answers
            if answers[name].get('missing')] == ['absent_module']
    assert [name for name in answers
            if answers[name].get('follows')] == ['importing']


def test_tells_missing_ops_from_those_of_another_torch(folder, monkeypatch):
    write(folder, torch='', mmcv='')
    missing = doctor.ask(['mmcv._ext'], 10)['mmcv._ext']
    assert missing['missing']
    (folder / 'mmcv' / '_ext.py'
     ).write_text("raise ImportError('/x/_ext.so: undefined symbol: _ZN3c10')")
    other = doctor.ask(['mmcv._ext'], 10)['mmcv._ext']
    assert not other['missing']
    monkeypatch.setattr(doctor, 'is_installed', lambda module: False)
    finding = doctor.check_ops(missing, TORCH)
    assert finding.level == 'hint' and 'no compiled ops' in finding.found
    assert '--no-build-isolation --no-cache-dir' in finding.mend
    monkeypatch.setattr(doctor, 'is_installed', lambda module: True)
    assert doctor.check_ops(missing, TORCH).level == 'warning'
    finding = doctor.check_ops(other, TORCH)
    assert finding.level == 'problem'
    assert f'another torch than {TORCH}' in finding.found
    finding = doctor.check_ops(failed('the process ended'), TORCH)
    assert finding.level == 'problem' and 'fail: ' in finding.found
    assert doctor.check_ops(dict(path=''), TORCH).level == 'ok'


def test_opencv_without_its_libraries(folder):
    write(
        folder,
        cv2="raise ImportError('libGL.so.1: cannot open shared object file: "
        "No such file or directory')",
        using_cv2='import cv2')
    answers = doctor.ask(['cv2', 'using_cv2'], 10)
    finding = doctor.check_module(CV2, answers['cv2'], {}, TORCH)
    assert finding.level == 'problem' and 'libGL.so.1' in finding.found
    assert finding.mend == 'apt-get install libgl1 libglib2.0-0'
    assert answers['using_cv2']['follows']


def test_forks_beside_their_originals(folder):
    for name, version, module in (('mmengine', '0.10.7', 'mmengine'),
                                  ('onedl-mmengine', '0.10.12',
                                   'mmengine'), ('mmcv_lite', '2.1.0', 'mmcv'),
                                  ('onedl-mmcv', '2.3.6', 'mmcv')):
        add_distribution(folder, name, version, module)
    (folder / 'broken-1.0.dist-info').mkdir()
    owners = doctor.find_owners()
    for need, both in ((Need(*doctor.VERSIONS[1]), 'mmengine onedl-mmengine'),
                       (MMCV, 'mmcv-lite onedl-mmcv')):
        finding, = doctor.check_owners(need, owners)
        assert finding.level == 'problem'
        assert 'overwrite each other' in finding.found
        assert finding.mend == (f'{doctor.PIP} uninstall -y {both}\n'
                                f'{doctor.PIP} install "{need.requirement}"')
    assert doctor.check_owners(MMCV, dict(mmcv={'onedl-mmcv': '2.3.6'})) == []


@pytest.mark.parametrize(
    'headless, imaug, level, mend',
    [('4.12.0.88', True, 'hint', 'leave both'),
     ('4.12.0.88', False, 'warning', 'uninstall -y opencv-python '),
     ('4.11.0.86', True, 'problem', 'opencv-python-headless==4.12.0.88'),
     ('4.11.0.86', False, 'problem', 'uninstall -y opencv-python ')])
def test_opencv_twice(headless, imaug, level, mend):
    owners = dict(cv2={
        'opencv-python': '4.12.0.88',
        'opencv-python-headless': headless
    })
    if imaug:
        owners['imgaug'] = dict(imaug='0.4.3')
    finding, = doctor.check_owners(CV2, owners)
    assert finding.level == level
    assert mend in finding.mend


def test_versions():
    owners = {'onedl-mmcv': '2.3.6'}
    result = dict(version='2.3.6', path='/x/mmcv/__init__.py')
    finding = doctor.check_module(MMCV, result, owners, TORCH)
    assert finding == ('ok', 'mmcv 2.3.6 (onedl-mmcv 2.3.6), in '
                       '>=2.0.0,<2.4.0', '')
    for version in '1.7.2', '2.4.0', None:
        finding = doctor.check_module(MMCV, dict(version=version, path=''),
                                      {'mmcv-full': version or '1.0'}, TORCH)
        assert finding.level == 'problem'
        assert 'expected onedl-mmcv>=2.0.0,<2.4.0' in finding.found
        assert f'{doctor.PIP} uninstall -y mmcv-full\n' in finding.mend
    finding = doctor.check_module(MMCV, dict(result, version='2.1.0'), owners,
                                  TORCH)
    assert finding.level == 'warning' and result['path'] in finding.found


@pytest.mark.parametrize('result, owners, mend', [
    (failed("ModuleNotFoundError: No module named 'mmcv'",
            True), {}, 'install "onedl-mmcv>=2.0.0,<2.4.0"'),
    (failed("ModuleNotFoundError: No module named 'mmcv'", True), {
        'onedl-mmcv': '2.3.6'
    }, 'install --force-reinstall --no-deps "onedl-mmcv'),
    (failed("ModuleNotFoundError: No module named 'addict'"), {
        'onedl-mmcv': '2.3.6'
    }, 'install "onedl-mmcv'),
    (failed('Fatal Python error: Aborted'), {
        'onedl-mmcv': '2.3.6'
    }, 'install --force-reinstall --no-deps "onedl-mmcv'),
    (failed('ImportError: no name'), {
        'mmcv': '2.1.0'
    }, 'uninstall -y mmcv\n'),
])
def test_modules_that_do_not_import(result, owners, mend):
    finding = doctor.check_module(MMCV, result, owners, TORCH)
    assert finding.level == 'problem'
    assert f'{doctor.PIP} {mend}' in finding.mend
    assert ('is missing' in finding.found) == result['missing']


def test_torchvision_of_another_torch(folder):
    write(folder, torch='def tensor(*_): ...\nones = tensor', torchvision='')
    (folder / 'torchvision' / '__init__.py').write_text(
        'class ops:\n    @staticmethod\n    def nms(*_):\n        raise '
        "RuntimeError('operator torchvision::nms does not exist')")
    result = doctor.ask(['torchvision'], 10)['torchvision']
    need = Need('torchvision', 'torchvision')
    finding = doctor.check_module(need, result, {}, '2.7.1')
    assert finding.level == 'problem'
    assert 'nms does not exist; expected torchvision==0.22.1' in finding.found
    assert finding.mend.endswith('--no-deps torchvision==0.22.1')
    finding = doctor.check_module(need, result, {}, '2.6.0+cpu')
    assert finding.mend.endswith(
        'torchvision==0.21.0 --index-url https://download.pytorch.org/whl/cpu')


@pytest.mark.parametrize('result, nvidia, hidden, level, text', [
    (dict(gpus=['NVIDIA H100, 79 GiB'], build='CUDA 13.0',
          said=''), [], None, 'ok', 'NVIDIA H100, 79 GiB'),
    (dict(gpus=['MPS'], build='', said=''), [], None, 'ok', 'MPS'),
    (dict(gpus=[], build='CUDA 13.0', said=''), [], None, 'ok', 'CPU is used'),
    (dict(gpus=[], build='', said=''), ['Tesla T4'], None, 'warning',
     'Tesla T4; torch 2.12.1+cu130 is a build without CUDA'),
    (dict(gpus=[], build='CUDA 13.0',
          said=''), ['Tesla T4'], '', 'hint', 'CUDA_VISIBLE_DEVICES hides it'),
    (dict(gpus=[], build='CUDA 13.0',
          said=''), ['Tesla T4'], None, 'warning', 'does not find it'),
    (dict(gpus=[], build='CUDA 13.0', said='The NVIDIA driver is too old'), [],
     None, 'warning', 'says: The NVIDIA driver is too old'),
    (failed('no kernel image is available'), [], None, 'problem',
     'no kernel image'),
])
def test_gpus(result, nvidia, hidden, level, text, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    finding = doctor.check_gpu(result, TORCH, nvidia)
    assert finding.level == level
    assert text in finding.found
    assert bool(finding.mend) == (level != 'ok')


@pytest.mark.parametrize(
    'code, gpus', [('echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"\n'
                    'echo "GPU 1: Tesla T4 (UUID: GPU-2)"',
                    ['NVIDIA H100 80GB HBM3', 'Tesla T4']), ('exit 9', []),
                   ('exec sleep 20', [])])
def test_asks_the_driver(code, gpus, tmp_path, monkeypatch):
    (tmp_path / 'nvidia-smi').write_text(f'#!/bin/sh\n{code}\n')
    (tmp_path / 'nvidia-smi').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    assert doctor.find_nvidia_gpus(1) == gpus


def test_cache(tmp_path, monkeypatch):
    assert doctor.check_cache(str(tmp_path / 'a' / 'b')).level == 'ok'
    assert os.listdir(tmp_path) == []
    (tmp_path / 'file').touch()
    finding = doctor.check_cache(str(tmp_path / 'file' / 'hub'))
    assert finding.level == 'problem' and 'TORCH_HOME' in finding.mend
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda _: usage(2**29))
    finding = doctor.check_cache(str(tmp_path))
    assert finding.level == 'warning' and '0.5 GiB' in finding.found


def test_python(monkeypatch):
    assert doctor.check_python().level == 'ok'
    monkeypatch.setattr(doctor, 'PYTHON', ('3.8', '3.9'))
    finding = doctor.check_python()
    assert finding.level == 'problem' and '>=3.8,<3.9' in finding.found


def test_one_cause_is_one_problem(folder, monkeypatch, capsys):
    # Little but the broken module is loaded: it is quick.
    write(folder, torch="raise OSError('libtorch_cpu.so: no such file')")
    monkeypatch.setattr(doctor, 'OTHERS', ())
    monkeypatch.setattr(doctor, 'is_installed', lambda module: False)
    assert doctor.main(20) == 1
    output = capsys.readouterr().out
    assert 'problem  `import torch` fails: OSError: libtorch_cpu' in output
    assert 'problems: 1, ' in output, output
    assert 'not examined: ' in output
    for module in 'mmdet', 'gradio', 'onnxruntime':
        assert f'hint     {module} is missing' in output
