# Copyright (c) dan_mm contributors. All rights reserved.
"""Attacks on the server of `dan-mm serve`: a process that listens at
127.0.0.1, and raw HTTP requests."""
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from attacks import make_images, mutate
from conftest import draw_face
from processes import start

from dan_mm import apis, cli

NEEDS = "needs the server: pip install -e '.[serve]'"
pytest.importorskip('fastapi_offline', reason=NEEDS)
pytest.importorskip('prometheus_client', reason=NEEDS)
SOON = 30  # s, on a machine that is busy


def image_bytes(size=48, suffix='.png'):
    return cv2.imencode(suffix, draw_face(0, size))[1].tobytes()


class Model:
    """A model that is none. It takes 2 s for an image of 10x10 pixels, and a
    minute for one of 11x11."""
    about = 'Trained on nothing.'
    synthetic, export, batch_size, device = False, None, 8, 'cpu'
    classes = 'anger', 'happiness'

    def __init__(self, *args, **kwargs):
        """Takes anything."""

    def __call__(self, images, **kwargs):
        if isinstance(images, np.ndarray):
            return []
        sides = {image.img.shape[0] for image in images}
        time.sleep(60 if 11 in sides else 2 * (10 in sides))
        return [
            apis.ImageResult(
                image.path,
                faces=[apis.FaceResult(dict(anger=0.1, happiness=0.9))])
            for image in images
        ]


def serve(options):
    from dan_mm.apis import server
    apis.FERInferencer = apis.FaceDetector = Model
    server.BODY_SECONDS = server.IDLE_SECONDS = server.DRAIN_SECONDS = 1
    cli.serve.STOP_SECONDS = 3
    return cli.main(['serve', '--port', '0', *options])


class Server:
    """The server, in a process of its own."""

    def __init__(self, folder, *options):
        self.temp, self.log = folder / 'temp', folder / 'log'
        self.temp.mkdir()
        self.log.touch()
        self.process = start(
            serve, options, log=self.log, TMPDIR=str(self.temp))
        until = time.monotonic() + 120
        while not (url := re.search(r'http://\S+:(\d+)',
                                    self.log.read_text())):
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        self.port = int(url[1])

    def ask(self,
            body=None,
            path='/predict',
            method='POST',
            headers=None,
            chunked=False):
        """Ask, and get the status, the plain data and the headers."""
        connection = http.client.HTTPConnection(
            '127.0.0.1', self.port, timeout=SOON)
        with contextlib.closing(connection):
            connection.request(
                method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            content = response.read()
        if response.headers.get_content_type() == 'application/json':
            content = json.loads(content)
        return response.status, content, response.headers

    def refuses(self, status, words, *args, **kwargs):
        """Check that a request is refused with a sentence, and the next one is
        answered."""
        found, answer, headers = self.ask(*args, **kwargs)
        assert found == status and words in answer['error'], answer
        assert list(answer) == ['error'] and len(answer['error']) < 500
        assert self.ask(image_bytes())[0] == 200
        return headers

    def connect(self, start=b''):
        """A connection that has sent something."""
        connection = socket.create_connection(('127.0.0.1', self.port), SOON)
        connection.sendall(start)
        return connection

    def check(self):
        """Nothing is left on the disk, and nothing was a surprise."""
        assert 'Traceback' not in self.log.read_text()
        assert not list(self.temp.rglob('*'))
        assert self.process.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    with Server(
            tmp_path_factory.mktemp('serve'), '--max-body', '1',
            '--max-requests', '16', '--timeout', '2') as server:
        yield server


@pytest.fixture
def server(running):
    yield running
    running.check()


def part(content, name='a.png', more=b''):
    return (b'--x\r\nContent-Disposition: form-data; name="f"; filename="' +
            name.encode() + b'"' + more + b'\r\n\r\n' + content + b'\r\n')


FORM = {'Content-Type': 'multipart/form-data; boundary=x'}


def test_hostile_files(server):
    """Broken ones are refused, alone and within a form."""
    images, chance = make_images(), random.Random(0)
    files = [(chance.choice(images)[1]) for _ in range(60)]
    broken = [
        mutate(content, i, 1 + i % 6) if i % 10 else content
        for i, content in enumerate(files)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.ask, broken))
    for i, (status, answer, _) in enumerate(answers):
        assert status == 200 if i % 10 == 0 else status in (200, 400, 422)
        assert ('images' if status == 200 else 'error') in answer
    assert any(status == 422 for status, *_ in answers)
    body = b''.join(part(content) for content in broken[:16]) + b'--x--\r\n'
    if len(body) < 2**20:
        status, answer, _ = server.ask(body, headers=FORM)
        assert status == 200 and len(answer['images']) == 16


@pytest.mark.parametrize('content', [
    b'x', b'\0' * 1000, b'%PDF-1.4', b'<svg xmlns="http://www.w3.org/">',
    b'%!PS-Adobe', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0',
    image_bytes()[:-40]
], ids=repr)  # yapf: disable
def test_what_is_no_image(server, content):
    server.refuses(422, 'cannot be decoded', content)


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize('size', [2**20 + 1, 20 * 2**20])
def test_too_large(server, size, chunked):
    """The client reads why, whether or not it has sent all of it."""
    body = iter([b'\0' * 2**16] * (size // 2**16 + 1))
    if not chunked:
        body = b'\0' * size
    headers = server.refuses(
        413,
        'expected at most',
        body,
        headers={'Transfer-Encoding': 'chunked'} if chunked else None,
        chunked=chunked)
    assert size < 2 * 2**20 or headers['Connection'] == 'close'


def test_too_large_and_without_end(server):
    """What is refused is not read for ever."""
    with server.connect(b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
                        b'Content-Length: 9000000000\r\n\r\n') as connection:
        until = time.monotonic() + SOON
        with pytest.raises(OSError):
            while time.monotonic() < until:
                connection.sendall(b'\0' * 2**16)
    assert time.monotonic() < until


@pytest.mark.parametrize('status,words,body,headers', [
    (400, 'Too many files', part(b'') * 17 + b'--x--\r\n', FORM),
    (400, 'boundary', part(b''), {'Content-Type': 'multipart/form-data'}),
    (400, 'cannot be read', b'x' * 99, FORM),
    (400, 'without files', b'--x--\r\n', FORM),
    (400, 'cannot be read', part(b'', more=b'\r\nA: b' * 99), FORM),
    (400, 'cannot be read', part(b'', more=b'\r\nA: ' + b'b' * 9999), FORM),
    (400, "field 'f'", b'--x\r\nContent-Disposition: form-data; name="f"\r\n'
     b'\r\ntrue\r\n--x--\r\n', FORM),
    (400, 'empty request', b'', {}),
    (415, 'application/json', b'{}', {'Content-Type': 'application/json'}),
    (415, 'text/html', b'<html>', {'Content-Type': 'text/html'}),
    (422, 'cannot be decoded', part(b'') + b'--x--\r\n', FORM),
], ids=[str(i) for i in range(11)])  # yapf: disable
def test_bodies(server, status, words, body, headers):
    server.refuses(status, words, body, headers=headers)


@pytest.mark.parametrize('status,method,path', [
    (404, 'GET', '/'), (404, 'GET', '/../../etc/passwd'),
    (404, 'GET', '/static-offline-docs/..%2f..%2f__init__.py'),
    (404, 'GET', '/%00%ff'), (404, 'POST', '/predict%00'),
    (405, 'GET', '/predict'), (405, 'PUT', '/predict'),
    (405, 'DELETE', '/metrics'), (405, 'OPTIONS', '/predict'),
    (422, 'POST', '/predict?aligned=maybe'),
    (422, 'POST', '/predict?embeddings=%ff%00')])  # yapf: disable
def test_addresses(server, status, method, path):
    body = image_bytes() if method == 'POST' else None
    server.refuses(status, '', body, path, method)


@pytest.mark.parametrize('name', [
    '/etc/passwd', '../../x.png', 'C:\\x', 'a' * 1000, '\x1b[31m', '\u202e',
    'CON', '{{x}}', '$(x)'
], ids=lambda name: repr(name[:20]))  # yapf: disable
def test_names_are_only_repeated(server, name):
    body = part(image_bytes(), name) + part(b'x', name) + b'--x--\r\n'
    status, answer, _ = server.ask(body, headers=FORM)
    assert status == 200
    for image in answer['images']:
        assert image['name'].isprintable() and len(image['name']) <= 100
        assert image.get('error', '').isprintable()


def test_hosts_and_origins(server):
    own = f'127.0.0.1:{server.port}'
    for host in own, f'localhost:{server.port}':
        for path in '/health', '/docs', '/metrics':
            headers = dict(Host=host, Origin=f'http://{host}')
            assert server.ask(None, path, 'GET', headers)[0] == 200
    for host in ('evil.example', f'evil.example:{server.port}', '192.0.2.1',
                 f'127.0.0.1.evil.example:{server.port}', f'evil@{own}'):
        for path in '/health', '/docs', '/metrics', '/openapi.json':
            assert server.ask(None, path, 'GET', dict(Host=host))[0] == 403
        server.refuses(403, 'expected', image_bytes(), headers=dict(Host=host))
    for origin in 'http://evil.example', 'null', f'http://{own}.evil', '[':
        server.refuses(
            403, 'expected', image_bytes(), headers=dict(Origin=origin))


@pytest.mark.parametrize('content', [
    b'\0' * 100, b'GET\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n', b'\x16\x03\x01',
    b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n',
    b'GET / HTTP/1.1\r\nA: ' + b'b' * 10**6
], ids=lambda content: repr(content[:40]))  # yapf: disable
def test_what_is_no_http(server, content):
    with server.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(content)
            answer = connection.recv(100)
            assert not answer or answer.startswith(
                (b'HTTP/1.1 400 ', b'HTTP/1.1 403 '))
    assert server.ask(image_bytes())[0] == 200


def read_all(connection):
    content = b''
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(2**16):
            content += chunk
    return content


@pytest.mark.parametrize('begin', [
    b'', b'POST /predict HT', b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
])
def test_clients_that_send_no_request(server, begin):
    with server.connect(begin) as connection:
        assert read_all(connection) == b''


def test_clients_that_send_slowly(server):
    """A byte at a time, they get 408 or their connection is ended."""
    head = (b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
            b'Content-Length: 500\r\n\r\n')
    with server.connect(head) as connection:
        with contextlib.suppress(OSError):
            for _ in range(12):
                connection.sendall(b'x')
                time.sleep(0.2)
        assert read_all(connection).startswith(b'HTTP/1.1 408 ')
    with server.connect() as connection, pytest.raises(OSError):
        for byte in head * 2:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def test_clients_that_leave(server):
    content = image_bytes(10)
    head = (b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
            b'Content-Length: %d\r\n\r\n')
    for begin in head % 500 + b'x', head % len(content) + content:
        for _ in range(8):
            server.connect(begin).close()
    # Their places are free again.
    until = time.monotonic() + SOON
    while server.ask(image_bytes())[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_time_and_number_of_requests(tmp_path):
    """What takes too long gets 504, what is too much 503."""
    with Server(tmp_path, '--max-requests', '4', '--timeout', '1') as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(server.ask, [image_bytes(10)] * 12))
        statuses = [status for status, *_ in answers]
        assert statuses.count(504) == 4 and statuses.count(503) == 8
        for status, answer, headers in answers:
            assert len(answer['error']) < 200
            if status == 503:
                assert headers['Retry-After'] == '1'
        until = time.monotonic() + SOON
        while server.ask(image_bytes())[0] != 200:
            assert time.monotonic() < until
        server.check()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals(tmp_path, number):
    """Requests that are under way are answered, and then it ends."""
    with Server(tmp_path) as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(server.ask(image_bytes(10))))
        thread.start()
        while b'under_way 1.0' not in server.ask(None, '/metrics', 'GET')[1]:
            time.sleep(0.05)
        os.kill(server.process.pid, number)
        server.process.join(SOON)
        thread.join(SOON)
        assert answers[0][0] == 200
        expected = 130 if number == signal.SIGINT else -number
        assert server.process.exitcode == expected
        assert 'Traceback' not in server.log.read_text()


def test_a_signal_and_a_request_that_takes_too_long(tmp_path):
    with Server(tmp_path) as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(server.ask(image_bytes(11))))
        thread.start()
        while b'under_way 1.0' not in server.ask(None, '/metrics', 'GET')[1]:
            time.sleep(0.05)
        begin = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.join(SOON)
        thread.join(SOON)
        assert time.monotonic() - begin < SOON
        assert answers[0][0] == 503 and 'stopping' in answers[0][1]['error']
        assert 'Traceback' not in server.log.read_text()


def test_other_addresses_are_announced(tmp_path):
    with Server(tmp_path, '--host', '0.0.0.0') as server:
        assert 'Warning: --host got 0.0.0.0' in server.log.read_text()
        assert server.ask(image_bytes())[0] == 200
        server.refuses(
            403, 'expected', image_bytes(), headers=dict(Host='evil.example'))


def test_nothing_is_written(server):
    """A form of a megabyte stays in memory."""
    folders = [Path('/proc') / str(server.process.pid) / 'fd']
    if not folders[0].exists():
        pytest.skip('needs /proc')
    noise = np.random.default_rng(0).integers(0, 255, (550, 550, 3), 'u1')
    content = cv2.imencode('.png', noise)[1].tobytes()
    assert 900_000 < len(content) < 2**20 - 200
    status, answer, _ = server.ask(part(content) + b'--x--\r\n', headers=FORM)
    assert status == 200 and answer['images'][0]['faces']
