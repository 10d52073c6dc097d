# Copyright (c) dan_mm contributors. All rights reserved.
"""Export folders: what they answer, and what is refused."""
import json
import os
import os.path as osp
import shutil
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_face, shared
from mmcv.transforms import Compose

from dan_mm import cli
from dan_mm.apis import FaceDetector, FERInferencer
from dan_mm.errors import CheckpointLoadError
from dan_mm.models.retinaface import RetinaFace
from dan_mm.onnx import runtime
from dan_mm.onnx.folder import (MANIFEST, digest, encode, is_export,
                                list_files, read_export)
from dan_mm.reading.videos import VideoWriter

pytest.importorskip('onnxscript', reason="needs pip install -e '.[onnx]'")
# What an export folder may need
RUNTIME = ('av', 'cv2', 'flatbuffers', 'google', 'markdown_it', 'mdurl',
           'numpy', 'onnxruntime', 'packaging', 'pygments', 'rich')


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    """Folder of aligned faces to calibrate on."""
    folder = tmp_path_factory.mktemp('crops')
    for i in range(24):
        cv2.imwrite(str(folder / f'{i}.png'), draw_face(i))
    return str(folder)


@pytest.fixture(scope='module')
def exported(tmp_path_factory, detector_weights, crops):
    """The shipped model, in both precisions."""
    out = str(tmp_path_factory.mktemp('export') / 'out')
    assert cli.main(['export', out, '--calibrate', crops, '--aligned']) == 0
    return out


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / 'copied')


def change(folder, edit):
    """Change the manifest."""
    path = osp.join(folder, MANIFEST)
    with open(path) as file:
        manifest = json.load(file)
    edit(manifest)
    with open(path, 'w') as file:
        json.dump(manifest, file)


def scores_of(results):
    return np.array([[list(face.scores.values()) for face in result.faces]
                     for result in results])


def test_the_same_scores(exported):
    """For aligned faces of the expected and of other sizes, with the features
    and attention maps."""
    rng = np.random.default_rng(0)
    images = [draw_face(i) for i in range(9)] + [
        rng.integers(0, 256, (height, width, 3), np.uint8)
        for height, width in ((48, 48), (31, 50), (200, 130))
    ]
    here, expected = (
        FERInferencer(model)(
            images, aligned=True, embeddings=True, attention_maps=True)
        for model in (exported, None))
    assert np.abs(scores_of(here) - scores_of(expected)).max() < 1e-4
    for one, other in zip(here, expected):
        for name in 'embedding', 'attention_maps':
            found, wanted = (
                getattr(result.faces[0], name) for result in (one, other))
            assert found.dtype == np.float32 and found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
        assert (one.faces[0].crop == other.faces[0].crop).all()


def test_a_photograph(exported, astronaut, face_detector):
    """Also half of it, and turned."""
    img = cv2.imread(astronaut)
    images = [img, img[:300, :400], cv2.rotate(img, cv2.ROTATE_180)]
    here = FERInferencer(exported)(images)
    expected = FERInferencer(detector=face_detector)(images)
    for one, other in zip(here, expected):
        assert len(one.faces) == len(other.faces) == 1
        found, wanted = one.faces[0], other.faces[0]
        np.testing.assert_allclose(found.bbox, wanted.bbox, atol=1e-2)
        np.testing.assert_allclose(
            found.keypoints, wanted.keypoints, atol=1e-2)
        np.testing.assert_allclose(found.score, wanted.score, atol=1e-5)
        assert found.expression == 'happiness'
        for name, score in found.scores.items():
            assert abs(score - wanted.scores[name]) < 1e-4


def test_a_group(exported, face_detector):
    """With overlapping boxes, and the pixels of a large image."""
    img = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    detector = FaceDetector(export=read_export(exported))
    for image in img, cv2.resize(img, (2001, 1449)):
        [found], [expected] = detector([image]), face_detector([image])
        assert len(found) == len(expected) == 29
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one.bbox, other.bbox, atol=1e-2)
            np.testing.assert_allclose(
                one.keypoints, other.keypoints, atol=1e-2)


def test_int8(exported, astronaut):
    """It finds the face, and about the same scores."""
    fer = FERInferencer(exported, precision='int8')
    [face] = fer(astronaut)[0].faces
    assert face.expression == 'happiness'
    faces = [draw_face(i) for i in range(12)]
    found = scores_of(fer(faces, aligned=True))
    expected = scores_of(FERInferencer(exported)(faces, aligned=True))
    difference = np.abs(found - expected)
    assert 1e-6 < difference.mean() < 0.05
    sizes = dict(list_files(exported))
    assert sizes['classifier_int8.onnx'] < sizes['classifier.onnx'] / 3


def test_metadata(exported):
    import onnx
    about = read_export(exported).about
    assert about['classes'][1] == 'happiness'
    assert about['alignment']['size'] == 48
    assert 0.1 < about['temperature'] < 1
    assert about['dataset_name'] == 'FER+' and about['licence']
    assert set(about['versions']) >= {'dan_mm', 'onnx', 'torch', 'opset'}
    for name, _ in list_files(exported):
        model = onnx.load(osp.join(exported, name))
        [entry] = model.metadata_props
        assert entry.value == encode(about)
        # Nothing of the machine that exported it
        assert b'site-packages' not in model.SerializeToString()
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_without_pytorch(exported, astronaut, tmp_path):
    """Only the packages of the runtime can be imported: the API, the command
    line, a video, JSON and CSV."""
    video = tmp_path / 'film.mp4'
    img = cv2.imread(astronaut)[:256, 100:356]
    writer = VideoWriter(str(video), 256, 256)
    for i in range(3):
        writer.write(img, i / 25, 1 / 25)
    writer.close()
    code = '''
import importlib.metadata, sys
known = set(sys.argv[1].split(','))
class Finder:
    def find_spec(self, name, path=None, target=None):
        name = name.partition('.')[0]
        if name not in known and name not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Finder())
from dan_mm import cli
status = cli.main(sys.argv[2:])
assert 'torch' not in sys.modules
sys.exit(status)
'''
    # The reader is a process of its own, which may have Pillow.
    arguments = [
        'predict', '--model', exported, astronaut,
        str(video), '--json',
        str(tmp_path / 'a.json'), '--csv',
        str(tmp_path / 'a.csv'), '--smoothing', '0.5'
    ]
    done = subprocess.run(
        [sys.executable, '-c', code, ','.join((*RUNTIME, 'dan_mm')),
         *arguments],
        env=dict(os.environ, PYTHONPATH=ROOT),
        capture_output=True,
        text=True)  # yapf: disable
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / 'a.json').read_text().splitlines()
    faces = [json.loads(line)['faces'] for line in lines]
    assert [len(several) for several in faces] == [1, 1, 1, 1]
    assert all(face['expression'] == 'happiness' for face, in faces)
    assert len((tmp_path / 'a.csv').read_text().splitlines()) == 5


@pytest.mark.parametrize('name, content, match', [
    ('classifier.onnx', None, 'has no classifier.onnx. Run'),
    ('detector.onnx', None, 'has no detector.onnx. Run'),
    ('classifier.onnx', b'', 'is an empty file'),
    ('detector.onnx', b'abc', 'has changed since it was exported'),
    (MANIFEST, None, 'has no manifest.json. Run'),
    (MANIFEST, b'[]', 'is no manifest'),
    (MANIFEST, b'{"format": 1}', 'is no manifest'),
    (MANIFEST, b'[' * 100_000, 'is no manifest'),
    (MANIFEST, b' ' * 200_000, 'has 200000 bytes'),
])
def test_files_that_are_refused(copied, name, content, match):
    path = osp.join(copied, name)
    if content is None:
        os.remove(path)
    else:
        with open(path, 'wb') as file:
            file.write(content)
    with pytest.raises((OSError, ValueError), match=match):
        FERInferencer(copied)


@pytest.mark.parametrize('key, value, match', [
    ('classes', list('abcdefgh'), 'does not belong to its classifier.onnx'),
    ('classes', 5, 'cannot be used'),
    ('classes', [], 'cannot be used'),
    ('alignment', dict(size=10**9), 'cannot be used'),
    ('alignment', None, 'cannot be used'),
    ('alignment', dict(template=[[10**400, 1]] * 5), 'cannot be used'),
    ('alignment', dict(interpolation=[]), 'cannot be used'),
    ('alignment', dict(evil=1), 'cannot be used'),
    ('pipeline', [dict(type='resize', size=[10**6, 1])], 'cannot be used'),
    ('pipeline', [dict(type='exec', size=[1, 1])], 'cannot be used'),
    ('channels', 2, 'cannot be used'),
    ('licence', ['a'], 'cannot be used'),
])
def test_edited_manifests(copied, key, value, match):
    change(copied, lambda manifest: manifest['about'].update({key: value}))
    with pytest.raises(ValueError, match=match):
        FERInferencer(copied)


def test_random_changes(copied):
    """A manifest is refused, or means the same, or is not that of the
    models."""
    path = osp.join(copied, MANIFEST)
    with open(path, 'rb') as file:
        original = file.read()
    about = encode(read_export(copied).about)
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(300):
        content = bytearray(original)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] = rng.choice(list(b'"0129aez{}[]-. ,:\xff'))
        with open(path, 'wb') as file:
            file.write(content)
        try:
            folder = read_export(copied)
        except (OSError, ValueError):
            outcomes['refused'] += 1
            continue
        if encode(folder.about) == about:
            outcomes['same'] += 1
        else:
            outcomes['other'] += 1
            with pytest.raises(ValueError, match='does not belong'):
                runtime.ONNXDetector(folder, None, 1600, 0.5)
    assert min(outcomes.values()) > 5 and len(outcomes) == 3


def test_another_version(copied):
    change(copied, lambda manifest: manifest.update(format=2))
    with pytest.raises(ValueError, match='has the format 2, expected 1'):
        FERInferencer(copied)


def test_what_is_no_model(copied):
    """A file that someone put there, with its digest."""
    content = b'no model'
    with open(osp.join(copied, 'classifier.onnx'), 'wb') as file:
        file.write(content)
    change(
        copied, lambda manifest: manifest['files'].update(
            {'classifier.onnx': digest(content)}))
    with pytest.raises(ValueError, match='cannot load .*classifier.onnx'):
        FERInferencer(copied)


def test_refusals(exported, copied, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="precision='int4', expected one of"):
        FERInferencer(exported, precision='int4')
    with pytest.raises(ValueError, match='for a checkpoint'):
        FERInferencer(precision='int8')
    with pytest.raises(ValueError, match='which needs none'):
        FERInferencer(exported, config='a.py')
    with pytest.raises(ValueError, match="the device 'tpu'"):
        FERInferencer(exported, device='tpu')
    # An export replaces its own files only, and none without a face.
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'a.txt').touch()
    for arguments, match in (
        ([str(tmp_path / 'mine')], 'is no folder of an earlier export'),
        ([exported, str(tmp_path / 'new')], 'is an export folder already'),
        (['nothing.pth', str(tmp_path / 'new')], 'Found no checkpoint'),
        ([str(tmp_path / 'new'), '--aligned'], '--aligned without'),
    ):
        assert cli.main(['export', *arguments]) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='Run `pip install onnxruntime`'):
        FERInferencer(exported)


def test_a_new_export_replaces_the_old_one(copied, capsys):
    assert cli.main(['export', str(copied)]) == 0
    assert [name for name, _ in list_files(copied)
            ] == ['classifier.onnx', 'detector.onnx']
    assert is_export(copied) and FERInferencer(copied).classes
    with pytest.raises(FileNotFoundError, match='was written without int8'):
        FERInferencer(copied, precision='int8')


def test_scores_that_are_no_numbers(exported, monkeypatch):
    fer = FERInferencer(exported)

    class Session:

        def run(self, names, inputs):
            return [np.full((len(inputs['images']), 8), np.nan)]

    fer._classifier.session = Session()
    with pytest.raises(CheckpointLoadError, match='expected numbers'):
        fer(draw_face(0), aligned=True)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'box'])
@pytest.mark.parametrize('size', [(224, 224), (40, 30), (96, 20), (48, 48)])
def test_resize_is_that_of_pillow(interpolation, size):
    from PIL import Image
    img = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    expected = np.asarray(
        Image.fromarray(img).resize(
            size, getattr(Image.Resampling, interpolation.upper())))
    found = runtime.pillow_resize(img, size, interpolation)
    assert (found == expected).all()


@pytest.mark.parametrize('pipeline', [
    [dict(type='Resize', scale=(40, 52))],
    [dict(type='Resize', scale=224, backend='pillow')],
    [
        dict(type='Resize', scale=(64, 64), interpolation='area'),
        dict(type='CenterCrop', crop_size=(33, 50))
    ],
    [dict(type='CenterCrop', crop_size=31)],
])
def test_the_pipeline_is_that_of_training(pipeline):
    from dan_mm.onnx.export import describe_pipeline
    img = np.random.default_rng(0).integers(0, 256, (57, 48, 3), np.uint8)
    expected = Compose(pipeline)(dict(img=img, img_shape=(57, 48)))['img']
    steps = json.loads(json.dumps(describe_pipeline(pipeline, 'a.pth')))
    found = runtime.apply_pipeline(img, steps)
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert (found == expected).all()


@pytest.mark.parametrize('step', [
    dict(type='Pad', size=(9, 9)),
    dict(type='ResizeEdge', scale=9),
    dict(type='Resize', scale=(9, 9), keep_ratio=True),
    dict(type='Resize', scale=9, backend='pillow', interpolation='hamming')
])
def test_pipelines_that_are_refused(step):
    from dan_mm.onnx.export import describe_pipeline
    with pytest.raises(ValueError, match='cannot be exported'):
        describe_pipeline([step, dict(type='PackInputs')], 'a.pth')


def test_suppression(exported):
    """Against that of torchvision."""
    import torch
    from torchvision.ops import nms
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (300, 2))
    bboxes = np.hstack([corner, corner + rng.uniform(5, 40, (300, 2))])
    expected = nms(
        torch.tensor(bboxes),
        torch.arange(300, 0, -1).double(), 0.4)
    assert runtime.suppress(bboxes, 0.4).tolist() == expected.tolist()
    assert runtime.IOU_THR == RetinaFace.IOU_THR
    assert runtime.MAX_FACES == RetinaFace.MAX_PER_IMG
    assert runtime.SCORE_THR == RetinaFace.SCORE_THR
    assert tuple(runtime.ANCHORS) == RetinaFace.STRIDES
    assert tuple(runtime.ANCHORS.values()) == RetinaFace.SIDES
    assert runtime.VARIANCES == RetinaFace.VARIANCES
    assert runtime.MAX_RATIO == RetinaFace.MAX_RATIO
    assert runtime.suppress(np.zeros((0, 4)), 0.4).tolist() == []
