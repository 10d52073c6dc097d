# Copyright (c) dan_mm contributors. All rights reserved.
"""Missing data is reported before anything else."""
import pytest
import torch

from dan_mm import cli


@pytest.mark.parametrize('command', ['train', 'test'])
@pytest.mark.parametrize('config', ['dan_rafdb', 'dlibresnet_ferplus'])
def test_missing_data_is_reported_first(command, config, tmp_path, capfd):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.pth')
    checkpoint = [str(tmp_path / 'a.pth')] if command == 'test' else []
    with pytest.raises(SystemExit) as error:
        cli.main([command, config, *checkpoint, '--work-dir',
                  str(tmp_path / 'work')])  # yapf: disable
    output = ''.join(capfd.readouterr()) + str(error.value)
    assert f'data/{config.split("_")[1]}' in output
    assert len(output.splitlines()) < 10
    assert not (tmp_path / 'work').exists()
