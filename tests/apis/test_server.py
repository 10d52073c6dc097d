# Copyright (c) dan_mm contributors. All rights reserved.
"""The server of `dan-mm serve`, in a process of its own, and what puts
requests together."""
import http.client
import json
import os.path as osp
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_face
from processes import start

from dan_mm import cli
from dan_mm.apis import FERInferencer, ImageResult
from dan_mm.apis.batcher import Batcher

NEEDS = "needs the server: pip install -e '.[serve]'"
pytest.importorskip('fastapi_offline', reason=NEEDS)
pytest.importorskip('prometheus_client', reason=NEEDS)


def test_a_missing_package(monkeypatch, capsys):
    """Said before anything is loaded."""
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    monkeypatch.setitem(sys.modules, 'uvicorn.protocols.http.h11_impl', None)
    monkeypatch.delitem(sys.modules, 'dan_mm.apis.server', False)
    assert cli.main(['serve', '--model', 'absent']) == 2
    assert 'Run `pip install fastapi' in capsys.readouterr().err


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def png(seed=0, size=48):
    return cv2.imencode('.png', draw_face(seed, size))[1].tobytes()


def form(*files):
    """A form of files, and its type."""
    body = b''.join(
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%b"'
        b'\r\n\r\n%b\r\n' % (name.encode(), content)
        for name, content in files) + b'--x--\r\n'
    return body, {'Content-Type': 'multipart/form-data; boundary=x'}


class Server:

    def __init__(self, folder, *options, home):
        log = folder / 'log'
        log.touch()
        self.process = start(
            cli_main, ['serve', '--port', '0', *options],
            log=log,
            TORCH_HOME=home)
        until = time.monotonic() + 120
        while not (url := re.search(r'http://\S+:(\d+)', log.read_text())):
            assert self.process.is_alive(), log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.port = int(url[1])

    def ask(self, path='/predict', body=None, headers=None):
        """Ask, and get the status and the answer."""
        connection = http.client.HTTPConnection(
            '127.0.0.1', self.port, timeout=60)
        connection.request('GET' if body is None else 'POST', path, body,
                           headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.headers.get_content_type() == 'application/json':
            content = json.loads(content)
        return response.status, content

    def metric(self, name):
        text = self.ask('/metrics')[1].decode()
        return float(re.search(rf'^{name} (\S+)', text, re.MULTILINE)[1])


def cli_main(argv):
    return cli.main(argv)


@pytest.fixture(scope='module')
def server(tmp_path_factory, detector_weights, torch_home):
    server = Server(
        tmp_path_factory.mktemp('serve'), '--device', 'cpu', home=torch_home)
    yield server
    server.process.kill()
    server.process.join()


@pytest.fixture(scope='module')
def inferencer(face_detector):
    return FERInferencer(device='cpu', detector=face_detector)


def check(found, expected):
    """Compare plain data; numbers may differ by what a batch changes."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        if key == 'scores':
            assert found[key] == pytest.approx(value, abs=1e-4)
        elif isinstance(value, (str, bool)):
            assert found[key] == value
        else:
            np.testing.assert_allclose(found[key], value, atol=0.02)


@pytest.mark.parametrize('query,options', [
    ('', {}),
    ('?embeddings=true', dict(embeddings=True)),
    ('?aligned=true', dict(aligned=True)),
])
def test_answers_are_those_of_the_inferencer(server, inferencer, astronaut,
                                             query, options):
    from dan_mm.apis.server import Answer
    status, answer = server.ask(f'/predict{query}', read(astronaut))
    [expected] = inferencer(astronaut, **options)
    assert status == 200 and len(answer['images']) == 1
    assert len(answer['images'][0]['faces']) == len(expected.faces) == 1
    check(answer['images'][0]['faces'][0], expected.faces[0].to_dict())
    # As the page about it says
    Answer.model_validate(answer)


def test_a_form_of_files(server, astronaut):
    empty = cv2.imencode('.png', np.zeros((64, 64, 3), 'u1'))[1].tobytes()
    status, answer = server.ask(
        '/predict',
        *form(('a.png', read(astronaut)), ('b.txt', b'no image'),
              ('c.png', empty)))
    assert status == 200
    first, second, third = answer['images']
    assert [first['name'], second['name'],
            third['name']] == ['a.png', 'b.txt', 'c.png']
    assert first['faces'][0]['expression'] == 'happiness'
    assert 'error' not in first and 'error' not in third
    assert 'b.txt cannot be decoded' in second['error']
    assert second['faces'] == third['faces'] == []


def test_requests_share_batches(server, astronaut):
    """And one that is broken is refused alone."""
    images = [read(astronaut) if i % 4 else b'no image' for i in range(24)]
    before = [
        server.metric(f'dan_mm_batch_images_{part}')
        for part in ('sum', 'count')
    ]
    with ThreadPoolExecutor(len(images)) as pool:
        answers = list(
            pool.map(lambda image: server.ask('/predict', image), images))
    for image, (status, answer) in zip(images, answers):
        if image == b'no image':
            assert status == 422 and 'decoded' in answer['error']
        else:
            assert answer['images'][0]['faces'][0]['expression'] == 'happiness'
    shared, batches = (server.metric(f'dan_mm_batch_images_{part}') - value
                       for part, value in zip(('sum', 'count'), before))
    assert shared == 18 and batches < 18


def test_health_and_metrics(server):
    status, health = server.ask('/health')
    assert status == 200 and health['status'] == 'ok'
    assert 'happiness' in health['classes'] and 'FER+' in health['about']
    server.ask('/predict', png())
    assert server.metric('process_resident_memory_bytes') > 2**20
    assert server.metric(r'dan_mm_images_total\{outcome="answered"\}') >= 1
    name = r'dan_mm_requests_total\{path="/predict",status="200"\}'
    assert server.metric(name) >= 1
    assert server.metric('dan_mm_requests_under_way') == 0


def test_the_page_about_it(server):
    """Nothing of it comes from elsewhere."""
    status, page = server.ask('/docs')
    assert status == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert links and all(link.startswith('/') for link in links)
    assert all(server.ask(link)[0] == 200 for link in links)
    _, about = server.ask('/openapi.json')
    assert {'/predict', '/health', '/metrics'} == set(about['paths'])
    predict = about['paths']['/predict']['post']
    assert {'200', '413', '422', '503', '504'} <= set(predict['responses'])
    assert {'image/*',
            'multipart/form-data'} == set(predict['requestBody']['content'])


def test_without_pytorch():
    """It needs neither PyTorch nor the OpenMMLab packages."""
    code = '''
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'mmcv', 'mmengine', 'mmpretrain'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from types import SimpleNamespace
from dan_mm.apis.server import build_app
app = build_app(SimpleNamespace(about='', synthetic=False, batch_size=1))
assert app.openapi()['paths']['/predict']
'''
    subprocess.run([sys.executable, '-c', code],
                   check=True,
                   cwd=ROOT,
                   timeout=60)


@pytest.mark.parametrize('option', ['--timeout', '--max-body'])
def test_limits_that_are_none(option, capsys):
    assert cli.main(['serve', option, '0']) == 2
    assert f'Got {option} 0' in capsys.readouterr().err


def test_a_port_that_is_taken(server, tmp_path, torch_home):
    log = tmp_path / 'log'
    process = start(
        cli_main, ['serve', '--device', 'cpu', '--port',
                   str(server.port)],
        log=log,
        TORCH_HOME=torch_home)
    process.join(120)
    assert process.exitcode == 2
    assert 'Cannot listen at 127.0.0.1' in log.read_text()


class Slow:
    """Answers a batch when it is told to."""
    batch_size = 4

    def __init__(self):
        self.go, self.batches = threading.Semaphore(0), []

    def __call__(self, images, aligned, embeddings):
        self.batches.append(([image.path for image in images], aligned))
        assert self.go.acquire(timeout=60)
        if images[0].path == 'bad':
            raise RuntimeError('the model is broken')
        return [ImageResult(image.path) for image in images]


@pytest.fixture
def slow():
    slow = Slow()
    slow.batcher = Batcher(slow, workers=2)
    first = slow.batcher.submit(png(), 'first')
    wait_for(lambda: slow.batches)
    slow.first = first
    return slow


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_comes_meanwhile_shares_a_batch(slow):
    """Of at most `batch_size` images with the same options, in order."""
    futures = [
        slow.batcher.submit(png(), str(i), aligned=i == 1) for i in range(7)
    ]
    wait_for(lambda: not slow.batcher._coming)
    slow.go.release(4)
    assert {future.result(60).path
            for future in [slow.first, *futures]
            } == {'first', *map(str, range(7))}
    sizes = [(len(paths), aligned) for paths, aligned in slow.batches]
    assert sorted(sizes) == [(1, False), (1, True), (2, False), (4, False)]


def test_what_nobody_waits_for_is_left_out(slow):
    futures = [slow.batcher.submit(png(), str(i)) for i in range(3)]
    assert futures[1].cancel()
    wait_for(lambda: not slow.batcher._coming)
    slow.go.release(2)
    assert [futures[i].result(60).path for i in (0, 2)] == ['0', '2']
    assert sorted(sum((paths for paths, _ in slow.batches),
                      [])) == ['0', '2', 'first']


def test_a_model_that_fails_goes_on(slow):
    future = slow.batcher.submit(png(), 'bad')
    wait_for(lambda: not slow.batcher._coming)
    slow.go.release(3)
    with pytest.raises(RuntimeError, match='the model is broken'):
        future.result(60)
    assert slow.batcher.submit(png(), 'next').result(60).path == 'next'


def test_decoded_images_have_bounded_memory(slow, monkeypatch):
    monkeypatch.setattr('dan_mm.apis.batcher.MAX_BATCH', 3 * 48 * 48)
    futures = [slow.batcher.submit(png(), str(i)) for i in range(9)]
    time.sleep(0.5)
    # One more by the other thread
    assert len(slow.batcher._decoded) <= 4
    slow.go.release(10)
    assert len({future.result(60).path for future in futures}) == 9


def test_an_image_that_is_none(slow):
    result = slow.batcher.submit(b'', 'x').result(60)
    assert 'x cannot be decoded' in result.error and not result.faces
    slow.go.release()


def test_load(server, astronaut, tmp_path):
    """The tool that measures it runs."""
    tool = osp.join(ROOT, 'tools', 'analysis_tools', 'load_test.py')
    (tmp_path / 'x').write_bytes(b'no image')
    command = [
        sys.executable, tool, f'http://127.0.0.1:{server.port}', astronaut,
        '--clients', '4', '--requests', '20'
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'times the throughput' in done.stdout
    command.insert(3, str(tmp_path / 'x'))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and '422' in done.stdout
