# Copyright (c) dan_mm contributors. All rights reserved.
"""Attacks on the page of `dan-mm web`: a process that listens at 127.0.0.1,
and raw HTTP requests."""
import contextlib
import http.client
import json
import os
import os.path as osp
import re
import signal
import socket
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_face
from processes import start

from dan_mm import apis, cli
from dan_mm.apis.media import read
from dan_mm.reading import MediaReader

pytest.importorskip('gradio', reason="needs gradio: pip install -e '.[web]'")

META = dict(_type='gradio.FileData')
# What is answered at once takes no longer on a machine that is busy, s
SOON = 20


def image_bytes(seed=0, size=96):
    return cv2.imencode('.png', draw_face(seed, size))[1].tobytes()


def sleepy_image():
    """An image for which the model takes a minute."""
    return cv2.imencode('.png', np.zeros((10, 10), np.uint8))[1].tobytes()


class Model:
    """A model that is none: it sees a face in every image. It takes a minute
    for one of 10x10 pixels, and half a second for each frame of a video of
    32x32."""
    about = 'Trained on nothing.'
    synthetic = False

    def __init__(self, *args, **kwargs):
        """Takes anything."""

    def __call__(self, img, **kwargs):
        height, width = img.shape[:2]
        if (height, width) == (10, 10):
            time.sleep(60)
        face = apis.FaceResult(
            dict(anger=0.1, happiness=0.9),
            bbox=np.float32([0, 0, width, height]),
            crop=img)
        return [apis.ImageResult(faces=[face])]

    def stream_images(self, path, smoothing):
        for image in read([path], MediaReader()):
            if image.img is None:
                yield image, apis.ImageResult(error=image.error)
                continue
            if image.img.shape[:2] == (32, 32):
                time.sleep(0.5)
            [result] = self(image.img)
            result.faces[0].track = 0
            result.frame, result.time = image.frame, image.time
            yield image, result


def serve(options):
    apis.FERInferencer = Model
    return cli.main(['web', 'model', *options])


class Server:
    """The page, in a process of its own."""

    def __init__(self, folder, *options):
        self.address = '::1' if '::1' in options else '127.0.0.1'
        self.temp = folder / 'temp'
        self.temp.mkdir()
        log = folder / 'log'
        log.touch()
        self.process = start(serve, options, log=log, TMPDIR=str(self.temp))
        until = time.monotonic() + 120
        while not (url := re.search(r'http://\S+:(\d+)/', log.read_text())):
            assert self.process.is_alive(), log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.port = int(url[1])
        config = json.loads(self.request('GET', '/config')[1])
        ids = {
            part['props'].get('elem_id'): part['id']
            for part in config['components']
        }
        self.events = {
            name: fn['id']
            for fn in config['dependencies']
            for name, event in (('upload', 'input'), ('upload-video',
                                                      'upload'))
            if [ids.get(name), event] in fn['targets']
        }

    def request(self, method, path, body=None, headers=None):
        """Ask, and get the status and the body."""
        connection = http.client.HTTPConnection(
            self.address, self.port, timeout=SOON)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()

    def upload(self, content, name='face.png', **headers):
        """Upload a file, and get the status and the path on the server."""
        body = (b'--x\r\nContent-Disposition: form-data; name="files"; '
                b'filename="%b"\r\n\r\n%b\r\n--x--\r\n' %
                (name.encode(), content))
        headers['Content-Type'] = 'multipart/form-data; boundary=x'
        status, answer = self.request('POST', '/gradio_api/upload', body,
                                      headers)
        return status, json.loads(answer)[0] if status == 200 else None

    def join(self, data, session, event='upload', **body):
        """Start an event, and get the status."""
        body = dict(
            fn_index=self.events[event],
            data=data,
            session_hash=session,
            **body)
        return self.request('POST', '/gradio_api/queue/join', json.dumps(body),
                            {'Content-Type': 'application/json'})[0]

    def result(self, session):
        """Get the last message of the event of a session."""
        connection = http.client.HTTPConnection(
            self.address, self.port, timeout=SOON)
        until = time.monotonic() + 2 * SOON
        with contextlib.closing(connection):
            connection.request(
                'GET', f'/gradio_api/queue/data?session_hash={session}')
            # There are others meanwhile, such as heartbeats.
            for line in connection.getresponse():
                assert time.monotonic() < until, 'the page does not answer'
                if b'"process_completed"' in line:
                    return json.loads(line.removeprefix(b'data: '))
        raise ConnectionError('the page has ended')

    def ask(self, file, session, event='upload'):
        """Show the page a file.

        Returns:
            str | None: The answer, or None if the page refused it.
        """
        if self.join([file], session, event) != 200:
            return None
        result = self.result(session)
        return json.dumps(result['output']) if result['success'] else None

    def ask_uploaded(self, content, session, name='face.png', event='upload'):
        """Upload a file, and show it to the page."""
        path = self.upload(content, name)[1]
        return self.ask(dict(path=path, meta=META), session, event)

    def watch(self, session):
        """Keep the connection for messages open, as a browser does."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.result(session)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp('web')) as server:
        yield server


@pytest.fixture
def listener():
    """A server that remembers who asked it."""
    asked = []
    with socket.create_server(('127.0.0.1', 0)) as accepting:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = accepting.accept()
                    asked.append(connection.recv(1000))
                    content = image_bytes()
                    connection.sendall(
                        b'HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n'
                        b'Content-Length: %d\r\n\r\n%b' %
                        (len(content), content))
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        url = f'http://127.0.0.1:{accepting.getsockname()[1]}/face.png'
        yield url, asked
        accepting.shutdown(socket.SHUT_RDWR)


def test_what_was_uploaded_is_answered(server):
    answer = server.ask_uploaded(image_bytes(1), 'welcome')
    assert 'happiness' in answer and '/gradio_api/file=' in answer
    # The session may ask again, and so may another with its own upload.
    path = server.upload(image_bytes(1))[1]
    file = dict(path=path, meta=META)
    for session in 'welcome', 'other':
        assert 'happiness' in server.ask(file, session)


@pytest.mark.parametrize('meta', [dict(meta=META), {}, dict(meta={})])
@pytest.mark.parametrize('kind', ['file', 'zero', 'fifo', 'folder'])
def test_paths_of_the_server_are_refused(server, tmp_path, kind, meta):
    path = tmp_path / f'{kind}.png'
    if kind == 'file':
        path.write_bytes(image_bytes(2))
    elif kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'zero':
        path = '/dev/zero'
    answer = server.ask(dict(path=str(path), **meta), f'{kind}{len(meta)}')
    assert answer is None
    assert 'happiness' in server.ask_uploaded(image_bytes(3), 'next')


@pytest.mark.parametrize('meta', [dict(meta=META), {}])
@pytest.mark.parametrize('key', ['path', 'url'])
def test_urls_are_not_fetched(server, listener, key, meta):
    url, asked = listener
    mine = server.upload(image_bytes(4))[1]
    evil = {key: url, **meta}
    # As such, within the mark of an uploaded file, and beside its path
    payloads = [evil, dict(path=mine, more=evil), [evil]]
    for i, payload in enumerate(payloads):
        assert server.ask(payload, f'url{key}{len(meta)}{i}') is None
    assert not asked


def test_uploads_of_another_session_are_refused(server):
    path = server.upload(image_bytes(5))[1]
    file = dict(path=path, meta=META)
    assert 'happiness' in server.ask(file, 'owner')
    assert server.ask(file, 'stranger') is None
    # Nor without the mark, nor by other names of the same file
    assert server.ask(dict(path=path), 'owner') is None
    for other in f'{osp.dirname(path)}/./face.png', f'/{path}':
        assert server.ask(dict(path=other, meta=META), 'owner') is None


def test_an_upload_that_became_something_else_is_refused(server, tmp_path):
    path = server.upload(image_bytes(6))[1]
    os.remove(path)
    os.mkfifo(path)
    assert server.ask(dict(path=path, meta=META), 'fifo') is None
    os.remove(path)
    (tmp_path / 'secret.png').write_bytes(image_bytes(7))
    os.symlink(tmp_path / 'secret.png', path)
    assert server.ask(dict(path=path, meta=META), 'link') is None


@pytest.mark.parametrize('body', [
    b'', b'{', b'[]', b'[' * 100000, b'{"data": 5, "session_hash": "a"}',
    b'{"data": [null], "session_hash": ["a"]}'
])
def test_malformed_requests(server, body):
    status, answer = server.request('POST', '/gradio_api/queue/join', body,
                                    {'Content-Type': 'application/json'})
    assert 400 <= status < 500 and b'Traceback' not in answer


@pytest.mark.parametrize('key,value', [('fn_index', -1), ('fn_index', 99),
                                       ('fn_index', 10**30),
                                       ('fn_index', '\ud800')])
def test_events_that_there_are_not(server, key, value):
    path = server.upload(image_bytes(10))[1]
    body = dict(
        fn_index=server.events['upload'],
        data=[dict(path=path, meta=META)],
        session_hash=f'event{value!r}')
    body[key] = value
    status, answer = server.request('POST', '/gradio_api/queue/join',
                                    json.dumps(body),
                                    {'Content-Type': 'application/json'})
    assert 400 <= status < 500 and b'Error' not in answer


@pytest.mark.parametrize('key,value', [('size', 'x'), ('size', 0.5),
                                       ('orig_name', 5), ('is_stream', 'x'),
                                       ('unknown', 'x')])
def test_fields_of_files_that_there_are_not(server, key, value):
    path = server.upload(image_bytes(11))[1]
    file = {'path': path, 'meta': META, key: value}
    assert server.ask(file, f'{key}{value}') is None


def test_malformed_requests_of_files(server):
    path = server.upload(image_bytes(12))[1]
    file = f'/gradio_api/file={path}'
    assert server.request('GET', file)[0] == 200
    headers = dict(Range='bytes=' + '0-0,bytes=' * 50)
    for name, head in ((file, headers), (f'{file}%00', {})):
        status, answer = server.request('GET', name, headers=head)
        assert 400 <= status < 500 and b'Error' not in answer


def test_hosts(server):
    own = f'127.0.0.1:{server.port}'

    def get(host, **headers):
        return server.request('GET', '/', headers=dict(headers, Host=host))[0]

    for host in own, f'localhost:{server.port}', f'[::1]:{server.port}':
        assert get(host) == 200
        assert get(host, Origin=f'http://{host}') == 200
    # What an attacker has a name for, be its address one of this machine
    for host in ('evil.example', f'evil.example:{server.port}', '192.0.2.1',
                 f'127.0.0.1.evil.example:{server.port}', 'localhost.evil',
                 '0.0.0.0', '', f'evil.example@{own}'):
        assert 400 <= get(host) < 500, host
        assert server.upload(image_bytes(), Host=host)[0] >= 400, host


@pytest.mark.parametrize('host', ['0.0.0.0', '::1'])
def test_hosts_of_other_addresses(tmp_path, host):
    if host == '::1':
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip('needs IPv6')
    with Server(tmp_path, '--host', host) as server:
        own = f'[{host}]' if ':' in host else '127.0.0.1'
        for name, status in ((own, 200), (socket.gethostname(), 200),
                             ('evil.example', 403), ('192.0.2.1', 403)):
            # The names of this machine are those of all addresses.
            if name == socket.gethostname() and host == '::1':
                continue
            headers = dict(Host=f'{name}:{server.port}')
            assert server.request('GET', '/', headers=headers)[0] == status


def test_origins(server):
    port = server.port
    assert server.upload(
        image_bytes(), Origin=f'http://127.0.0.1:{port}')[0] == 200
    for origin in ('null', 'http://evil.example',
                   f'http://evil.example:{port}', 'http://127.0.0.1',
                   f'http://127.0.0.1:{port + 1}', f'http://localhost:{port}',
                   f'http://127.0.0.1:{port}.evil.example', ''):
        status, _ = server.upload(image_bytes(), Origin=origin)
        assert 400 <= status < 500, origin
        status, _ = server.request('GET', '/', headers=dict(Origin=origin))
        assert 400 <= status < 500, origin


def test_nothing_but_the_page_is_served(server, listener, tmp_path):
    url, asked = listener
    secret = tmp_path / 'secret.png'
    secret.write_bytes(b'classified')
    api, before = '/gradio_api', set(server.temp.rglob('*'))
    for path in (f'{api}/file={url}', f'{api}/file=/{secret}',
                 f'{api}/file={secret}', f'{api}/file/{secret}',
                 f'{api}/file={ROOT}/setup.py', f'{api}/file=setup.py',
                 f'{api}/file={server.temp}/../log', f'{api}/proxy={url}',
                 f'{api}/static/..%2f..%2f..%2fsetup.py',
                 '/static/..%2f..%2froutes.py', '/assets/..%2f..%2froutes.py',
                 '/svelte/../../routes.py', f'{api}/monitoring/summary',
                 '/monitoring', f'{api}/vibe-code', '/docs', '/openapi.json',
                 f'{api}/dev/reload', f'{api}/custom_component/a/b/c/d'):
        status, body = server.request('GET', path)
        assert 400 <= status < 500 and b'classified' not in body, path
    data = json.dumps(
        dict(
            data=[dict(path=str(secret))],
            fn_index=server.events['upload'],
            fn_name='ls',
            component_id=1,
            session_hash='a'))
    for path in ('component_server', 'process_recording', 'run/predict',
                 'api/predict', 'call/predict', 'call/v2/predict', 'stream/a',
                 'vibe-edit', 'vibe-code', 'reset/x'):
        status, body = server.request('POST', f'{api}/{path}', data,
                                      {'Content-Type': 'application/json'})
        assert 400 <= status < 500 and b'classified' not in body, path
    assert not asked
    assert set(server.temp.rglob('*')) <= before


def test_the_size_of_requests_is_limited(server):
    form = {'Content-Type': 'multipart/form-data; boundary=x'}
    for path, size, kind in (('upload', 2**40, form), ('queue/join', 2**30,
                                                       {})):
        connection = http.client.HTTPConnection(
            '127.0.0.1', server.port, timeout=SOON)
        with contextlib.closing(connection):
            connection.putrequest('POST', f'/gradio_api/{path}')
            for key, value in dict(kind, **{'Content-Length': size}).items():
                connection.putheader(key, str(value))
            connection.endheaders(b'--x')
            assert connection.getresponse().status == 413
    # Without a length it could go on for ever.
    status, _ = server.request('POST', '/gradio_api/upload', iter([b'--x']),
                               form)
    assert status == 411


def test_a_slow_request_blocks_no_other(server):
    for i in range(2):
        path = server.upload(sleepy_image(), f'{i}.png')[1]
        assert server.join([dict(path=path, meta=META)], f'sleepy{i}') == 200
    begin = time.monotonic()
    assert 'happiness' in server.ask_uploaded(image_bytes(8), 'awake')
    assert time.monotonic() - begin < SOON


def slow_video(folder):
    """A video for which the model takes a minute."""
    path = str(folder / 'slow.webm')
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'VP80'), 25,
                            (32, 32))
    for _ in range(120):
        video.write(np.zeros((32, 32, 3), np.uint8))
    video.release()
    return Path(path).read_bytes()


def test_videos_block_no_image_and_end_with_their_visitor(server, tmp_path):
    content, session = slow_video(tmp_path), 'leaver'
    for i in range(3):
        path = server.upload(content, 'slow.webm')[1]
        file = dict(path=path, meta=META)
        assert server.join([file], f'{session}{i}', 'upload-video') == 200
    connections = []
    for i in range(3):
        connection = http.client.HTTPConnection('127.0.0.1', server.port)
        connection.request(
            'GET', f'/gradio_api/queue/data?session_hash={session}{i}')
        connections.append(connection)
    assert 'happiness' in server.ask_uploaded(image_bytes(9), 'meanwhile')

    def being_written():
        return list(server.temp.rglob('*.partial.mp4'))

    until = time.monotonic() + SOON
    while not being_written():
        assert time.monotonic() < until
        time.sleep(0.1)
    for connection in connections:
        connection.sock.close()
        connection.close()
    until = time.monotonic() + 2 * SOON
    while being_written():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize('content', [
    '#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n',
    'ffconcat version 1.0\nfile {}\n', '<MPD type="static">{}</MPD>'
])
def test_playlists_are_no_videos(server, tmp_path, content):
    """FFmpeg would open what they name, whatever their extension is."""
    secret = tmp_path / 'secret.ts'
    video = cv2.VideoWriter(
        str(secret), cv2.VideoWriter_fourcc(*'mpg1'), 25, (64, 64))
    assert video.isOpened()
    for _ in range(30):
        video.write(np.zeros((64, 64, 3), np.uint8))
    video.release()
    answer = server.ask_uploaded(
        content.format(secret).encode(), 'playlist', 'a.mp4', 'upload-video')
    assert answer and 'cannot be opened' in answer
    assert '.webm' not in answer


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('busy', [False, True])
def test_it_ends_on_signals(tmp_path, number, busy):
    with Server(tmp_path) as server:
        server.ask_uploaded(image_bytes(), 'a')
        assert list(server.temp.iterdir())
        if busy:
            path = server.upload(sleepy_image())[1]
            assert server.join([dict(path=path, meta=META)], 'b') == 200
            threading.Thread(target=server.watch, args=('b', )).start()
            time.sleep(1)
        begin = time.monotonic()
        os.kill(server.process.pid, number)
        server.process.join(30)
        assert time.monotonic() - begin < 2
        # What was uploaded is gone.
        assert not list(server.temp.iterdir())
