# Copyright (c) dan_mm contributors. All rights reserved.
"""Expressions of faces, with a narrow DAN of random weights and a detector
that finds what it is told; tests/detection has the real ones."""
import json
import os
import shutil
import time
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face, is_crop
from fontTools.fontBuilder import FontBuilder
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from dan_mm.apis import FERInferencer, draw_faces, drawing, inferencer
from dan_mm.datasets import AlignFace, FERPlus, align_face
from dan_mm.errors import CheckpointLoadError
from dan_mm.reading import InputImage, MediaReader

CLASSES = FERPlus.METAINFO['classes']


@pytest.fixture
def fer(work_dir, detector):
    return FERInferencer(work_dir, detector=detector, device='cpu')


def edit(source, target, **meta):
    """Copy a checkpoint with something else in its meta."""
    checkpoint = torch.load(source, weights_only=True)
    checkpoint['meta'].update(meta)
    torch.save(checkpoint, target)
    return target


def test_faces_of_images(fer, image_of):
    results = fer([image_of(number) for number in (2, 0, 1)])
    assert [len(result.faces) for result in results] == [2, 0, 1]
    for result in results:
        assert result.error is result.path is result.frame is None
        for i, face in enumerate(result.faces):
            assert tuple(face.scores) == CLASSES == fer.classes
            assert sum(face.scores.values()) == pytest.approx(1, abs=1e-5)
            assert face.expression in CLASSES
            best = max(face.scores.values())
            assert face.scores[face.expression] == best
            assert face.bbox.tolist() == [60 * i, 0, 60 * (i + 1), 60]
            assert face.score == pytest.approx(0.99 - 0.0001 * i)
            assert face.keypoints.shape == (5, 2)
            assert face.landmarks_plausible is True
            assert face.to_dict()['landmarks_plausible'] is True
            assert face.embedding is face.attention_maps is face.crop is None


def test_the_scores_are_those_of_the_runner(fer, work_dir, tmp_path,
                                            narrow_config):
    """On aligned crops, in files: through tools/test.py's pipeline."""
    for i in range(3):
        cv2.imwrite(str(tmp_path / f'{i}.png'), draw_face(i))
    found = fer(tmp_path, aligned=True)
    cfg = narrow_config.copy()
    cfg.load_from, cfg.work_dir = str(work_dir / 'epoch_5.pth'), str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmcv.transforms import Compose
        pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
        samples = [
            pipeline(dict(img_path=str(tmp_path / f'{i}.png')))
            for i in range(3)
        ]
    data = dict(
        inputs=torch.stack([sample['inputs'] for sample in samples]),
        data_samples=[sample['data_samples'] for sample in samples])
    with torch.no_grad():
        expected = runner.model.eval().test_step(data)
    for one, other in zip(found, expected):
        assert one.faces[0].bbox is None and one.faces[0].score is None
        assert np.allclose(
            list(one.faces[0].scores.values()), other.pred_score, atol=1e-5)


def test_faces_are_aligned_as_in_training(fer, image_of):
    """As FER+ is: its size, its places of the landmarks, and grey."""
    image = image_of(2)
    image[5:50, 10:110, 2] //= 2  # some colour
    [result] = fer(image, attention_maps=True)
    for face in result.faces:
        assert face.crop.shape == (48, 48, 3)
        expected = align_face(image, face.keypoints,
                              **FERPlus.METAINFO['alignment'])
        expected = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)
        assert (face.crop == expected[..., None]).all()
        [alone] = fer(face.crop, aligned=True)
        assert np.allclose(
            list(alone.faces[0].scores.values()),
            list(face.scores.values()),
            atol=1e-5)


def test_the_alignment_of_the_checkpoint(work_dir, detector, image_of,
                                         tmp_path):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    settings = dict(size=40, margin=0.2, interpolation='bicubic')
    meta = dict(classes=CLASSES, alignment=settings)
    edit(folder / 'epoch_5.pth', folder / 'epoch_5.pth', dataset_meta=meta)
    fer = FERInferencer(folder, detector=detector)
    assert fer.alignment == settings
    image = image_of(1)
    [face] = fer(image, attention_maps=True)[0].faces
    assert (face.crop == align_face(image, face.keypoints, **settings)).all()
    for wrong in (dict(size=40, evil=1), dict(size=10**6), 'nonsense'):
        meta['alignment'] = wrong
        edit(folder / 'epoch_5.pth', folder / 'epoch_5.pth', dataset_meta=meta)
        with pytest.raises(ValueError, match='epoch_5.pth .*alignment'):
            FERInferencer(folder)


def test_embeddings_and_attention_maps(fer, image_of):
    [result] = fer(image_of(2), embeddings=True, attention_maps=True)
    for face in result.faces:
        assert face.embedding.shape == (64, )
        assert face.attention_maps.shape == (4, 3, 3)
        weight = fer._classifier.model.head
        with torch.no_grad():
            scores = weight.bn(weight.fc(torch.tensor(face.embedding)[None]))
        assert np.allclose(
            scores.softmax(1)[0], list(face.scores.values()), atol=1e-5)
    plain = json.loads(json.dumps(result.to_dict()))
    assert len(plain['faces'][0]['embedding']) == 64
    assert 'crop' not in plain['faces'][0]


def test_faces_share_batches(fer, image_of, monkeypatch):
    """Those of several images; many of one are several batches."""
    sizes = []
    classify = fer._classify

    def spy(crops, *args):
        sizes.append(len(crops))
        return classify(crops, *args)

    monkeypatch.setattr(fer, '_classify', spy)
    together = fer([image_of(2, i) for i in range(10)])
    assert fer.detector.batches == [8, 2] and sizes == [16, 4]
    for i in (0, 9):
        for one, other in zip(together[i].faces, fer(image_of(2, i))[0].faces):
            assert np.allclose(
                list(one.scores.values()),
                list(other.scores.values()),
                atol=1e-5)
    sizes.clear()
    [result] = fer(image_of(250))
    assert len(result.faces) == 250
    assert max(sizes) == 32 and sum(sizes) == 250
    assert draw_faces(image_of(250), result.faces).shape == (60, 15000, 3)


def test_a_video(fer, image_of, write_video, tmp_path):
    """Frame by frame, with their times; smoothed on request."""
    frames = [image_of(1, i // 6) for i in range(12)]
    for frame in frames:
        frame[:8, :8, 0] = 1  # survives the compression
    path = write_video(tmp_path / 'a.avi', frames, 'HFYU', rate=10)
    plain = fer(path)
    assert [item.frame for item in plain] == list(range(12))
    assert plain[5].time == pytest.approx(0.5)
    assert all(item.path == path for item in plain)
    assert [face.track for item in plain for face in item.faces] == 12 * [None]
    smooth = list(fer.stream(path, smoothing=0.8))
    table, smoothed = (
        np.array([list(item.faces[0].scores.values()) for item in results])
        for results in (plain, smooth))
    expected = table[0]
    for i, item in enumerate(smooth):
        expected = 0.8 * expected + 0.2 * table[i]
        assert item.faces[0].track == 1
        assert np.allclose(smoothed[i], expected, atol=1e-5)
    # Each video has its own tracks.
    both = fer([path, path], smoothing=0.8)
    assert both[12].faces[0].scores == both[0].faces[0].scores
    with pytest.raises(ValueError, match='smoothing=1'):
        fer(path, smoothing=1)


def test_memory_does_not_grow_with_the_video(fer, image_of, monkeypatch):
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[:60, :60] = image_of(1)

    def frames(*args):
        for i in range(600):
            yield InputImage(frame.copy(), 'a.mp4', i, i / 25)

    monkeypatch.setattr(MediaReader, 'read', frames)
    monkeypatch.setattr(inferencer, 'expand', lambda inputs: ['a.mp4'])
    peaks = []
    tracemalloc.start()
    for i, result in enumerate(fer.stream('a.mp4', smoothing=0.5)):
        assert len(result.faces) == 1
        if i in (199, 599):
            peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert i == 599
    # 400 frames have 144 MB, and 400 crops 60 MB.
    assert peaks[1] - peaks[0] < 1e6


def test_a_camera(fer, monkeypatch, image_of):
    with pytest.raises(ValueError, match='endless'):
        fer(0)

    def frames(source):
        while True:
            yield InputImage(image_of(1), 'camera 0', 0, 0.)

    monkeypatch.setattr('dan_mm.apis.media._read_camera', frames)
    stream = fer.stream(0)
    assert [len(next(stream).faces) for _ in range(3)] == [1, 1, 1]
    # No frame waits for the next.
    assert fer.detector.batches == [1, 1, 1]


def test_no_detector_for_aligned_crops(work_dir, monkeypatch):
    """Nothing is downloaded for them."""
    monkeypatch.setattr(inferencer, 'FaceDetector', None)
    fer = FERInferencer(str(work_dir), device='cpu')
    [result] = fer(np.zeros((48, 48, 3), np.uint8), aligned=True)
    assert len(result.faces) == 1


def test_logs_what_it_was_trained_on(work_dir, detector, caplog, tmp_path):
    with caplog.at_level('INFO', 'dan_mm'):
        fer = FERInferencer(work_dir, detector=detector)
    assert fer.about in caplog.text
    assert 'FER+' in fer.about and 'licence' in fer.about
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    edit(
        folder / 'epoch_5.pth',
        folder / 'epoch_5.pth',
        dataset_meta=dict(classes=tuple('abcdefgh')))
    with pytest.warns(UserWarning, match='how its faces were aligned'):
        unknown = FERInferencer(folder)
    assert 'unnamed data' in unknown.about
    assert unknown.alignment['margin'] == 0.1


def test_drawn_faces_warn(work_dir, tmp_path, detector, image_of):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    meta = dict(
        classes=CLASSES,
        dataset_name='synthface, synthetic faces',
        licence='none needed')
    edit(folder / 'epoch_5.pth', folder / 'epoch_5.pth', dataset_meta=meta)
    with pytest.warns(UserWarning, match='how its faces were aligned'):
        fer = FERInferencer(folder, detector=detector)
    with pytest.warns(UserWarning, match='about photographs means nothing'):
        fer(image_of(1))


def test_the_shipped_model(astronaut, face_detector):
    """On a photograph that everybody can get, and on its aligned crop."""
    inferencer = FERInferencer(detector=face_detector)
    assert 'FER+' in inferencer.about
    image = cv2.imread(astronaut)
    result, = inferencer(astronaut, attention_maps=True)
    face, = result.faces
    assert face.expression == 'happiness' and face.scores['happiness'] > 0.5
    assert sum(face.scores.values()) == pytest.approx(1, abs=1e-5)
    assert face.bbox == pytest.approx([177.5, 56.4, 270.1, 176.4], abs=0.5)
    assert face.attention_maps.shape == (4, 3, 3)
    crop = AlignFace(**inferencer.alignment)(dict(
        img=image, keypoints=face.keypoints))['img']
    other, = inferencer(crop, aligned=True)[0].faces
    assert other.scores == pytest.approx(face.scores, abs=1e-4)


def test_refusals(work_dir, tmp_path):
    with pytest.raises(ValueError, match='batch_size=0'):
        FERInferencer(work_dir, batch_size=0)
    with pytest.raises(ValueError, match="device 'moon'"):
        FERInferencer(work_dir, device='moon')
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    path = folder / 'epoch_5.pth'
    for classes in (('a', 'b'), ('a', ) * 8):
        meta = dict(dataset_meta=dict(classes=classes))
        edit(work_dir / 'epoch_5.pth', path, **meta)
        with pytest.raises(ValueError, match='has (the classes|8 classes)'):
            FERInferencer(folder)
    edit(work_dir / 'epoch_5.pth', path, dataset_meta=None)
    with pytest.raises(ValueError, match="names of none.*`--dataset`"):
        FERInferencer(folder)
    # The weights of another width
    edit(work_dir / 'epoch_5.pth', path)
    with pytest.raises(ValueError, match='more parameters than its weights'):
        FERInferencer(path, f'{ROOT}/configs/dan_ferplus.py')
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['state_dict']['backbone.conv1.weight']
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match='conv1.weight is missing.*`config`'):
        FERInferencer(folder)
    torch.save(dict(state_dict={}, meta=os.system), path)
    with pytest.raises(CheckpointLoadError):
        FERInferencer(folder)


def test_one_bad_face_loses_no_other(fer, image_of):
    """Whose landmarks coincide, or are no numbers."""
    find = fer.detector.__class__.__call__
    for value in (7, np.nan, np.inf):

        def spoil(images):
            if is_crop(images[0]):
                return [[] for _ in images]  # nor in another orientation
            found = find(fer.detector, images)
            found[1][0].keypoints[:] = value
            return found

        detector, fer.detector = fer.detector, spoil
        fer.detector.__dict__.update(batches=[])
        results = fer([image_of(1), image_of(2), image_of(1)])
        fer.detector = detector
        assert [len(result.faces) for result in results] == [1, 1, 1]
        assert 'cannot be aligned' in results[1].error
        assert results[1].faces[0].bbox[0] == 60


def test_an_image_that_cannot_be_searched_loses_no_other(fer, image_of):
    """Such as one that is too large for the memory."""
    find = fer.detector.__class__.__call__
    stub = fer.detector

    def fail(images):
        if any(image[0, 0, 0] == 2 for image in images):
            raise RuntimeError('out of memory')
        return find(stub, images)

    fer.detector = fail
    results = fer([image_of(1), image_of(2), image_of(1)])
    assert [len(result.faces) for result in results] == [1, 0, 1]
    assert 'RuntimeError: out of memory' in results[1].error
    assert results[0].error is results[2].error is None


def test_broken_weights(work_dir, tmp_path, detector, image_of):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    checkpoint = torch.load(folder / 'epoch_5.pth', weights_only=True)
    # Finite ones whose scores are not
    checkpoint['state_dict']['head.fc.weight'][:] = 3e38
    torch.save(checkpoint, folder / 'epoch_5.pth')
    with pytest.raises(ValueError, match='expected numbers'):
        FERInferencer(folder, detector=detector)(image_of(1))


def test_faces_that_were_aligned_in_another_way(fer, image_of, tmp_path,
                                                monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), image_of(1))
    for settings, warns in ((fer.alignment, 0), (dict(size=9), 1)):
        (tmp_path / 'alignment.json').write_text(json.dumps(settings))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            fer(tmp_path, aligned=True)
        found = [item for item in said if 'dan-mm align' in str(item.message)]
        assert len(found) == warns


def test_an_aligned_video_is_one_face(fer, write_video, tmp_path):
    frames = [np.full((48, 48, 3), 20 * i, np.uint8) for i in range(5)]
    path = write_video(tmp_path / 'a.avi', frames, 'HFYU')
    results = fer(path, aligned=True, smoothing=0.5)
    assert [item.faces[0].track for item in results] == [1] * 5


def test_what_a_strange_checkpoint_says(work_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(work_dir, tmp_path / 'work')
    path = folder / 'epoch_5.pth'
    meta = dict(FERPlus.METAINFO, licence='\x1b]0;owned\x07' + 'x' * 999)
    edit(path, path, dataset_meta=meta)
    about = FERInferencer(folder).about
    assert about.isprintable() and len(about) < 400
    for wrong in (5, 'abcdefgh', ['\x1b[2J', *'abcdefg']):
        meta['classes'] = wrong
        edit(path, path, dataset_meta=meta)
        match = 'be printed' if isinstance(wrong, list) else 'names of the'
        with pytest.raises(ValueError, match=match):
            FERInferencer(folder)


def test_draw_faces(fer, image_of):
    image = image_of(2)
    before = image.copy()
    faces = fer(image)[0].faces
    drawn = draw_faces(image, faces)
    assert (image == before).all() and drawn.shape == image.shape
    assert (drawn != image).any()
    assert (draw_faces(image, []) == image).all()
    # Names in any letters, and boxes that reach out of the image
    face = faces[0]
    face.scores = {'glücklich': 0.6, '幸せ': 0.4}
    face.bbox = np.array([-30, -20, 500, 400], np.float32)
    assert draw_faces(image, [face]).shape == image.shape
    face.bbox = None
    assert (draw_faces(image, [face]) == image).all()


def test_draw_many_faces():
    """As many as the detector gives at most."""
    rng = np.random.default_rng(0)
    faces = []
    for left, top in rng.uniform(0, 1500, (750, 2)):
        box = np.array([left, top, left + 20, top + 20], np.float32)
        faces.append(inferencer.FaceResult({'neutral': 1.}, box))
    start = time.process_time()
    draw_faces(np.zeros((1500, 1500, 3), np.uint8), faces)
    assert time.process_time() - start < 5


def test_fonts_of_bitmaps_are_not_taken(tmp_path, monkeypatch):
    """They have one size, as those of emoji do."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(['.notdef', 'sick'])
    builder.setupCharacterMap({0x1f92e: 'sick'})
    builder.setupNameTable({})
    builder.save(tmp_path / 'emoji.ttf')
    monkeypatch.setattr(drawing, '_font_files',
                        lambda: iter([str(tmp_path / 'emoji.ttf')]))
    drawing.find_font.cache_clear()
    assert drawing.find_font('\U0001f92e') == ''
    drawing.find_font.cache_clear()
