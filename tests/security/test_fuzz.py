# Copyright (c) dan_mm contributors. All rights reserved.
"""Whatever a stranger's file or request holds, there is an answer, or one
sentence: no other exception, and no import, process, connection or file beside
it. How to run it and what to do with failures: see `corpus/README.md`."""
import asyncio
import contextlib
import faulthandler
import importlib
import io
import json
import os
import os.path as osp
import shutil
import string
import sys
import time
from copy import deepcopy
from glob import glob
from itertools import count

import numpy as np
import pytest
import torch
from attacks import make_images, make_video, mutate
from watch import META, MODULES, check_paths, load, refused_or, watched

from dan_mm import description
from dan_mm.apis import FERInferencer
from dan_mm.apis.found_model import find_model
from dan_mm.datasets import RAFDB, FERFolder, FERPlus, LoadCheckedImage

pytest.importorskip('hypothesis', reason="needs it: pip install -e '.[dev]'")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# The folder for inputs that fail; without one, the examples are those of CI.
FAILURES = os.environ.get('FUZZ_FAILURES')
settings.register_profile(
    'fuzz',
    derandomize=not FAILURES,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck))
settings.load_profile('fuzz')


def test_the_watch_sees(tmp_path, monkeypatch):
    for name in 'this', 'xmlrpc.server':
        monkeypatch.delitem(sys.modules, name, raising=False)
    outside = tmp_path / 'a'
    outside.write_text('')
    for action in (lambda: outside.write_text('b'), outside.read_text,
                   lambda: os.mkdir(tmp_path / 'b'), lambda: os.system('true'),
                   lambda: __import__('this'),
                   lambda: importlib.import_module('xmlrpc.server')):
        with pytest.raises(AssertionError), watched():
            with contextlib.redirect_stdout(io.StringIO()):
                action()
    with watched(tmp_path):
        assert outside.read_text() == 'b'


# What is done with a file


def attack_checkpoint(path, folder):
    with watched(folder, path):
        found = refused_or(FERInferencer, path, device='cpu')
    if found:
        model = found._classifier.model
        assert type(model).__name__ == 'ImageClassifier'
        for part in model.backbone, model.neck, model.head:
            assert part is None or type(part).__name__ in NAMES


def attack_image(path, folder):
    with watched(path):
        found = refused_or(LoadCheckedImage(), dict(img_path=path))
    if found:
        img = found['img']
        assert img.dtype == np.uint8 and img.shape[2:] == (3, )


def attack_video(path, folder):
    predict = FERInferencer(folder / 'whole.pth', device='cpu')
    results = predict(path, aligned=True)
    assert results
    for result in results:
        assert bool(result.faces) == (result.error is None)
        assert 'Traceback' not in (result.error or '')


def attack_rafdb(path, folder):
    root = folder / 'rafdb'
    for part in 'EmoLabel', 'Image/aligned':
        (root / part).mkdir(parents=True, exist_ok=True)
    for name in 'train_00001', 'test_0001':
        (root / 'Image' / 'aligned' / f'{name}_aligned.jpg').touch()
    shutil.copy(path, root / 'EmoLabel' / 'list_patition_label.txt')
    with watched(root):
        for split in 'train', 'test':
            check_paths(refused_or(load, RAFDB, root, split=split), root)


def attack_ferplus(path, folder):
    """The votes, and the labels of a split."""
    root = folder / 'ferplus'
    for part in 'FER2013Train', 'FER2013Test':
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / 'fer0000000.png').touch()
    for name in 'FER2013Train/label.csv', 'fer2013new.csv':
        shutil.copy(path, root / name)
        with watched(root):
            for split in 'train', 'test':
                check_paths(refused_or(load, FERPlus, root, split=split), root)
    (root / 'fer2013new.csv').unlink()


def attack_widerface(path, folder):
    pytest.importorskip('mmdet')
    from dan_mm.detection.widerface import WiderFaceLandmarks
    root = folder / 'wider'
    root.mkdir(exist_ok=True)
    shutil.copy(path, root / 'label.txt')
    with watched(root):
        infos = refused_or(
            load,
            WiderFaceLandmarks,
            root,
            ann_file='label.txt',
            data_prefix=dict(img='images')) or ()
    check_paths(infos, root)
    for face in (face for info in infos for face in info['instances']):
        assert len(face['keypoints']) == 15
        assert np.isfinite(face['bbox']).all()


def attack_alignment(path, folder):
    """`alignment.json`, which `dan-mm align` puts beside the faces."""
    root = folder / 'aligned'
    for name in 'anger', 'fear':
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (root / name / f'{i}.png').touch()
    shutil.copy(path, root / 'alignment.json')
    with watched(root):
        refused_or(load, FERFolder, root)


def attack_pointer(path, folder):
    """`last_checkpoint` of a work folder names no file of another one."""
    root = folder / 'work'
    root.mkdir(exist_ok=True)
    shutil.copy(path, root / 'last_checkpoint')
    shutil.copy(folder / 'whole.pth', root / 'epoch_1.pth')
    with watched(root):
        found = refused_or(find_model, root)
    assert found is None or osp.dirname(found.path) == str(root)


def attack_tree(path, folder):
    """The names of folders and files, as archives have them."""
    with open(path) as file:
        tree = json.load(file)
    root = folder / f'tree{next(NUMBERS)}'
    for name, file in tree:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f'{file}.png').touch()
    with watched(root):
        check_paths(refused_or(load, FERFolder, root), root)
    shutil.rmtree(root)


def attack_request(path, folder):
    """Gradio gets what the page asks for, and nothing else."""
    pytest.importorskip('starlette')
    from dan_mm.apis.web_guard import WebGuard
    with open(path) as file:
        method, kind, path, headers, body = json.load(file)
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append((await receive())['body'])
        await send(dict(type='http.response.start', status=200, headers=[]))
        await send(dict(type='http.response.body', body=b'[]'))

    async def receive():
        return dict(
            type='http.request', body=body.encode('latin-1'), more_body=False)

    async def send(message):
        sent.append(message)

    scope = dict(
        type=kind,
        method=method,
        path=path,
        headers=[(key.encode(), value.encode('latin-1', 'replace'))
                 for key, value in headers.items()],
        server=('127.0.0.1', 7860))
    guard = WebGuard(app, '127.0.0.1', '/kept/', max_file=10**6)
    with watched():
        asyncio.run(guard(scope, receive, send))
    if not passed:
        status = sent[0].get('status', 400)
        assert 400 <= status < 500
        assert all(b'Traceback' not in item.get('body', b'') for item in sent)
        return
    assert kind == 'http' and method in ('GET', 'HEAD', 'POST')
    host, origin = headers['host'], headers.get('origin')
    name = host[1:host.find(']')] if host[:1] == '[' else host.split(':')[0]
    assert name.lower() == 'localhost' or name == '::1' or (
        name.startswith('127.') and not set(name) - set('0123456789.'))
    assert origin is None or origin.split('://')[1] == host
    assert not path.startswith(('/docs', '/monitoring', '//gradio_api'))
    if '=' in path and path.startswith('/gradio_api'):
        assert path == '/gradio_api/file=/kept/a.png'
    if path.rstrip('/') == '/gradio_api/queue/join':
        # Nothing was uploaded, and no file may be named.
        data = json.loads(passed[0])['data']
        assert method == 'POST' and all(item is None for item in data)


NUMBERS = count()
ATTACKS = {
    name[len('attack_'):]: function
    for name, function in globals().copy().items()
    if name.startswith('attack_')
}


@pytest.fixture(scope='module')
def attack(folder, weights):
    """Attack with a file. It stays, also after a crash, if that goes wrong:
    the last one is the smallest that Hypothesis finds."""
    failures = FAILURES or str(folder / 'inputs')
    os.makedirs(failures, exist_ok=True)

    def attack(name, content, suffix=''):
        path = osp.join(failures, name + suffix)
        with open(path, 'wb') as file:
            file.write(content)
        faulthandler.dump_traceback_later(60, exit=True)
        start = time.process_time()
        try:
            ATTACKS[name](path, folder)
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert time.process_time() - start < 20
        os.remove(path)

    return attack


CORPUS = glob(osp.join(osp.dirname(__file__), 'corpus', 'files', '*'))


@pytest.mark.parametrize('path', CORPUS, ids=osp.basename)
def test_past_failures(attack, path):
    """The first word of a file name is that of its attack."""
    name, suffix = osp.splitext(osp.basename(path))
    with open(path, 'rb') as file:
        attack(name.split('-')[0], file.read(), suffix)


# Checkpoints

NAMES = sorted(set().union(description.BACKBONES, description.NECKS,
                           description.HEADS, description.LOSSES,
                           description.LAYERS, description.TRANSFORMS))
words = st.sampled_from([
    *MODULES, *(f'{name}.a' for name in MODULES), 'Runner', 'CLIPGenerator',
    'MultiLabelDataset', 'mmpretrain.datasets.multi_label.MultiLabelDataset',
    'HuggingFaceModel', 'TIMMBackbone', 'Pretrained', 'LoadImageFromFile',
    'http://127.0.0.1:1/a.pth', 'file:///etc/passwd', '/etc/passwd', '../a',
    'os.system', 'builtins.eval', '__import__("this")', 'tiny', 'pytorch',
    'deit-tiny', 'b0'
])
keys = st.sampled_from([
    'type', '_scope_', '_delete_', '_base_', 'init_cfg', 'pretrained',
    'checkpoint', 'conv_type', 'conv_cfg', 'norm_cfg', 'act_cfg', 'patch_cfg',
    'arch', 'depth', 'window_size', 'img_size', 'strides', 'out_indices',
    'stage_cfgs', 'layer_cfgs', 'num_heads', 'num_classes', 'in_channels',
    'scale', 'scale_factor', 'size', 'template', 'interpolation', 'backend',
    'loss', 'ann_file', 'tokenizer_path', 'file', 'with_cp', 'topk', 'cal_acc'
])
scalars = st.one_of(
    words, st.sampled_from(NAMES), st.text(max_size=8), st.none(),
    st.booleans(), st.floats(), st.integers(-2, 9),
    st.sampled_from([64, 512, 65536, 2**31, 10**9, 10**40, -1]))
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(
            st.one_of(keys, st.text(max_size=4)), inner, max_size=3),
        st.fixed_dictionaries(dict(type=st.sampled_from(NAMES))),
        # As a memo of pickle has them: the same list many times
        inner.map(lambda value: [[value] * 2] * 2)),
    max_leaves=8)


def places(holder):
    """All places of values in a value, as its holder and the key."""
    keys = holder if isinstance(holder, dict) else range(len(holder))
    for key in list(keys):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from places(holder[key])


@st.composite
def mutated(draw, original):
    """A value of which a few parts are others."""
    root = [deepcopy(original)]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(places(root))))
        inner, action = holder[key], draw(st.integers(0, 5))
        if action == 0 and isinstance(inner, dict):
            inner[draw(keys)] = draw(plain)
        elif action == 1 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = draw(st.one_of(words, plain))
    return root[0]


TRANSFORMER = dict(
    META,
    model=dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=8,
                num_layers=1,
                num_heads=1,
                feedforward_channels=8),
            img_size=32,
            patch_size=16,
            patch_cfg=dict(conv_type='Conv2d'),
            norm_cfg=dict(type='LN')),
        neck=None,
        head=dict(
            type='VisionTransformerClsHead', num_classes=2, in_channels=8),
        data_preprocessor=dict(pad_size_divisor=16)))


@settings(max_examples=700)
@given(
    checkpoint=st.one_of(
        st.one_of(mutated(META), mutated(TRANSFORMER)).map(
            lambda meta: dict(meta=meta, state_dict=...)),
        mutated(dict(meta=META, state_dict=...)), plain))
def test_checkpoints(attack, weights, checkpoint):
    if isinstance(checkpoint, dict):
        checkpoint = {
            key: dict(weights) if value is ... else value
            for key, value in checkpoint.items()
        }
    file = io.BytesIO()
    torch.save(checkpoint, file)
    attack('checkpoint', file.getvalue(), '.pth')


changes = dict(seed=st.integers(0, 2**32), number=st.integers(1, 6))


@settings(max_examples=400)
@given(**changes)
def test_bytes_of_checkpoints(attack, folder, seed, number):
    content = (folder / 'whole.pth').read_bytes()
    attack('checkpoint', mutate(content, seed, number), '.pth')


# Images and videos

IMAGES = make_images()


@settings(max_examples=5000)
@given(
    image=st.integers(0,
                      len(IMAGES) - 1),
    suffix=st.sampled_from([None, '.png', '.jpg']),
    **changes)
def test_images(attack, image, suffix, seed, number):
    own, content = IMAGES[image]
    attack('image', mutate(content, seed, number), suffix or own)


@settings(max_examples=100)
@given(**changes)
def test_videos(attack, seed, number):
    attack('video', mutate(make_video(), seed, number), '.avi')


# Annotations

tokens = st.sampled_from([
    'train_00001.jpg', 'train_00001.jpg 1', 'test_0001.jpg 7', '0', '8', '-1',
    '1' * 5000, '1e400', 'nan', 'Usage', 'Training', 'PublicTest',
    'PrivateTest', 'fer0000000.png', '4,0,0,1,3,2,0,0,0,0', '"', '""', ',',
    '../../../../etc/passwd', '/etc/passwd', 'http://127.0.0.1:1/a.png', '#',
    '# a.jpg', '# a.jpg 10 10', '# ../../../../etc/passwd', '# /etc/passwd',
    '1 2 30 40', '1 2 30 40 5', ' '.join(['1'] * 19), ' '.join(['1'] * 20),
    ' ', '\t', '\0', '\ufeff', '\u2028', '²', '٣', '\x85', '\x1b]0;a\x07'
])
lines = st.lists(
    st.one_of(tokens, st.text(max_size=6)), max_size=8).map(''.join)
annotations = st.one_of(
    st.lists(lines, max_size=6).map(
        lambda lines: '\n'.join(lines).encode('utf-8', 'surrogatepass')),
    st.binary(max_size=60))


@settings(max_examples=1500)
@given(
    name=st.sampled_from(['rafdb', 'ferplus', 'widerface', 'pointer']),
    content=annotations)
def test_annotations(attack, name, content):
    attack(name, content)


@settings(max_examples=500)
@given(
    content=st.one_of(
        mutated(dict(size=48, margin=0.1, interpolation='bilinear')).map(
            lambda value: json.dumps(value).encode()), annotations,
        st.just(b'[' * 100000)))
def test_alignments(attack, content):
    attack('alignment', content)


names = st.one_of(
    st.text(
        string.ascii_letters + '.-_\n\x1b\u202e é', min_size=1, max_size=6),
    st.sampled_from(['happy', 'Happiness', '0', '7', '10', 'train',
                     'val'])).filter(lambda name: name not in ('.', '..'))


@settings(max_examples=300)
@given(tree=st.lists(st.tuples(names, names), min_size=1, max_size=5))
def test_class_folders(attack, tree):
    attack('tree', json.dumps(tree).encode())


# Requests to the page

paths = st.one_of(
    st.sampled_from([
        '/', '/config', '/assets/a.js', '/gradio_api/queue/join',
        '/gradio_api/queue/join/', '/gradio_api/upload', '/gradio_api/cancel',
        '/gradio_api/reset', '/gradio_api/file=/etc/passwd',
        '/gradio_api/file=/kept/a.png', '/gradio_api/file=/kept/../etc/passwd',
        '/gradio_api/file=/kept/\0', '/gradio_api/file=http://a/',
        '/gradio_api/proxy=http://a', '/gradio_api/run/predict',
        '/gradio_api/stream/a', '/gradio_api/heartbeat/a', '/docs',
        '/gradio_api/queue/data', '//gradio_api/queue/join', '/monitoring'
    ]),
    st.text(max_size=12).map(lambda path: f'/{path}'))
hosts = st.one_of(
    st.sampled_from([
        '127.0.0.1:7860', 'localhost', '[::1]:7860', 'evil.example',
        '127.0.0.1.evil.example', 'evil@127.0.0.1', '127.0.0.1:7860:1', '[',
        '0.0.0.0', '127.1', 'localhost.', '', '\xff', '127.0.0.1/evil'
    ]), st.text(st.characters(max_codepoint=255), max_size=8))
headers = st.fixed_dictionaries(
    dict(host=hosts),
    optional={
        'origin':
        st.one_of(
            hosts.map(lambda host: f'http://{host}'),
            st.sampled_from(['null', 'http://[', 'file://'])),
        'content-length':
        st.sampled_from(['0', '-1', '²', '9' * 30, '1000'])
    })
files = st.one_of(
    st.none(), plain,
    mutated(
        dict(path='/kept/a.png', meta=dict(_type='gradio.FileData'),
             url=None)))
bodies = st.one_of(
    st.binary(max_size=30).map(lambda body: body.decode('latin-1')),
    st.just('[' * 100000),
    mutated(dict(data=[None], session_hash='a', fn_index=0)).map(json.dumps),
    st.builds(
        lambda data, session: json.dumps(
            dict(data=data, session_hash=session)),
        st.lists(files, max_size=3), st.sampled_from(['a', 'b', '\ud800'])))


@settings(max_examples=3000)
@given(
    request=st.tuples(
        st.sampled_from(['GET', 'HEAD', 'POST', 'PUT', 'OPTIONS', 'X']),
        st.sampled_from(['http', 'http', 'http', 'websocket']), paths, headers,
        bodies))
def test_requests(attack, request):
    attack('request', json.dumps(request).encode())
