# Copyright (c) dan_mm contributors. All rights reserved.
"""`make demo` and the tools that it uses, on a few drawn faces."""
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial

import cv2
import pytest
from conftest import ROOT
from mmengine.registry import DefaultScope


def run(folder, *command, **env):
    process = subprocess.run([sys.executable, *map(str, command)],
                             cwd=folder,
                             env=dict(os.environ, PYTHONPATH=ROOT, **env),
                             text=True,
                             stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    return process.returncode, process.stdout


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """A copy of the configs and tools, with few images, after a run of the
    demo; and what it printed."""
    folder = tmp_path_factory.mktemp('demo')
    for name in 'configs', 'tools':
        shutil.copytree(f'{ROOT}/{name}', folder / name)
    path = folder / 'configs/_base_/datasets/synthface.py'
    text, count = re.subn(r'num_identities=\d+', 'num_identities=2',
                          path.read_text())
    assert count == 3
    text = text.replace('batch_size=32', 'batch_size=8')
    # PyTorch takes 5 s to end each worker.
    path.write_text(re.sub(r'num_workers=\d+', 'num_workers=0', text))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), \
            pytest.MonkeyPatch.context() as patch, \
            DefaultScope.overwrite_default_scope('mmpretrain'):
        again(folder, patch, partial(call, patch))
    return folder, output.getvalue()


def call(patch, tool, *arguments):
    """Run a tool in this process."""
    patch.setattr(sys, 'argv', [tool, *arguments])
    runpy.run_path(tool, run_name='__main__')


@pytest.mark.slow
def test_demo(demo):
    folder, output = demo
    out = folder / 'work_dirs/demo'
    # One line says where everything is.
    assert output.strip().splitlines()[-1].endswith(f'are in {out}')
    results = json.loads((out / 'results.json').read_text())
    for method in 'resnet18', 'dan':
        accuracy = results[method]['accuracy/top1']
        assert re.search(fr'(ResNet|DAN).* {accuracy:.1f} %', output)
        matrix = results[method]['confusion_matrix']
        assert sum(map(sum, matrix)) == 16
        assert 100 / 16 * sum(matrix[i][i] for i in range(8)) == accuracy
        figure = cv2.imread(str(out / f'confusion_matrix_{method}.png'))
        assert figure.shape[0] > 400 and figure.std() > 10
    sheet = cv2.imread(str(out / 'attention_maps.png'))
    assert sheet.shape[0] > 8 * 112 and sheet.shape[1] > 5 * 112


def again(folder, monkeypatch, start):
    """Run the demo in this process, with ``start`` to start its tools."""
    tool = runpy.run_path(str(folder / 'tools/demo/train_synthface.py'))
    monkeypatch.setitem(tool['main'].__globals__, 'run', start)
    monkeypatch.setattr(sys, 'argv', ['train_synthface.py'])
    monkeypatch.chdir(folder)
    tool['main']()


@pytest.mark.slow
def test_demo_again_trains_nothing(demo, monkeypatch, capsys):
    folder, output = demo
    results = (folder / 'work_dirs/demo/results.json').read_text()
    trainings, others = [], []

    def start(tool, *arguments):
        if tool != 'tools/train.py':
            return others.append(tool)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            call(monkeypatch, tool, *arguments)
        trainings.append(output.getvalue())

    again(folder, monkeypatch, start)
    assert 'resumed epoch: 3' in trainings[0]
    assert 'resumed epoch: 2' in trainings[1]
    assert not any('Epoch(train)' in output for output in trainings)
    assert others == ['tools/visualization/attention_maps.py']
    assert (folder / 'work_dirs/demo/results.json').read_text() == results
    shown = capsys.readouterr().out.partition('Accuracy on synthetic faces')
    assert shown[1] and output.strip().endswith(shown[2].strip())


@pytest.mark.slow
def test_covered_parts(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo[0])
    with open('work_dirs/demo/results.json') as file:
        results = json.load(file)
    monkeypatch.setattr(sys, 'argv', [
        'covered_parts.py', 'configs/dan_synthface.py',
        'work_dirs/dan_synthface/epoch_2.pth'
    ])
    runpy.run_path(
        'tools/analysis_tools/covered_parts.py', run_name='__main__')
    output = capsys.readouterr().out
    accuracy = results['dan']['accuracy/top1']
    assert re.search(fr'nothing +{accuracy:.1f} +\+0.0', output)
    assert re.search(r'brows, mouth +[0-9.]+ +[-+][0-9.]+', output)


@pytest.mark.slow
@pytest.mark.parametrize('tool, config, message', [
    ('visualization/attention_maps', 'resnet18_synthface',
     'has the neck GlobalAveragePooling, expected MAN'),
    ('analysis_tools/covered_parts', 'dan_ferplus',
     'tests on FERPlus, expected SynthFace'),
])
def test_refusals(demo, tool, config, message, monkeypatch):
    monkeypatch.chdir(demo[0])
    monkeypatch.setattr(sys, 'argv', [
        tool, f'configs/{config}.py',
        'work_dirs/resnet18_synthface/epoch_3.pth'
    ])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(f'tools/{tool}.py', run_name='__main__')


@pytest.mark.slow
def test_another_training_is_not_shown_as_the_demo(demo, monkeypatch):
    folder, _ = demo
    latest = folder / 'work_dirs/resnet18_synthface/last_checkpoint'
    before = latest.read_text()
    path = before.replace('epoch_3', 'epoch_4')
    shutil.copy(before, path)
    latest.write_text(path)
    try:
        with pytest.raises(SystemExit, match='expected epoch_3.pth'):
            again(folder, monkeypatch, start=lambda *command: None)
    finally:
        latest.write_text(before)
        os.remove(path)


def test_another_python_is_refused_with_a_sentence(tmp_path):
    shutil.copy(f'{ROOT}/Makefile', tmp_path)
    (tmp_path / 'setup.py').touch()
    (tmp_path / 'dan_mm').mkdir()
    shutil.copy(f'{ROOT}/dan_mm/version.py', tmp_path / 'dan_mm')
    python = tmp_path / 'python3.9'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c '
                      "'import sys; sys.version_info = (3, 9, 1); "
                      'exec(sys.argv[1])\' "$2"\n')
    python.chmod(0o755)
    process = subprocess.run(['make', 'demo', f'PYTHON={python}'],
                             cwd=tmp_path,
                             capture_output=True,
                             text=True)
    assert process.returncode != 0
    assert 'Found Python 3.9, expected >=3.10,<3.13. Install one and ' \
        'run: make clean, make PYTHON=python3.12 demo' in process.stderr
    assert not (tmp_path / '.venv').exists()


def test_the_portrait(tmp_path, detector_weights, astronaut, monkeypatch,
                      capfd):
    """With the detector, and by known landmarks where it can't be
    downloaded."""
    script = f'{ROOT}/tools/demo/predict_astronaut.py'
    answer = fr'of scikit-image, {astronaut}:\n  happiness \d+%, .*\n$'
    call(monkeypatch, script)
    output, _ = capfd.readouterr()
    assert re.search(answer, output), output
    assert 'is not here' not in output
    proxy = 'http://127.0.0.1:9'
    code, output = run(
        tmp_path,
        script,
        TORCH_HOME=str(tmp_path),
        http_proxy=proxy,
        https_proxy=proxy,
        no_proxy='',
        PIP_NO_INDEX='1')
    assert code == 0 and re.search(answer, output), output
    assert 'The face detector is not here: Could not download' in output
