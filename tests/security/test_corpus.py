# Copyright (c) dan_mm contributors. All rights reserved.
"""What broke this project once does not break it again: see `corpus/`."""
import asyncio
import io
import json
import os.path as osp
import struct
import sys
import zlib
from copy import deepcopy
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import numpy as np
import pytest
import torch
from PIL import Image
from processes import start, wait
from watch import META, load, refused_or, watched

from dan_mm.apis import FERInferencer
from dan_mm.apis.found_model import find_model
from dan_mm.datasets import RAFDB, FERFolder, FERPlus
from dan_mm.errors import CheckpointLoadError

CORPUS = osp.join(osp.dirname(__file__), 'corpus')
REFUSED = CheckpointLoadError, ValueError


def corpus(name):
    with open(osp.join(CORPUS, f'{name}.json'), encoding='utf-8') as file:
        return json.load(file)


@pytest.mark.parametrize(
    'case', corpus('checkpoints'), ids=lambda case: case['did'])
def test_checkpoints(folder, weights, case):
    meta = deepcopy(META)
    *parents, key = case['place'].split('.')
    holder = meta
    for name in parents:
        holder = holder[name]
    holder[key] = case['value']
    path = folder / 'corpus.pth'
    torch.save(dict(meta=meta, state_dict=dict(weights)), path)
    with watched(folder), pytest.raises(REFUSED) as error:
        FERInferencer(path, device='cpu')
    assert 'corpus.pth' in str(error.value) and len(str(error.value)) < 2000
    assert 'evil' not in sys.modules


@pytest.mark.parametrize('case', [
    None, [], {},
    dict(state_dict=None),
    dict(state_dict=[]),
    dict(state_dict=dict(a=1)),
    dict(state_dict={1: torch.zeros(1)}),
    dict(state_dict=dict(a=torch.zeros(1)), meta=[]),
    dict(state_dict=dict(a=torch.zeros(1).expand(10**12))),
    dict(state_dict=dict(a=torch.full((1, ), float('nan'))))
], ids=str)  # yapf: disable
def test_malformed_checkpoints(folder, case):
    path = folder / 'corpus.pth'
    torch.save(case, path)
    with watched(folder), pytest.raises(REFUSED, match='corpus.pth'):
        FERInferencer(path, device='cpu')


@pytest.mark.parametrize(
    'case',
    corpus('annotations'),
    ids=lambda case: f'{case["file"]}-{case["did"]}')
def test_annotations(tmp_path, weights, folder, case):
    content = bytes.fromhex(
        case['hex']) if 'hex' in case else (case['text'] *
                                            case.get('times', 1)).encode()
    name = case['file']
    root = tmp_path / 'data'
    parent = root / 'EmoLabel' if name.startswith('list_') else root
    parent.mkdir(parents=True)
    (parent / name).write_bytes(content)
    if name == 'label.txt':
        pytest.importorskip('mmdet')
        from dan_mm.detection.widerface import WiderFaceLandmarks
    with watched(root):
        if name == 'last_checkpoint':
            other = tmp_path / 'other'
            assert refused_or(find_model, root) is None and not other.exists()
        elif name == 'label.txt':
            assert refused_or(
                WiderFaceLandmarks, ann_file=name, data_root=str(root)) is None
        else:
            kind = {
                'alignment.json': FERFolder,
                'fer2013new.csv': FERPlus
            }.get(name, RAFDB)
            assert refused_or(load, kind, root) is None


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack(
        '>I', zlib.crc32(kind + content))


def png(width, height, content=b'\0' * 9):
    """The header of an image of any size."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(
        b'IDAT', zlib.compress(content)) + chunk(b'IEND', b'')


def gif():
    """12.8 MB of comments."""
    file = io.BytesIO()
    Image.new('P', (8, 8)).save(file, 'gif')
    content = file.getvalue()
    comment = b'\x21\xfe' + (b'\xff' + b'a' * 255) * 50000 + b'\0'
    place = content.index(b'\x2c', 13)
    return content[:place] + comment + content[place:]


def read(whole, path):
    """Print what reading an image takes above another one, in seconds and
    bytes, and its error."""
    predict = FERInferencer(device='cpu')

    def used():
        parts = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
        seconds = sum(part.ru_utime + part.ru_stime for part in parts)
        return [seconds, *(part.ru_maxrss * 1024 for part in parts)]

    predict(whole, aligned=True)
    before = used()
    [result] = predict(path, aligned=True)
    print(*(now - then for now, then in zip(used(), before)), result.error)


@pytest.mark.parametrize(
    'make', [
        lambda: png(1, 89_000_000), lambda: png(89_000_000, 1),
        lambda: png(1_000_001, 1), lambda: png(9_400, 9_400),
        lambda: png(2**31 - 1, 2**31 - 1), gif
    ],
    ids=['1x89000000', '89000000x1', '1000001x1', '9400x9400', '2e31', 'gif'])
def test_images_that_took_all_memory_or_time(tmp_path, make):
    """In a process of its own, above what reading another image takes: 20 s,
    and 1.5 GB."""
    path, whole = tmp_path / 'image.png', tmp_path / 'whole.png'
    path.write_bytes(make())
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(whole)
    log = tmp_path / 'log'
    assert wait(start(read, str(whole), str(path), log=log), 40) == 0
    output = log.read_text()
    seconds, *memory, error = output.splitlines()[-1].split(' ', 3)
    assert float(seconds) < 20 and max(map(float, memory)) < 1.5e9, output
    assert make is gif or str(path) in error


@pytest.mark.parametrize(
    'case', corpus('requests'), ids=lambda case: case['did'])
def test_requests(case):
    pytest.importorskip('starlette')
    from dan_mm.apis.web_guard import WebGuard
    body = json.dumps(
        dict(data=case.get('data', [None]), session_hash='a', fn_index=0))
    headers = case.get('headers', {
        'host': '127.0.0.1:7860',
        'content-length': str(len(body))
    })
    sent = []

    async def app(scope, receive, send):
        raise AssertionError('Gradio was asked')

    async def receive():
        return dict(type='http.request', body=body.encode(), more_body=False)

    async def send(message):
        sent.append(message)

    guard = WebGuard(app, '127.0.0.1', '/kept/', max_file=10**6)
    scope = dict(
        type='http',
        method=case.get('method', 'POST'),
        path=case.get('path', '/gradio_api/queue/join'),
        headers=[(key.encode(), value.encode())
                 for key, value in headers.items()],
        server=('127.0.0.1', 7860))
    with watched():
        asyncio.run(guard(scope, receive, send))
    assert 400 <= sent[0]['status'] < 500
