# Copyright (c) dan_mm contributors. All rights reserved.
"""Missing data is reported before anything else."""
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


@pytest.mark.parametrize('command', ['train', 'test'])
@pytest.mark.parametrize('config', ['dan_rafdb', 'dlibresnet_ferplus'])
def test_missing_data_is_reported_first(command, config, tmp_path):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.pth')
    checkpoint = [str(tmp_path / 'a.pth')] if command == 'test' else []
    process = subprocess.run(
        [sys.executable, f'{ROOT}/tools/{command}.py',
         f'{ROOT}/configs/{config}.py', *checkpoint,
         '--work-dir', str(tmp_path / 'work')],
        cwd=tmp_path, capture_output=True, text=True)  # yapf: disable
    assert process.returncode
    output = process.stdout + process.stderr
    assert f'data/{config.split("_")[1]}' in output
    assert len(output.splitlines()) < 10
    assert not (tmp_path / 'work').exists()
