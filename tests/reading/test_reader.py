# Copyright (c) dan_mm contributors. All rights reserved.
"""Files are read in another process, which has limits."""
import os
import pathlib
import signal
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dan_mm.reading import MediaReader, reader


@pytest.fixture
def files(tmp_path):
    """Images of different sizes."""
    paths = [str(tmp_path / f'{i}.png') for i in range(1, 9)]
    for i, path in enumerate(paths, 1):
        Image.new('RGB', (i, 2 * i), (i, 0, 0)).save(path)
    return [(path, False) for path in paths]


def sizes(items):
    return [item.img.shape[1] for item in items]


@pytest.mark.parametrize('workers', [1, 3, 20])
def test_files_come_in_order(files, workers):
    items = list(MediaReader(workers).read(files))
    assert [item.path for item in items] == [path for path, _ in files]
    assert sizes(items) == list(range(1, 9))
    assert all((item.img[..., 2] == item.img.shape[1]).all() for item in items)
    assert list(MediaReader().read([])) == []


def test_processes_are_used_again(files, tmp_path):
    media = MediaReader(2)
    list(media.read(files))
    first = {process.process.pid for process in media._idle}
    assert media.read_size(files[3][0]) == (4, 8)
    list(media.read(files))
    assert {process.process.pid for process in media._idle} == first
    # What is left in the middle is not taken for another answer.
    assert sizes(islice(media.read(files), 2)) == [1, 2]
    assert sizes(media.read(files[4:])) == [5, 6, 7, 8]


def test_processes_end_with_the_reader(files):
    media = MediaReader()
    list(media.read(files))
    [process] = [one.process for one in media._idle]
    del media
    assert process.poll() is not None


def test_threads_share_a_reader(files):
    media, found = MediaReader(), {}

    def read(number):
        found[number] = sizes(media.read(files[number:] * 3))

    threads = [threading.Thread(target=read, args=[i]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: list(range(i + 1, 9)) * 3 for i in range(6)}


def test_a_process_that_is_killed_loses_one_file(files):
    media = MediaReader()
    items = []
    for item in media.read(files):
        items.append(item)
        if len(items) == 3:
            for folder in os.listdir('/proc'):
                if folder.isdecimal() and parent(folder) == os.getpid():
                    os.kill(int(folder), signal.SIGKILL)
    assert [item.path for item in items] == [path for path, _ in files]
    broken = [item for item in items if item.error]
    assert len(broken) <= 1 and all('memory' in one.error for one in broken)


def parent(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return int(file.read().rsplit(')', 1)[1].split()[1])
    except OSError:
        return None


def serve(code):
    """The command of a process in which something was changed."""
    return reader.COMMAND.replace(
        'from dan_mm.reading.reader import serve; serve()',
        f'from dan_mm.reading import reader; {code}; reader.serve()')


@pytest.mark.skipif(not hasattr(signal, 'alarm'), reason='needs POSIX')
def test_an_image_that_takes_too_long_loses_no_other(files, monkeypatch):
    slow = ('import time; read = reader.read_image; reader.MAX_SECONDS = 1; '
            'reader.read_image = lambda path: '
            'time.sleep(30 * path.endswith("3.png")) or read(path)')
    monkeypatch.setattr(reader, 'COMMAND', serve(slow))
    items = list(MediaReader().read(files))
    assert 'takes more than' in items.pop(2).error
    assert sizes(items) == [1, 2, 4, 5, 6, 7, 8]


@pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
def test_an_image_that_takes_too_much_memory_loses_no_other(
        files, monkeypatch):
    greedy = ('import numpy as np; read = reader.read_image; '
              'reader.read_image = lambda path: np.ones('
              '(10**9 * path.endswith("3.png"), 2), "u1").any() or read(path)')
    monkeypatch.setattr(reader, 'COMMAND', serve(greedy))
    items = list(MediaReader().read(files))
    assert 'takes too much memory' in items.pop(2).error
    assert sizes(items) == [1, 2, 4, 5, 6, 7, 8]


def test_a_process_that_is_killed_between_files_loses_none(files):
    media = MediaReader()
    list(media.read(files))
    [process] = media._idle
    process.process.kill()
    process.process.wait()
    assert sizes(media.read(files)) == list(range(1, 9))


def test_long_paths_fill_no_pipe(files):
    paths = [(letter * 120_000, False) for letter in 'xy\U0001f600']
    items = list(MediaReader().read([*paths, *files]))
    assert all(item.error for item in items[:3])
    assert sizes(items[3:]) == list(range(1, 9))


SIGNALS = '''
import signal, sys
signal.{change}
from dan_mm.reading import MediaReader, reader
reader.COMMAND = {command!r}
[item] = MediaReader().read([({path!r}, False)])
assert 'takes more than' in item.error, item.error
'''


@pytest.mark.skipif(not hasattr(signal, 'alarm'), reason='needs POSIX')
@pytest.mark.parametrize('change', [
    'signal(signal.SIGALRM, signal.SIG_IGN)',
    'pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])'
])
def test_time_is_bounded_where_the_alarm_is_ignored(files, change):
    """Processes inherit which signals are ignored or blocked."""
    command = serve('import time; reader.MAX_SECONDS = 1; '
                    'reader.read_image = lambda path: time.sleep(5)')
    code = SIGNALS.format(change=change, command=command, path=files[0][0])
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_other_paths_of_modules(files, monkeypatch):
    """Python skips those that are no text."""
    monkeypatch.setattr(sys, 'path', [pathlib.Path('/'), *sys.path])
    assert sizes(MediaReader().read(files)) == list(range(1, 9))


@pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
def test_an_image_leaves_its_memory_to_the_next_one(files, monkeypatch):
    """The C library keeps freed blocks below those that are in use."""
    keep = ('kept = []; read = reader.read_image; '
            'leave = lambda: kept.extend([small for _, small in ['
            '(bytearray(2**24), bytes(2**16)) for _ in range(20)]]); '
            'used = lambda: int(open("/proc/self/statm").read().split()[1]); '
            'reader.read_image = lambda path: (len(bytearray(31 * 2**20)), '
            'leave(), 1 // (used() < 50_000), read(path))[-1]')
    monkeypatch.setattr(reader, 'COMMAND', serve(keep))
    assert sizes(MediaReader().read(files)) == list(range(1, 9))


def test_a_decoder_that_crashes_loses_no_other(files, monkeypatch):
    crash = ('import os; read = reader.read_image; reader.read_image = '
             'lambda path: os.abort() if "3.png" in path else read(path)')
    monkeypatch.setattr(reader, 'COMMAND', serve(crash))
    items = list(MediaReader(2).read(files))
    assert 'crashes its decoder' in items.pop(2).error
    assert sizes(items) == [1, 2, 4, 5, 6, 7, 8]


def test_the_folder_that_a_user_is_in_is_not_imported(files, tmp_path,
                                                      monkeypatch):
    for name in 'numpy', 'PIL', 'json', 'av':
        (tmp_path / f'{name}.py').write_text(f'open("{name}-ran", "w")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert sizes(MediaReader().read(files)) == list(range(1, 9))
    assert not [name for name in os.listdir() if name.endswith('-ran')]


def test_a_large_image(tmp_path):
    """Larger than a pipe holds."""
    img = np.random.default_rng(0).integers(0, 255, (900, 700, 3), np.uint8)
    path = str(tmp_path / 'a.png')
    Image.fromarray(img).save(path)
    for item in MediaReader().read([(path, False)] * 3):
        assert np.array_equal(item.img, img[..., ::-1])


def test_content_in_memory(files, tmp_path):
    """It is decoded as a file is, and what is wrong is an error."""
    media = MediaReader()
    content = pathlib.Path(files[2][0]).read_bytes()
    [expected] = media.read(files[2:3])
    found = media.decode(content, 'name')
    assert (found.img == expected.img).all() and found.path == 'name'
    for broken in b'', content[:40], b'\n' * 1000:
        found = media.decode(broken, 'name')
        assert found.img is None and 'name cannot be decoded' in found.error
    assert media.decode(content, 'name').img.shape == (6, 3, 3)


def test_content_in_memory_of_a_process_that_is_killed(files, monkeypatch):
    media = MediaReader()
    content = pathlib.Path(files[2][0]).read_bytes()
    media.decode(content, 'name')
    [process] = media._idle
    # It ends between the look at it and the job.
    monkeypatch.setattr(process.process, 'poll', lambda: None)
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    assert 'name cannot be read' in media.decode(content, 'name').error
    assert media.decode(content, 'name').img.shape == (6, 3, 3)
