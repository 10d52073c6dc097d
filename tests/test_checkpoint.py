# Copyright (c) dan_mm contributors. All rights reserved.
import functools
import http.server
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, load_checkpoint

from dan_mm.errors import CheckpointLoadError


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


class ReadAttribute:
    """Reads an attribute of something harmless when it is unpickled."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


def weights():
    return torch.nn.Linear(2, 2).state_dict()


@pytest.fixture
def malicious(tmp_path):
    path = tmp_path / 'malicious.pth'
    torch.save(dict(state_dict=weights(), meta=Attack(tmp_path / 'ran')), path)
    return path


def test_a_malicious_checkpoint_does_not_run(malicious, tmp_path):
    for load in (CheckpointLoader.load_checkpoint,
                 functools.partial(load_checkpoint, torch.nn.Linear(2, 2))):
        with pytest.raises(CheckpointLoadError, match='code posix.mkdir|nt.m'):
            load(str(malicious))
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_a_plain_pickle_does_not_run(tmp_path, protocol):
    path = tmp_path / 'malicious.pkl'
    path.write_bytes(pickle.dumps(Attack(tmp_path / 'ran'), protocol))
    with pytest.raises(CheckpointLoadError, match='weights and plain data'):
        CheckpointLoader.load_checkpoint(str(path))
    assert not (tmp_path / 'ran').exists()


def test_pretrained_does_not_run_it(malicious, tmp_path):
    module = BaseModule(
        init_cfg=dict(type='Pretrained', checkpoint=str(malicious)))
    with pytest.raises(CheckpointLoadError):
        module.init_weights()
    assert not (tmp_path / 'ran').exists()


def test_a_download_does_not_run_it(malicious, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(dict(state_dict=weights()), tmp_path / 'good.pth')
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.HTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    try:
        assert 'state_dict' in CheckpointLoader.load_checkpoint(
            f'{url}/good.pth')
        with pytest.raises(CheckpointLoadError):
            CheckpointLoader.load_checkpoint(f'{url}/malicious.pth')
    finally:
        server.shutdown()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('arguments', [(sys, 'modules'),
                                       (HistoryBuffer, '__init__'),
                                       (HistoryBuffer, 'register_statistics')])
def test_attributes_are_no_way_out(tmp_path, arguments):
    if arguments[0] is sys:
        arguments = (np.ndarray, '__class__')
    path = str(tmp_path / 'attribute.pth')
    torch.save(dict(x=ReadAttribute(*arguments)), path)
    with pytest.raises(CheckpointLoadError):
        CheckpointLoader.load_checkpoint(path)


def test_what_mmengine_saves_loads(tmp_path):
    buffer = HistoryBuffer([1., 2.5], [1, 1])
    checkpoint = dict(
        state_dict=weights(),
        meta=dict(
            epoch=3, seed=np.int64(4),
            dataset_meta=dict(classes=('a', ))),  # yapf: disable
        message_hub=dict(
            log_scalars={'train/loss': buffer},
            runtime_info=dict(iter=np.float64(3), step=np.arange(3))))
    path = str(tmp_path / 'ours.pth')
    torch.save(checkpoint, path)
    loaded = CheckpointLoader.load_checkpoint(path)
    hub = loaded['message_hub']
    assert hub['log_scalars']['train/loss'].mean() == 1.75
    assert hub['log_scalars']['train/loss'].data[0].tolist() == [1, 2.5]
    # The rest could name files.
    assert hub['runtime_info'] == dict(iter=3)
    assert loaded['meta'] == checkpoint['meta']


@pytest.mark.parametrize('options', [
    dict(type='OneCycleLR', eta_max=1, total_steps=5),
    dict(
        type='OneCycleLR',
        eta_max=1,
        total_steps=5,
        anneal_strategy='linear'),
    dict(type='CosineAnnealingLR', T_max=5),
    dict(type='CosineAnnealingMomentum', T_max=5),
    dict(type='MultiStepLR', milestones=[2]),
    dict(type='PolyLR', begin=0, end=5),
    dict(type='LinearLR'),
    dict(type='ReduceOnPlateauLR'),
], ids=lambda options: options['type'])  # yapf: disable
def test_schedulers_load(tmp_path, options):
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    scheduler = PARAM_SCHEDULERS.build(
        options, default_args=dict(optimizer=optimizer))
    path = str(tmp_path / 'scheduler.pth')
    torch.save(
        dict(state_dict=weights(), param_schedulers=[scheduler.state_dict()]),
        path)
    state, = CheckpointLoader.load_checkpoint(path)['param_schedulers']
    scheduler.load_state_dict(state)
    assert state == scheduler.state_dict()


def test_the_config_in_a_checkpoint_is_dropped(tmp_path):
    path = str(tmp_path / 'config.pth')
    code = '__import__("os").mkdir("x")'
    torch.save(
        dict(
            state_dict=weights(),
            meta=dict(cfg=code, config=code, epoch=1),
            message_hub=dict(
                log_scalars={}, runtime_info=dict(cfg=code, epoch=1))), path)
    loaded = CheckpointLoader.load_checkpoint(path)
    assert loaded['meta'] == loaded['message_hub']['runtime_info'] == dict(
        epoch=1)


def test_broken_and_missing_files_are_named(tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointLoadError, match='cut.pth cannot be loaded'):
        CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(b'')
    with pytest.raises(CheckpointLoadError, match='cut.pth cannot be loaded'):
        CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(FileNotFoundError, match='nowhere.pth. Check the path'):
        CheckpointLoader.load_checkpoint('nowhere.pth')
    with pytest.raises(FileNotFoundError, match='epoch_5.pth.*Check the path'):
        CheckpointLoader.load_checkpoint('mine/dan_ferplus/epoch_5.pth')


def test_loaders_for_all_schemes():
    for scheme, loader in CheckpointLoader._schemes.items():
        assert loader.__module__ == 'dan_mm.checkpoint', scheme


@pytest.mark.parametrize('scheme', [
    'torchvision', 'modelzoo', 'openmmlab', 'open-mmlab', 'mmcls', 'pavi',
    's3', 'x:petrel'
])
def test_names_that_are_unknown(scheme):
    with pytest.raises(CheckpointLoadError, match='nothing.*Check|Download'):
        CheckpointLoader.load_checkpoint(f'{scheme}://nothing_of_that_name')


def test_what_others_allow_stays(malicious):
    """Loading neither extends nor reduces the process's list of safe
    globals, which is not used."""
    with torch.serialization.safe_globals([os.mkdir, HistoryBuffer]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(CheckpointLoadError, match='code'):
            CheckpointLoader.load_checkpoint(str(malicious))
        assert set(torch.serialization.get_safe_globals()) == before


def test_threads_load_at_once(tmp_path):
    path = str(tmp_path / 'ours.pth')
    torch.save(
        dict(
            state_dict=weights(),
            message_hub=dict(
                log_scalars=dict(loss=HistoryBuffer([1.], [1])),
                runtime_info=dict(iter=np.float64(3)))), path)
    with ThreadPoolExecutor(8) as pool:
        for loaded in pool.map(CheckpointLoader.load_checkpoint, [path] * 64):
            assert loaded['message_hub']['runtime_info'] == dict(iter=3)
