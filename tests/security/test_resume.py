# Copyright (c) dan_mm contributors. All rights reserved.
"""Work folders that were moved, damaged, cannot be written to, are in use, or
come from a stranger."""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from tiny_training import assert_same, config, load

from dan_mm.cli import train as cli
from dan_mm.engine import EpochSeedHook
from dan_mm.engine.work_folder import (check_writable, find_resumable,
                                       use_work_folder)
from dan_mm.errors import CheckpointLoadError


@pytest.fixture(scope='module')
def one_thread():
    """Sums over threads depend on their number."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope='module')
def trained(one_thread, ferplus_root, tmp_path_factory):
    """A config file, the work folder of 2 of 4 epochs, and that of all."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = config(
        ferplus_root,
        '.',
        randomness=dict(seed=3),
        default_hooks__checkpoint__max_keep_ckpts=2)
    for phase in 'train', 'val':
        cfg[f'{phase}_dataloader'].dataset.indices = 16
    cfg.dump(folder / 'tiny.py')
    before_epoch = EpochSeedHook.before_train_epoch

    def interrupt(self, runner):
        if runner.epoch == 2 and runner.work_dir.endswith('half'):
            raise KeyboardInterrupt
        before_epoch(self, runner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochSeedHook, 'before_train_epoch', interrupt)
        for name in 'half', 'whole':
            with contextlib.suppress(KeyboardInterrupt):
                cli.main([
                    str(folder / 'tiny.py'), '--work-dir',
                    str(folder / name)
                ])
    return folder / 'tiny.py', folder / 'half', folder / 'whole'


def resume(trained, work_dir):
    cli.main([str(trained[0]), '--work-dir', str(work_dir), '--resume'])


def files(folder):
    return sorted(path.name for path in folder.glob('*.p[ta]*'))


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def flip(path):
    """A bit of the weights, which PyTorch loads without a word."""
    with zipfile.ZipFile(path) as archive:
        item = max(archive.infolist(), key=lambda item: item.file_size)
    content = bytearray(path.read_bytes())
    content[item.header_offset + 4096] ^= 1
    path.write_bytes(content)
    assert load(path)


DAMAGE = dict(
    cut=cut,
    flipped=flip,
    empty=lambda path: path.write_bytes(b''),
    missing=lambda path: path.unlink(),
    text=lambda path: path.write_text('x'),
    folder=lambda path: (path.unlink(), path.mkdir()),
    weights_only=lambda path: torch.save(
        {'state_dict': load(path)['state_dict']}, path))


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_the_newest_whole_checkpoint(trained, tmp_path, capsys, damage):
    """It goes on from there as if nothing had happened, and says so."""
    work_dir = tmp_path / 'moved'
    shutil.copytree(trained[1], work_dir)
    damage(work_dir / 'epoch_2.pth')
    path, broken = find_resumable(str(work_dir))
    assert path == str(work_dir / 'epoch_1.pth')
    assert list(broken) == ['epoch_2.pth']
    if damage is DAMAGE['folder']:
        # Nothing but a file is written over.
        (work_dir / 'epoch_2.pth').rmdir()
    resume(trained, work_dir)
    output = capsys.readouterr()
    output = output.out + output.err
    assert 'Resumes from' in output and 'epoch_1.pth, the newest' in output
    assert damage is DAMAGE['folder'] or 'not resume from epoch_2' in output
    assert files(work_dir) == files(trained[2])
    assert_same(
        load(work_dir / 'epoch_4.pth'), load(trained[2] / 'epoch_4.pth'))


def test_a_work_folder_that_was_moved(trained, tmp_path, capsys):
    """Its best checkpoint is replaced where it is now."""
    work_dir = tmp_path / 'moved'
    shutil.copytree(trained[1], work_dir)
    before = set(os.listdir(trained[1]))
    resume(trained, work_dir)
    output = capsys.readouterr()
    assert f'{work_dir}/epoch_2.pth, the newest' in output.out + output.err
    assert files(work_dir) == files(trained[2])
    assert set(os.listdir(trained[1])) == before
    for name in files(trained[2]):
        one, other = load(trained[2] / name), load(work_dir / name)
        for key, value in one['state_dict'].items():
            assert torch.equal(value, other['state_dict'][key]), (name, key)


@pytest.mark.parametrize('note, expected', [
    (None, 2),
    ('', 2),
    ('/elsewhere/epoch_1.pth', 1),
    ('epoch_9.pth', 2),
    ('../../etc/passwd', 2),
    ('\0' * 10**5, 2),
])
def test_what_last_checkpoint_says(trained, tmp_path, note, expected):
    """Only which of the files in the folder is the last."""
    for name in 'epoch_1.pth', 'epoch_2.pth':
        shutil.copy(trained[1] / name, tmp_path)
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    path, _ = find_resumable(str(tmp_path))
    assert path == str(tmp_path / f'epoch_{expected}.pth')


def test_links_are_not_resumed_from(trained, tmp_path):
    shutil.copy(trained[1] / 'epoch_1.pth', tmp_path)
    (tmp_path / 'epoch_2.pth').symlink_to(trained[1] / 'epoch_2.pth')
    os.mkfifo(tmp_path / 'epoch_3.pth')
    path, _ = find_resumable(str(tmp_path))
    assert path == str(tmp_path / 'epoch_1.pth')


def test_no_complete_checkpoint(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / 'work')
    for path in (tmp_path / 'work').glob('epoch_*.pth'):
        cut(path)
    with pytest.raises(CheckpointLoadError, match='epoch_2.pth: .*epoch_1'):
        find_resumable(str(tmp_path / 'work'))
    with pytest.raises(SystemExit, match='no complete checkpoint .*expected'):
        resume(trained, tmp_path / 'work')
    assert find_resumable(str(tmp_path / 'nothing')) == (None, {})


@pytest.fixture
def read_only(trained, tmp_path):
    """A work folder that nobody can write to, root included."""
    work_dir = tmp_path / 'work'
    shutil.copytree(trained[1], work_dir)
    if os.geteuid():
        work_dir.chmod(0o555)
    else:
        chattr = shutil.which('chattr') or pytest.skip('root needs chattr')
        if subprocess.run([chattr, '+i', work_dir]).returncode:
            pytest.skip('needs a file system with immutable folders')
    yield work_dir
    if os.geteuid():
        work_dir.chmod(0o755)
    else:
        subprocess.run(['chattr', '-i', work_dir], check=True)


def test_a_read_only_work_folder(trained, read_only):
    with pytest.raises(SystemExit, match='work folder .*cannot be written'):
        resume(trained, read_only)


@pytest.mark.parametrize('folder', ['file', 'file/work', 'dangling'])
def test_a_work_folder_that_is_none(trained, tmp_path, folder):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'dangling').symlink_to('/proc/nowhere')
    with pytest.raises(SystemExit, match='cannot be written to .*--work-dir'):
        check_writable(str(tmp_path / folder))


HOLD = '''
import os, sys, time
from dan_mm.engine.work_folder import use_work_folder
with use_work_folder(sys.argv[1], 'x.py'):
    if not os.fork():  # as the workers of data loaders
        time.sleep(60)
        os._exit(0)
    print('ready', flush=True)
    time.sleep(60)
'''


def test_a_work_folder_in_use(trained, tmp_path):
    """It is refused, and free when the other process is dead, whatever killed
    it, though its workers live on."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True)
    try:
        while process.stdout.readline() != b'ready\n':
            assert process.poll() is None
        before = set(os.listdir(tmp_path))
        with pytest.raises(SystemExit, match='Another training .*--work-dir'):
            resume(trained, tmp_path)
        assert set(os.listdir(tmp_path)) == before
        # Only the first process of a launch asks.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('RANK', '1')
            with use_work_folder(str(tmp_path), 'x.py'):
                pass
        process.kill()
        process.wait()
        with use_work_folder(str(tmp_path), 'x.py'):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_links_in_a_work_folder(trained, tmp_path):
    """Of a stranger: nothing is written to where they lead."""
    work_dir = tmp_path / 'work'
    shutil.copytree(trained[1], work_dir)
    victims = []
    for name in 'tiny.py', 'last_checkpoint', 'epoch_3.pth', 'epoch_4.pth':
        for ending in '', '.partial':
            victim = tmp_path / f'victim{len(victims)}'
            victim.write_text('x')
            victims.append(victim)
            path = work_dir / f'{name}{ending}'
            path.unlink(missing_ok=True)
            if name == 'epoch_4.pth':
                path.hardlink_to(victim)
            else:
                path.symlink_to(victim)
    resume(trained, work_dir)
    assert all(victim.read_text() == 'x' for victim in victims)
    assert_same(
        load(work_dir / 'epoch_4.pth'), load(trained[2] / 'epoch_4.pth'))
    (work_dir / '.lock').unlink()
    (work_dir / '.lock').symlink_to(victims[0])
    with pytest.raises(SystemExit, match='.lock cannot be opened'):
        resume(trained, work_dir)
