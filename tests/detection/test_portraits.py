# Copyright (c) dan_mm contributors. All rights reserved.
"""Portraits that are pasted into other images, and the metric of detectors
that are trained on them."""
import csv
import hashlib
import itertools
import json
import os.path as osp
import runpy
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.runner import Runner

import dan_mm.detection  # noqa: F401

FOLDER = f'{ROOT}/tools/portraits'
CONFIG = f'{FOLDER}/retinaface_mobilenet0.25_portraits.py'
TOOL = f'{FOLDER}/paste_faces.py'
POINTS = ('left_eye', 'right_eye', 'nose', 'left_mouth', 'right_mouth')
NUMBERS = [f'{name}_{axis}' for name in POINTS for axis in 'xy']

# ---------------------------------------------------------------- the metric


@pytest.fixture(scope='module', autouse=True)
def tools():
    """Training and testing import what is beside them, in tools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(f'{ROOT}/tools')
        import_module('portraits.landmark_metric')
        yield


def face(bbox, points=None, ignore=0):
    known = [] if points is None else [[x, y, 1.] for x, y in points]
    keypoints = sum(known, []) or [-1, -1, 0] * 5
    return dict(
        bbox=list(bbox), bbox_label=0, ignore_flag=ignore, keypoints=keypoints)


def data_sample(found, instances):
    """The prediction of an image.

    Args:
        found (list): A box, a score and landmarks for each detection.
    """
    bboxes, scores, points = zip(*found) if found else ((), (), ())
    return dict(
        instances=instances,
        pred_instances=dict(
            bboxes=torch.tensor(bboxes, dtype=torch.float64).reshape(-1, 4),
            scores=torch.tensor(scores, dtype=torch.float64),
            keypoints=torch.tensor(np.array(points)).reshape(-1, 5, 2)))


def evaluate(*samples, **kwargs):
    metric = METRICS.build(dict(type='FaceLandmarkMetric', **kwargs))
    for sample in samples:
        metric.process({}, [sample])
    metrics = metric.evaluate(len(samples))
    return [
        metrics[f'faces/{name}']
        for name in ('recall', 'false_positives', 'nme')
    ]


BOX = (10, 10, 30, 40)
MARKS = np.array([[14., 20], [24, 20], [19, 26], [15, 32], [23, 32]])


def test_values():
    # One landmark is 3 and 4 pixels off, and the eyes have a distance of 10.
    moved = MARKS.copy()
    moved[2] += 3, 4
    other = (50, 50, 70, 80)
    sample = data_sample(
        [(BOX, 0.9, moved), (other, 0.4, MARKS + 40)],
        [face(BOX, MARKS), face(other, MARKS + 40)])
    assert evaluate(sample) == pytest.approx([1 / 2, 0, 5 / 5 / 10])
    # The second counts from 0.4 on.
    assert evaluate(sample, score_thr=0.4) == pytest.approx([1, 0, 0.05])
    # 20 of 30 rows are those of the face: an IoU of a half is enough.
    half = (10, 20, 30, 50)
    sample = data_sample([(half, 0.9, MARKS)], [face(BOX, MARKS)])
    assert evaluate(sample) == pytest.approx([1, 0, 0])
    assert evaluate(sample, iou_thr=0.51)[:2] == [0, 1]


def test_nothing_found():
    found, false, error = evaluate(data_sample([], [face(BOX, MARKS)]))
    assert (found, false) == (0, 0) and np.isnan(error)
    found, false, error = evaluate(data_sample([(BOX, 0.9, MARKS)], []))
    assert np.isnan(found) and false == 1 and np.isnan(error)


def test_unknown_landmarks_have_no_error():
    sample = data_sample([(BOX, 0.9, MARKS)], [face(BOX)])
    known = data_sample([(BOX, 0.9, MARKS + (0, 2))], [face(BOX, MARKS)])
    assert evaluate(sample, known) == pytest.approx([1, 0, 0.2])
    assert np.isnan(evaluate(sample)[2])
    # One that is unknown is enough.
    partly = face(BOX, MARKS)
    partly['keypoints'][-3:] = -1, -1, 0
    assert np.isnan(evaluate(data_sample([(BOX, 0.9, MARKS)], [partly]))[2])


def test_ignored_faces_count_neither_for_nor_against():
    sample = data_sample([(BOX, 0.9, MARKS), (BOX, 0.8, MARKS)],
                         [face(BOX, MARKS, ignore=1)])
    found, false, error = evaluate(sample)
    assert np.isnan(found) and false == 0 and np.isnan(error)


def plain_evaluation(samples):
    """The same in words: pairs of detections and faces, one by one."""
    hits = faces = false = 0
    errors = []
    for found, instances in samples:
        open_faces = list(instances)
        faces += len(open_faces)
        for bbox, score, points in sorted(found, key=lambda item: -item[1]):
            if score < 0.5:
                continue
            best, best_iou = None, 0.5
            for candidate in open_faces:
                a, b = np.zeros((2, 100, 100), bool)
                for mask, box in (a, bbox), (b, candidate['bbox']):
                    left, top, right, bottom = box
                    mask[top:bottom, left:right] = True
                iou = (a & b).sum() / (a | b).sum()
                if iou > best_iou or iou == best_iou and best is None:
                    best, best_iou = candidate, iou
            if best is None:
                false += 1
                continue
            open_faces = [one for one in open_faces if one is not best]
            hits += 1
            marks = np.array(best['keypoints']).reshape(5, 3)
            if (marks[:, 2] == 1).all():
                eyes = np.hypot(*(marks[0] - marks[1])[:2])
                errors.append(
                    sum(np.hypot(*(p - m[:2]))
                        for p, m in zip(points, marks)) / 5 / eyes)
    return hits / faces, false / len(samples), sum(errors) / len(errors)


@pytest.mark.parametrize('seed', range(5))
def test_equals_a_plain_evaluation(seed):
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(30):
        corners = rng.integers(0, 60, (rng.integers(1, 5), 2))
        boxes = np.hstack(
            [corners, corners + rng.integers(10, 35, corners.shape)])
        instances = [
            face(
                box,
                MARKS + rng.normal(0, 2,
                                   (5, 2)) if rng.random() < 0.7 else None)
            for box in boxes.tolist()
        ]
        near = boxes[rng.integers(0, len(boxes), 6)]
        near = np.clip(near + rng.integers(-3, 4, near.shape), 0, 100)
        found = [(box, rng.uniform(0.3, 1), MARKS + rng.normal(0, 2, (5, 2)))
                 for box in near[:rng.integers(0, 7)].tolist()]
        samples.append((found, instances))
    expected = plain_evaluation(samples)
    assert evaluate(*(data_sample(*sample)
                      for sample in samples)) == pytest.approx(expected)
    assert 0.3 < expected[0] < 1 and expected[1] > 0.3


# ------------------------------------------------------------------ the tool


def run(*arguments):
    runpy.run_path(TOOL)['main']([str(item) for item in arguments])


# Colours of the landmarks that no other part of an image has, B, G and R
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
PLACES = np.array([[80, 90], [160, 90], [120, 130], [90, 160], [150, 160]])
MOVED = np.array([6, 9])


def draw_portrait(person, shift=(0, 0), dots=True):
    """A grey portrait of 240 x 240 pixels, with coloured landmarks."""
    img = cv2.resize(draw_face(person), (240, 240))
    img = np.repeat(np.clip(img, 60, 200)[..., None], 3, 2)
    img = np.roll(img, (shift[1], shift[0]), (0, 1))
    for place, colour in zip(PLACES + shift if dots else (), COLOURS):
        cv2.circle(img, place.tolist(), 9, colour, -1)
    return img


def portraits(root, persons=5, dots=True):
    """Portraits of persons: one with landmarks, one without that is moved."""
    root.mkdir()
    rows = []
    for person in range(persons):
        for expression in 'neutral', 'happiness':
            neutral = expression == 'neutral'
            name = f'{person}_{expression}.png'
            shift = (0, 0) if neutral else MOVED
            cv2.imwrite(str(root / name), draw_portrait(person, shift, dots))
            # A pixel's middle is half a pixel from its corner.
            numbers = (PLACES + 0.5).ravel() if neutral else [''] * 10
            rows.append([name, f'p{person}', expression, *numbers])
    write_index(root, rows)
    return root


def write_index(root, rows, header=('file', 'person', 'expression', *NUMBERS)):
    with open(root / 'index.csv', 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


def backgrounds(root):
    root.mkdir()
    y, x = np.mgrid[:200, :300]
    img = np.dstack([90 + x % 40, 90 + y % 40, 90 + (x + y) % 40])
    cv2.imwrite(str(root / 'a.png'), img)
    return root


def tree(root):
    return {
        str(path.relative_to(root)):
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(root).rglob('*') if path.is_file()
    }


def load(root, split):
    return DATASETS.build(
        dict(
            type='WiderFaceLandmarks',
            data_root=str(root),
            ann_file=f'{split}/label.txt',
            data_prefix=dict(img=f'{split}/images'),
            test_mode=True))


@pytest.fixture(scope='module')
def pasted(tmp_path_factory):
    root = tmp_path_factory.mktemp('pasted')
    run(
        portraits(root / 'src'), root / 'dst', '--images', 30, 20, '--size',
        400, '--backgrounds', backgrounds(root / 'backgrounds'))
    return root


def find_dots(img, bbox):
    """Find the coloured dots in a box of an image, NaN where one is not."""
    left, top, right, bottom = np.round(bbox).astype(int)
    crop = img[top:bottom, left:right].astype(int)
    points = []
    for colour in COLOURS:
        y, x = (abs(crop - colour) < 90).all(2).nonzero()
        points.append([x.mean() + left +
                       0.5, y.mean() + top + 0.5] if len(x) > 3 else [np.nan] *
                      2)
    return np.array(points)


def test_boxes_and_landmarks_are_where_the_face_is(pasted):
    known, unknown = [], []
    for split in 'train', 'val':
        for image in load(pasted / 'dst', split):
            img = cv2.imread(image['img_path'])
            assert img.shape == (400, 400, 3) and image['instances']
            for item in image['instances']:
                bbox = np.array(item['bbox'])
                assert (bbox >= 0).all() and (bbox <= 400).all()
                marks = np.array(item['keypoints']).reshape(5, 3)
                dots = find_dots(img, bbox)
                seen = np.isfinite(dots).all(1)
                if split == 'val':
                    assert seen.all()
                    assert len(set(marks[:, 2])) == 1
                if marks[:, 2].any():
                    both = seen & (marks[:, 2] == 1)
                    # Of a cut dot, a part is seen.
                    inside = ((marks[:, :2] > 8) &
                              (marks[:, :2] < 392)).all(1) & both
                    known += list(abs(dots - marks[:, :2])[inside].ravel())
                else:
                    unknown.append(dots)
    assert len(known) > 100 and len(unknown) > 20
    assert np.max(known) < 1 and np.mean(known) < 0.25


def test_the_box_goes_with_the_face(pasted):
    """The box of a portrait without landmarks, too, though it is moved."""
    tool = runpy.run_path(TOOL)
    expected = tool['find_box'](PLACES + 0.5)
    assert expected == pytest.approx([
        120 - 1.02 * 75, 125.5 - 1.68 * 75, 120 + 1.04 * 75, 125.5 + 1.21 * 75
    ],
                                     abs=0.51)
    found = tool['load_portraits'](str(pasted / 'src'))
    assert list(found) == [f'p{person}' for person in range(5)]
    for neutral, smiling in found.values():
        assert neutral.bbox == pytest.approx(expected)
        assert smiling.bbox == pytest.approx(expected + np.tile(MOVED, 2))
        assert smiling.landmarks is None


def test_scales_and_places(pasted):
    sides, cut = {}, {}
    for split in 'train', 'val':
        boxes = np.array([
            item['bbox'] for image in load(pasted / 'dst', split)
            for item in image['instances']
        ])
        whole = ((boxes > 0) & (boxes < 400)).all(1)
        cut[split] = (~whole).sum()
        sides[split] = (boxes[:, 2] - boxes[:, 0])[whole] / (2.06 * 75)
        for low, high in (0.19, 0.35), (0.35, 0.7), (0.7, 1.01):
            assert ((sides[split] > low) & (sides[split] < high)).any()
        assert 0.19 < sides[split].min() and sides[split].max() < 1.01
        # All of it
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert centres.min() < 120 and centres.max() > 280
    # The border cuts faces in training only.
    assert cut['train'] > 0 and cut['val'] == 0


def test_no_face_hides_another(pasted):
    several = 0
    for split in 'train', 'val':
        for image in load(pasted / 'dst', split):
            boxes = [item['bbox'] for item in image['instances']]
            several += len(boxes) > 1
            for a, b in itertools.combinations(boxes, 2):
                assert (min(a[2], b[2]) - max(a[0], b[0]) <= 1
                        or min(a[3], b[3]) - max(a[1], b[1]) <= 1)
    assert several > 10


def test_persons_are_apart(tmp_path, capsys):
    src = portraits(tmp_path / 'src', 6)
    for person, i in itertools.product(range(6), range(2)):
        # A person is a shade.
        name = f'{person}_{("neutral", "happiness")[i]}.png'
        cv2.imwrite(
            str(src / name), np.full((240, 240, 3), 40 * person, np.uint8))
    run(src, tmp_path / 'dst', '--images', 30, 30, '--val-ratio', 0.5,
        '--size', 300)
    found = {}
    for split in 'train', 'val':
        found[split] = set()
        for image in load(tmp_path / 'dst', split):
            img = cv2.imread(image['img_path'])
            for item in image['instances']:
                left, top, right, bottom = item['bbox']
                shade = img[int(top + bottom) // 2, int(left + right) // 2]
                found[split].add(round(float(shade.mean()) / 40))
    assert len(found['train']) == len(found['val']) == 3
    assert not found['train'] & found['val']
    output = capsys.readouterr().out.replace('\n', ' ')
    for people in found.values():
        listed = ', '.join(f'p{person}' for person in sorted(people))
        assert f'3 persons: {listed}' in output


def test_the_same_seed_gives_the_same_files(tmp_path):
    src = portraits(tmp_path / 'src')
    before = tree(src)
    options = ['--images', 3, 2, '--size', 200]
    results = []
    for name, seed in ('a', 1), ('b', 1), ('c', 2):
        run(src, tmp_path / name, *options, '--seed', seed)
        results.append(tree(tmp_path / name))
    assert results[0] == results[1] != results[2]
    assert tree(src) == before
    assert len(results[0]) == 7


@pytest.mark.parametrize('spoil, message', [
    (lambda src: (src / 'index.csv').unlink(), 'Found no .*index.csv, expect'),
    (lambda src:
     (src / '1_neutral.png').unlink(), 'Found no image .*1_neutral.png'),
    (lambda src: (src / '1_neutral.png').write_bytes(b'GIF'),
     '1_neutral.png cannot be decoded'),
    (lambda src: write_index(src, [], ['file', 'person']),
     'has no column left_eye_x, .*expected file'),
    (lambda src: write_index(src, [['0_neutral.png', 'p0', '', *'123456789']]),
     r'line 2: found \[.*expected ten numbers'),
    (lambda src: write_index(src, [['0_neutral.png', 'p0', '', *['5'] * 10]]),
     'line 2: .*five different places'),
    (lambda src: write_index(
        src, [['0_neutral.png', 'p0', '', *PLACES.ravel() + 100]]),
     'line 2: .*places in the image'),
    (lambda src: cv2.imwrite(
        str(src / '1_happiness.png'), np.zeros((9, 8, 3), np.uint8)),
     r'portraits of p1 of \[\(8, 9\), \(240, 240\)\] pixels, expected one'),
    (lambda src: write_index(src, [[
        '0_neutral.png', 'p0', '', *PLACES.ravel()
    ], ['1_neutral.png', 'p1', '', *[''] * 10]]),
     r"without landmarks of \['p1'\], expected"),
    (lambda src: write_index(src,
                             [['0_neutral.png', 'p0', '', *PLACES.ravel()]]),
     'has 1 persons.*at least two'),
])
def test_bad_portraits_are_refused(tmp_path, spoil, message):
    src = portraits(tmp_path / 'src', 2)
    spoil(src)
    with pytest.raises(SystemExit, match=message):
        run(src, tmp_path / 'dst')
    assert not (tmp_path / 'dst').exists()


def test_bad_folders_are_refused(tmp_path):
    src = portraits(tmp_path / 'src', 2)
    with pytest.raises(SystemExit, match='neither to be in the other'):
        run(src, src / 'dst')
    with pytest.raises(SystemExit, match='Found no folder .*none'):
        run(src, tmp_path / 'dst', '--backgrounds', tmp_path / 'none')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit, match='has no image by its extension'):
        run(src, tmp_path / 'dst', '--backgrounds', tmp_path / 'empty')
    cv2.imwrite(str(tmp_path / 'empty' / 'a.png'), np.zeros((9, 2), np.uint8))
    with pytest.raises(SystemExit, match='a.png is 2 pixels wide, expected'):
        run(src, tmp_path / 'dst', '--backgrounds', tmp_path / 'empty')
    assert not (tmp_path / 'dst').exists()
    with pytest.raises(SystemExit, match='No portrait fits .*of 9 pixels'):
        run(src, tmp_path / 'dst', '--size', 9, '--images', 1, 1)
    # Another dataset is not overwritten.
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match='dst has files'):
        run(src, tmp_path / 'dst')
    assert tree(tmp_path) == before


# ----------------------------------------------------------- the whole config


@pytest.mark.slow
def test_learns(tmp_path):
    """From scratch on drawn portraits, some of them without landmarks."""
    run(
        portraits(tmp_path / 'src', 5, dots=False), tmp_path / 'data',
        '--images', 16, 4, '--size', 200, '--scales', 0.4, 0.8)
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(tmp_path / 'work_dir')
    cfg.model.backbone.init_cfg = None
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        loader.dataset.data_root = str(tmp_path / 'data')
        loader.update(num_workers=0, persistent_workers=False)
    for transform in cfg.train_dataloader.dataset.pipeline:
        for choice in transform.get('transforms', []):
            choice[0].scale = (96, 96)
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg.update(max_epochs=15, val_interval=15)
    cfg.optim_wrapper.optimizer.lr = 5e-3
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.interval = 15
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor.window_size = 1
    cfg.randomness = dict(seed=0)
    runner = Runner.from_cfg(cfg)
    runner.train()
    metrics = runner.test()
    assert list(metrics) == [
        f'faces/{name}' for name in ('recall', 'false_positives', 'nme')
    ]
    path = osp.join(runner._log_dir, 'vis_data', 'scalars.json')
    with open(path) as file:
        rows = [row for row in map(json.loads, file) if 'loss' in row]
    assert len(rows) == 30
    for key in 'loss', 'loss_cls', 'loss_bbox', 'loss_keypoints':
        values = [row[key] for row in rows]
        assert np.mean(values[-4:]) < 0.5 * np.mean(values[:4]), key
