# Copyright (c) dan_mm contributors. All rights reserved.
"""Training that is killed, and goes on: nothing is lost, nothing differs."""
import errno
import os
import os.path as osp
import signal

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from processes import start, wait
from tiny_training import assert_same, config, load

import dan_mm
from dan_mm.engine import CheckpointFitHook
from dan_mm.engine.checkpoint_hook import AtomicLocalBackend
from dan_mm.errors import CheckpointLoadError


@pytest.fixture(autouse=True)
def one_thread():
    """Faster for small models, beside two workers."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def kill_at(moment, at):
    """Kill this process at a moment of a training."""
    put = AtomicLocalBackend.put

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def put_half(self, obj, filepath):
        if moment == 'write' and osp.basename(filepath).startswith(at):
            with open(f'{filepath}.partial', 'wb') as file:
                file.write(obj[:len(obj) // 2])
                file.flush()
                kill()
        put(self, obj, filepath)
        if moment == 'written' and osp.basename(filepath).startswith(at):
            kill()

    class Kill(Hook):

        def after_train_iter(self, runner, batch_idx, **kwargs):
            if moment == 'iter' and runner.iter == at:
                kill()

        def after_val_iter(self, runner, batch_idx, **kwargs):
            if moment == 'val' and runner.epoch == at:
                kill()

    AtomicLocalBackend.put = put_half
    return Kill()


def train(path, moment=None, at=None):
    """Train in a process of its own."""
    torch.set_num_threads(1)
    dan_mm.register_all_modules()
    cfg = Config.fromfile(path)
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    runner.register_hook(kill_at(moment, at), 'VERY_LOW')
    runner.train()


@pytest.mark.slow
def test_killed_training_ends_with_the_same_bits(ferplus_root, tmp_path):
    """Two workers that stay alive; killed in an epoch, in a validation, while
    a checkpoint or the note of the last one is written, and after it."""
    one, other = tmp_path / 'one', tmp_path / 'other'
    for work_dir in one, other:
        config(
            ferplus_root,
            work_dir,
            randomness=dict(seed=3),
            train_dataloader__num_workers=2,
            train_dataloader__persistent_workers=True,
            default_hooks__checkpoint__max_keep_ckpts=1).dump(
                tmp_path / f'{work_dir.name}.py')
    assert wait(start(train, tmp_path / 'one.py')) == 0
    rng = np.random.default_rng()
    moments = [
        ('write', 'epoch_1'),
        ('val', 1),
        ('iter', 3 + rng.integers(0, 3)),
        ('write', 'last_checkpoint'),
        ('written', 'epoch_3'),
    ]
    epochs = []
    for moment, at in moments:
        process = start(train, tmp_path / 'other.py', moment, at)
        assert wait(process) == -signal.SIGKILL
        last = find_latest_checkpoint(str(other))
        epochs.append(load(last)['meta']['epoch'] if last else 0)
    assert epochs == [0, 1, 1, 1, 2], moments
    process = start(train, tmp_path / 'other.py', log=tmp_path / 'log')
    assert wait(process) == 0
    assert 'resumed epoch: 2' in (tmp_path / 'log').read_text()
    assert sorted(
        file for file in os.listdir(other)
        if file.endswith(('.pth', '.partial'))) == sorted(
            file for file in os.listdir(one) if file.endswith('.pth'))
    assert_same(load(one / 'epoch_4.pth'), load(other / 'epoch_4.pth'))
    best, = one.glob('best_*.pth')
    for key, value in load(best)['state_dict'].items():
        assert torch.equal(value, load(other / best.name)['state_dict'][key])


class Record(Hook):
    """The images of each batch, after the augmentation."""

    def __init__(self, stop=None):
        self.batches = {}
        self.stop = stop

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        inputs = torch.stack(tuple(data_batch['inputs'])).double()
        self.batches[runner.epoch, batch_idx] = inputs.mean((1, 2, 3))

    def after_train_epoch(self, runner):
        if self.stop and runner.epoch + 1 == self.stop:
            runner.train_loop.stop_training = True


def record(cfg, stop=None):
    runner = Runner.from_cfg(cfg)
    hook = Record(stop)
    runner.register_hook(hook)
    runner.train()
    return hook.batches, runner


@pytest.mark.parametrize('workers', [0, 1])
def test_images_do_not_depend_on_workers(ferplus_root, tmp_path, workers):
    options = dict(randomness=dict(seed=1), train_cfg__max_epochs=2)
    two, runner = record(
        config(
            ferplus_root,
            tmp_path / '2',
            train_dataloader__num_workers=2,
            train_dataloader__persistent_workers=True,
            **options))
    cfg = config(
        ferplus_root,
        tmp_path / 'other',
        train_dataloader__num_workers=workers,
        **options)
    other, another = record(cfg)
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, another.model.state_dict()[key]), key
    assert two.keys() == other.keys() and len(two) == 6
    for key, value in two.items():
        assert torch.equal(value, other[key])
    # Each epoch has augmentations of its own.
    epochs = [
        torch.cat([two[epoch, i] for i in range(3)]).sort()[0]
        for epoch in range(2)
    ]
    assert not torch.allclose(*epochs)


def test_a_seed_that_was_drawn_is_resumed(ferplus_root, tmp_path):
    """Without a seed in the config, and with balanced sampling."""
    cfg = config(
        ferplus_root,
        tmp_path,
        train_cfg__max_epochs=2,
        train_dataloader__sampler=dict(_delete_=True, type='BalancedSampler'))
    first, runner = record(cfg)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    cfg.resume = True
    second, resumed = record(cfg)
    assert resumed.seed == runner.seed
    assert set(second) == {(1, i) for i in range(3)}
    for key, value in second.items():
        assert torch.equal(value, first[key])


@pytest.mark.parametrize('keep, kept', [(-1, range(1, 7)), (1, [6]),
                                        (2, [5, 6]), (5, range(2, 7))])
def test_checkpoints_that_are_kept(ferplus_root, tmp_path, keep, kept):
    cfg = config(
        ferplus_root,
        tmp_path,
        default_hooks__checkpoint__max_keep_ckpts=keep,
        default_hooks__checkpoint__save_best=None,
        train_cfg__max_epochs=6,
        train_dataloader__dataset__indices=8)
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.param_scheduler[0].total_steps = 6
    Runner.from_cfg(cfg).train()
    assert {path.name
            for path in tmp_path.glob('*.pth')
            } == {f'epoch_{epoch}.pth'
                  for epoch in kept}


def test_an_epoch_is_validated_once(ferplus_root, tmp_path):
    """Resumed from before its validation, and from after it."""
    cfg = config(ferplus_root, tmp_path / 'one', train_cfg__max_epochs=1)
    Runner.from_cfg(cfg).train()
    validated = tmp_path / 'one' / 'epoch_1.pth'
    checkpoint = load(validated)
    runtime = checkpoint['message_hub']['runtime_info']
    assert runtime['validated_epoch'] == 1 and runtime['best_score'] >= 0
    for key in 'validated_epoch', 'best_score', 'best_ckpt':
        del runtime[key]
    torch.save(checkpoint, tmp_path / 'not_validated.pth')

    class Count(Hook):
        number = 0

        def after_val_epoch(self, runner, metrics):
            self.number += 1

    for path, expected in (validated, 0), (tmp_path / 'not_validated.pth', 1):
        cfg.update(
            resume=True, load_from=str(path), work_dir=str(tmp_path / 'two'))
        runner = Runner.from_cfg(cfg)
        count = Count()
        runner.register_hook(count)
        runner.train()
        assert count.number == expected
    assert len(list((tmp_path / 'two').glob('best_*_epoch_1.pth'))) == 1
    # The folder that it was resumed from keeps its own.
    assert len(list((tmp_path / 'one').glob('best_*_epoch_1.pth'))) == 1


def test_weights_alone_are_not_resumed(ferplus_root, tmp_path):
    cfg = config(ferplus_root, tmp_path, train_cfg__max_epochs=1)
    Runner.from_cfg(cfg).train()
    best, = tmp_path.glob('best_*.pth')
    cfg.update(resume=True, load_from=str(best))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CheckpointFitHook())
    with pytest.raises(ValueError, match='no state of the optimizer.*epoch_'):
        runner.train()


def one_cycle(epochs):
    return [
        dict(
            type='OneCycleLR',
            eta_max=0.1,
            total_steps=epochs,
            by_epoch=True,
            convert_to_iter_based=True)
    ]


def cosine(epochs):
    return [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
        dict(type='CosineAnnealingLR', T_max=epochs, end=epochs)
    ]


def steps(epochs):
    return [
        dict(type='MultiStepLR', milestones=[1, epochs - 1]),
        dict(type='CosineAnnealingMomentum', T_max=epochs, end=epochs)
    ]


@pytest.mark.parametrize('schedule', [one_cycle, cosine, steps])
def test_a_longer_schedule_is_continued(ferplus_root, tmp_path, schedule):
    """With the rates that it would have had from the start."""

    class Rates(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            rates[runner.epoch, batch_idx] = {
                key: list(values)
                for get in (runner.optim_wrapper.get_lr,
                            runner.optim_wrapper.get_momentum)
                for key, values in get().items()
            }

    def train(epochs, resume=False, name='work', scheduler=None):
        rates.clear()
        cfg = config(
            ferplus_root,
            tmp_path / name,
            train_cfg__max_epochs=epochs,
            default_hooks__checkpoint__save_best=None,
            train_dataloader__dataset__indices=16)
        cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
        cfg.update(resume=resume, param_scheduler=scheduler)
        runner = Runner.from_cfg(cfg)
        runner.register_hook(CheckpointFitHook())
        runner.register_hook(Rates())
        runner.train()
        return dict(rates)

    rates = {}
    train(2, scheduler=schedule(2))
    resumed = train(4, resume=True, scheduler=schedule(4))
    whole = train(4, name='whole', scheduler=schedule(4))
    assert set(resumed) == {(2, 0), (2, 1), (3, 0), (3, 1)}
    for key, values in resumed.items():
        assert values == whole[key], key
    path = tmp_path / 'whole/epoch_4.pth'
    checkpoint = load(path)
    checkpoint['meta']['iter'] = 2**40
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointLoadError, match='cannot be continued'):
        train(6, resume=True, name='whole', scheduler=schedule(6))
    if schedule is one_cycle:
        with pytest.raises(CheckpointLoadError, match='total_steps.* is 2'):
            train(6, resume=True, scheduler=schedule(1))


def test_accumulated_gradients_are_warned_of(ferplus_root, tmp_path):
    for steps, warned in (2, True), (3, False):
        work_dir = tmp_path / str(steps)
        cfg = config(
            ferplus_root,
            work_dir,
            train_cfg__max_epochs=1,
            optim_wrapper__accumulative_counts=steps)
        Runner.from_cfg(cfg).train()
        [log] = [path.read_text() for path in work_dir.glob('*/*.log')]
        assert ('no multiple of accumulative_counts' in log) == warned


def test_loops_over_iterations_are_left_alone(ferplus_root, tmp_path):
    cfg = config(ferplus_root, tmp_path)
    cfg.train_cfg = dict(by_epoch=False, max_iters=4, val_interval=4)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.param_scheduler = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert not hasattr(runner.train_dataloader.dataset, '__getitems__')
    assert (tmp_path / 'iter_4.pth').is_file()


@pytest.mark.parametrize('wrapper', [
    dict(type='RepeatDataset', times=2),
    dict(type='ClassBalancedDataset', oversample_thr=1.)
])
def test_wrappers_of_data_sets(ferplus_root, tmp_path, wrapper):
    cfg = config(
        ferplus_root,
        tmp_path,
        train_cfg__max_epochs=1,
        train_dataloader__sampler=dict(_delete_=True, type='BalancedSampler'))
    cfg.train_dataloader.dataset = dict(
        wrapper, dataset=cfg.train_dataloader.dataset)
    _, runner = record(cfg)
    assert runner.iter == -(-len(runner.train_dataloader.dataset) // 8) > 3


def test_other_classes_are_not_validated_on(ferplus_root, tmp_path):
    names = ('happiness', 'neutral', 'surprise', 'sadness', 'anger', 'disgust',
             'fear', 'contempt')
    cfg = config(
        ferplus_root, tmp_path, val_dataloader__dataset__target_classes=names)
    with pytest.raises(
            ValueError, match='validation set has .*happiness.*'
            'target_classes'):
        Runner.from_cfg(cfg).train()


def test_a_full_disk_leaves_the_checkpoints(ferplus_root, tmp_path,
                                            monkeypatch):
    """The best one, too, though a better one was to replace it."""
    put = AtomicLocalBackend.put
    cfg = config(
        ferplus_root,
        tmp_path,
        default_hooks__checkpoint__max_keep_ckpts=1,
        train_cfg__max_epochs=2)
    cfg.resume = True
    state = dict(epoch=0)

    class Better(Hook):
        """Each epoch is better than the last."""
        priority = 'HIGH'

        def after_val_epoch(self, runner, metrics):
            metrics['accuracy/top1'] = state['epoch'] = runner.epoch

    def train(full):
        state.update(full=full, epoch=0)
        runner = Runner.from_cfg(cfg)
        runner.register_hook(Better(), 'HIGH')
        runner.train()

    def put_on_full_disk(self, obj, filepath):
        if state['full'] in osp.basename(filepath):
            # What the kernel says where there is no space.
            real = os.fsync

            def fsync(number):
                raise OSError(errno.ENOSPC, 'No space left on device')

            monkeypatch.setattr(os, 'fsync', fsync)
            try:
                put(self, obj, filepath)
            finally:
                monkeypatch.setattr(os, 'fsync', real)
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', put_on_full_disk)
    checkpoints = {}
    for full in 'epoch_2.pth', 'top1_epoch_2.pth', 'last_checkpoint':
        if full == 'last_checkpoint':
            for path in tmp_path.glob('*.pth'):
                path.unlink()
            (tmp_path / 'last_checkpoint').unlink()
        with pytest.raises(OSError, match='No space left.*--resume'):
            train(full)
        checkpoints[full] = sorted(
            path.name for path in tmp_path.glob('*.p*')
            if path.suffix in ('.pth', '.partial'))
    best = 'best_accuracy_top1_epoch_1.pth'
    assert checkpoints == {
        'epoch_2.pth': [best, 'epoch_1.pth'],
        'top1_epoch_2.pth': [best, 'epoch_2.pth'],
        'last_checkpoint': ['epoch_1.pth']
    }
    train('never')
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        best.replace('1.pth', '2.pth'), 'epoch_2.pth'
    ]


def test_writing_is_all_or_nothing(tmp_path):
    backend = AtomicLocalBackend()
    path = tmp_path / 'folder' / 'file'
    backend.put_text('é', str(path))
    assert path.read_bytes() == 'é'.encode()
    path.with_name('file.partial').mkdir()
    with pytest.raises(OSError, match='was not written'):
        backend.put(b'x', str(path))
    assert path.read_bytes() == 'é'.encode()
