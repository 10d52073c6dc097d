# Copyright (c) dan_mm contributors. All rights reserved.
import json
import os
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config


@pytest.fixture
def repeat(monkeypatch):
    """Run the tool in this process, and its tools, too."""
    tool = runpy.run_path(f'{ROOT}/tools/analysis_tools/repeat_seeds.py')
    calls = []

    def run(name, *arguments):
        calls.append((name, arguments))
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
        runpy.run_path(f'{ROOT}/tools/{name}.py', run_name='__main__')

    def main(*arguments, run=run):
        calls.clear()
        tool['main'].__globals__['run'] = run
        monkeypatch.setattr(sys, 'argv',
                            ['repeat_seeds.py', *map(str, arguments)])
        tool['main']()
        return list(calls)

    return main


def small_config(root, path):
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    for phase in 'train', 'val', 'test':
        loader = cfg[f'{phase}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=root, indices=16)
    cfg.model.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.neck.in_channels = cfg.model.head.in_channels = 64
    cfg.train_cfg.max_epochs = 1
    cfg.dump(path)
    return path


@pytest.mark.slow
def test_repeat_seeds(repeat, ferplus_root, tmp_path, capsys):
    config = small_config(ferplus_root, tmp_path / 'small.py')
    work_dir = tmp_path / 'runs'

    def fails(name, *arguments):
        raise SystemExit('interrupted')

    options = '--launcher', 'none', '--cfg-options', 'x=1'
    runs = config, '--work-dir', work_dir, '--seeds'
    calls = repeat(*runs, 5, *options)
    assert [name for name, _ in calls] == ['train', 'test', 'test']
    assert ('--seed', '5') == calls[0][1][3:5]
    # What is done is not done again, before and after an interruption.
    with pytest.raises(SystemExit, match='interrupted'):
        repeat(*runs, 5, 6, *options, run=fails)
    calls = repeat(*runs, 5, 6, *options)
    assert [name for name, _ in calls] == ['train', 'test', 'test']
    assert '--launcher' in calls[0][1] and 'x=1' in calls[2][1]

    results = json.loads((work_dir / 'results.json').read_text())
    table = capsys.readouterr().out.rsplit('mean ± standard deviation', 1)[1]
    for epoch in 'last', 'best':
        for metric in 'accuracy/top1', 'accuracy/balanced':
            values = [results[seed][epoch][metric] for seed in '56']
            assert (f'{np.mean(values):.2f} ± '
                    f'{np.std(values, ddof=1):.2f}') in table
    assert results['5']['best']['checkpoint'].startswith('best_accuracy')
    assert repeat(*runs, 6, 5, *options) == []
    assert 'chosen by validation' in capsys.readouterr().out
    # Other options would be another experiment.
    for other in ((), ('--launcher', 'none', '--cfg-options', 'x=2')):
        with pytest.raises(SystemExit, match='runs with another .*--work-dir'):
            repeat(*runs, 6, 5, *other)
    # Killed before the last validation, it is not taken as finished.
    (work_dir / 'seed_6' / 'last.json').unlink()
    (work_dir / 'seed_6' / 'best.json').unlink()
    best, = (work_dir / 'seed_6').glob('best_*.pth')
    last = work_dir / 'seed_6' / 'epoch_1.pth'
    checkpoint = torch.load(last, weights_only=False)
    for key in 'validated_epoch', 'best_score', 'best_ckpt':
        del checkpoint['message_hub']['runtime_info'][key]
    torch.save(checkpoint, last)
    best.unlink()
    calls = repeat(*runs, 6, 5, *options)
    assert [name for name, _ in calls] == ['train', 'test', 'test']
    assert best.is_file()
    # A checkpoint that was trained anew is tested anew.
    os.utime(work_dir / 'seed_5' / 'epoch_1.pth', (1, 1))
    calls = repeat(*runs, 6, 5, *options)
    assert [name for name, _ in calls] == ['test']


def test_without_a_validation_set(repeat, tmp_path, capsys):
    config = f'{ROOT}/configs/dan_rafdb.py'
    for seed, accuracy in (0, 80.), (1, 82.):
        folder = tmp_path / f'seed_{seed}'
        folder.mkdir()
        last = folder / 'epoch_40.pth'
        (folder / 'last_checkpoint').write_text(str(last))
        last.write_bytes(b'weights')
        (folder / 'last.json').write_text(
            json.dumps({
                'accuracy/top1': accuracy,
                'accuracy/balanced': accuracy - 10,
                'checkpoint': last.name,
                'size': 7,
                'time': last.stat().st_mtime
            }))
    assert repeat(config, '--work-dir', tmp_path, '--seeds', 0, 1) == []
    output = capsys.readouterr().out
    assert '81.00 ± 1.41' in output and '71.00 ± 1.41' in output
    assert 'chosen by validation:' not in output
    assert 'no epoch is chosen by validation' in output
