# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.config import Config
from mmengine.runner import Runner
from scipy.io import savemat

from dan_mm.detection import WiderFaceMetric

CONFIG = f'{ROOT}/configs/retinaface/retinaface_mobilenet0.25_widerface.py'

LABEL = '''# 0--Parade/a.jpg
10 20 30 40 11 21 0.0 31 21 0.0 21 31 1.0 13.5 51 0.0 33 52 0.0 0.82
5 6 7 8 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 0.2
7 7 0 12 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 0.2
# 1--Handshaking/no face.jpg
# 1--Handshaking/b.jpg
1 2 3 4
'''  # noqa: E501
LABELV2 = '''# 0--Parade/a.jpg 100 90
10 20 40 60 11 21 0.0 31 21 0.0 21 31 1.0 13.5 51 0.0 33 52 0.0
5 6 12 14 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0
7 7 7 12 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0
# 1--Handshaking/no face.jpg 30 40
# 1--Handshaking/b.jpg 40 50
1 2 4 6 0
'''  # noqa: E501

# --------------------------------------------------------------- dataset


def dataset(root, content, **kwargs):
    (root / 'label.txt').write_text(content)
    return DATASETS.build(
        dict(
            type='WiderFaceLandmarks',
            data_root=str(root),
            ann_file='label.txt',
            data_prefix=dict(img='images'),
            **kwargs))


@pytest.mark.parametrize('content', [LABEL, LABELV2], ids=['label', 'labelv2'])
def test_reads_both_formats(tmp_path, content):
    data = dataset(tmp_path, content)
    assert len(data) == 3 and data.metainfo['classes'] == ('face', )
    first, second, third = (data.get_data_info(i) for i in range(3))
    assert first['img_path'] == str(tmp_path / 'images/0--Parade/a.jpg')
    assert second['img_path'].endswith('no face.jpg')
    assert second['instances'] == []
    assert [face['bbox'] for face in first['instances']] == [[10, 20, 40, 60],
                                                             [5, 6, 12, 14]]
    assert first['instances'][0]['keypoints'] == [
        11, 21, 1, 31, 21, 1, 21, 31, 1, 13.5, 51, 1, 33, 52, 1
    ]
    for face in first['instances'][1], third['instances'][0]:
        assert face['keypoints'] == [-1, -1, 0] * 5
    assert third['instances'][0]['bbox'] == [1, 2, 4, 6]
    assert ('width' in first) == (content is LABELV2)
    if content is LABELV2:
        assert (first['width'], first['height']) == (100, 90)


def test_leaves_out_images_without_faces(tmp_path):
    filter_cfg = dict(filter_empty_gt=True)
    assert len(dataset(tmp_path, LABEL, filter_cfg=filter_cfg)) == 2
    assert len(
        dataset(tmp_path, LABEL, filter_cfg=filter_cfg, test_mode=True)) == 3


@pytest.mark.parametrize('content, line', [
    ('1 2 3 4\n', 1),
    ('# a.jpg\n1 2 3\n', 2),
    ('# a.jpg\n1 2 3 4\n1 2 x 4\n', 3),
    ('# a.jpg\n\n#\n', 3),
])
def test_refuses_other_annotations(tmp_path, content, line):
    with pytest.raises(
            ValueError, match=f'label.txt, line {line}: found .*expected `# '):
        dataset(tmp_path, content)


def test_missing_annotations(tmp_path):
    with pytest.raises(FileNotFoundError, match='Found no .*none.txt, expect'):
        DATASETS.build(
            dict(
                type='WiderFaceLandmarks',
                data_root=str(tmp_path),
                ann_file='none.txt'))


# -------------------------------------------------------------- transforms


def faces(rng, number, height, width):
    """An image whose pixels say where they are, and faces in it."""
    y, x = np.mgrid[:height, :width]
    img = np.dstack([x % 256, y % 256, x // 256 + 16 * (y // 256)])
    sides = rng.uniform(5, 60, (number, 2))
    corners = rng.uniform(0, np.array([width, height]) - sides)
    points = corners[:, None] + rng.uniform(0, 1,
                                            (number, 5, 2)) * sides[:, None]
    known = rng.integers(0, 2, (number, 1, 1)) * np.ones((number, 5, 1))
    return dict(
        img=img.astype(np.uint8),
        img_shape=(height, width),
        gt_bboxes=np.hstack([corners, corners + sides]).astype(np.float32),
        gt_bboxes_labels=np.arange(number),
        gt_keypoints=np.dstack([points, known]).astype(np.float32))


@pytest.mark.parametrize('seed', range(5))
def test_crops_squares_around_faces(seed):
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    before = faces(rng, 8, 300, 400)
    original = {key: np.copy(value) for key, value in before.items()}
    after = TRANSFORMS.build(dict(type='RandomFaceCrop'))(before)
    height, width = after['img'].shape[:2]
    assert height == width and after['img_shape'] == (height, width)
    assert min(
        abs(height - 300 * scale) for scale in (0.3, 0.45, 0.6, 0.8, 1)) < 1
    blue, green, red = after['img'][0, 0].astype(int)
    shift = np.array([blue + 256 * (red % 16), green + 256 * (red // 16)])
    kept = after['gt_bboxes_labels']
    assert len(kept) and after['gt_bboxes'].dtype == np.float32
    whole = False
    for i, (bbox, keypoints) in enumerate(
            zip(original['gt_bboxes'], original['gt_keypoints'])):
        center = (bbox[:2] + bbox[2:]) / 2 - shift
        assert (i in kept) == bool(((center > 0) & (center < height)).all())
        if i in kept:
            row = list(kept).index(i)
            moved = bbox - np.tile(shift, 2)
            np.testing.assert_allclose(
                after['gt_bboxes'][row], moved.clip(0, height), atol=1e-4)
            whole |= (moved == moved.clip(0, height)).all()
            np.testing.assert_allclose(
                after['gt_keypoints'][row, :, :2],
                (keypoints[:, :2] - shift).clip(0, height),
                atol=1e-4)
            assert (after['gt_keypoints'][row, :, 2] == keypoints[:, 2]).all()
    assert whole


def test_scales_of_crops():
    np.random.seed(0)
    crop = TRANSFORMS.build(dict(type='RandomFaceCrop'))
    sides = []
    for _ in range(200):
        results = faces(np.random.default_rng(0), 1, 100, 100)
        results['gt_bboxes'] = np.array([[40, 40, 50, 50]], np.float32)
        sides.append(len(crop(results)['img']))
    assert set(sides) == {30, 45, 60, 80, 100}


def test_an_image_without_a_square_stays_whole():
    results = faces(np.random.default_rng(0), 1, 100, 200)
    # Wider than the image is high
    results['gt_bboxes'] = np.array([[10, 10, 190, 90]], np.float32)
    after = TRANSFORMS.build(dict(type='RandomFaceCrop', attempts=5))(results)
    assert after['img'].shape == (100, 200, 3)
    padded = TRANSFORMS.build(
        dict(
            type='mmcv.Pad',
            pad_to_square=True,
            pad_val=dict(img=(104, 117, 123))))(
                after)
    assert padded['img'].shape == (200, 200, 3)
    assert padded['img'][150, 20].tolist() == [104, 117, 123]


def test_flip_swaps_left_and_right():
    results = faces(np.random.default_rng(0), 1, 50, 100)
    results['gt_bboxes'] = np.array([[10, 5, 40, 45]], np.float32)
    points = [[15, 20, 1], [35, 21, 1], [25, 30, 1], [16, 40, 1], [34, 41, 1]]
    results['gt_keypoints'] = np.array([points], np.float32)
    after = TRANSFORMS.build(dict(type='RandomFaceFlip', prob=1.))(results)
    assert after['flip'] and after['gt_bboxes'].tolist() == [[60, 5, 90, 45]]
    assert after['gt_keypoints'][0].tolist() == [[65, 21, 1], [85, 20, 1],
                                                 [75, 30, 1], [66, 41, 1],
                                                 [84, 40, 1]]


# ---------------------------------------------------------- the protocol


def write_ground_truth(root, images):
    """Write WIDER's own files.

    Args:
        images (dict): For each event its images, for each of those the
            boxes (left, top, width, height) and the indices, from 0, of each
            subset.
    """

    def cells(values):
        array = np.empty((len(values), 1), object)
        for i, value in enumerate(values):
            array[i, 0] = value
        return array

    names = [cells(list(event)) for event in images.values()]
    boxes = [
        cells([
            np.array(faces, float).reshape(-1, 4)
            for faces, _ in event.values()
        ]) for event in images.values()
    ]
    savemat(
        root / 'wider_face_val.mat',
        dict(
            event_list=cells(list(images)),
            file_list=cells(names),
            face_bbx_list=cells(boxes)))
    for number, subset in enumerate(('easy', 'medium', 'hard')):
        lists = [
            cells([
                np.array(indices[number], np.int32).reshape(-1, 1) + 1
                for _, indices in event.values()
            ]) for event in images.values()
        ]
        savemat(root / f'wider_{subset}_val.mat', dict(gt_list=cells(lists)))


def plain_protocol(images, predictions, subset):
    """The official evaluation, step by step."""
    every = [
        row[4] for event in predictions.values() for rows in event.values()
        for row in rows
    ]
    lowest, highest = min(every), max(every)
    curve, total = np.zeros((1000, 2)), 0
    for event, content in images.items():
        for name, (boxes, indices) in content.items():
            rows = sorted(predictions[event][name], key=lambda row: -row[4])
            total += len(indices[subset])
            if not boxes or not rows:
                continue
            found, is_proposal, recalled = set(), [], []
            for left, top, right, bottom, _ in rows:
                best, best_iou = 0, -1
                for k, (x, y, width, height) in enumerate(boxes):
                    w = min(right, x + width) - max(left, x) + 1
                    h = min(bottom, y + height) - max(top, y) + 1
                    shared = max(w, 0) * max(h, 0)
                    iou = shared / ((right - left + 1) * (bottom - top + 1) +
                                    (width + 1) * (height + 1) - shared)
                    if iou > best_iou:
                        best, best_iou = k, iou
                is_proposal.append(True)
                if best_iou >= 0.5:
                    if best not in indices[subset]:
                        is_proposal[-1] = False
                    else:
                        found.add(best)
                recalled.append(len(found))
            for t in range(1000):
                last = -1
                for i, row in enumerate(rows):
                    score = (row[4] - lowest) / (highest - lowest)
                    if score >= 1 - (t + 1) / 1000:
                        last = i
                if last >= 0:
                    curve[t] += sum(is_proposal[:last + 1]), recalled[last]
    area, height = 0., 0.
    points = [(0., 0.)] + [(hits / total, hits / max(number, 1))
                           for number, hits in curve] + [(1., 0.)]
    for (r0, _), (r1,
                  precision) in reversed(list(zip(points[:-1], points[1:]))):
        height = max(height, precision)
        area += (r1 - r0) * height
    return area


def data_samples(predictions):
    for event, content in predictions.items():
        for name, rows in content.items():
            rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
            yield dict(
                img_path=osp.join('images', event, f'{name}.jpg'),
                pred_instances=dict(bboxes=rows[:, :4], scores=rows[:, 4]))


def random_protocol(seed):
    rng = np.random.default_rng(seed)
    images, predictions = {}, {}
    for event in '0--Parade', '1--Handshaking':
        images[event], predictions[event] = {}, {}
        for number in range(6):
            name = f'{event}_{number}'
            count = rng.integers(0, 7)
            boxes = np.hstack([
                rng.uniform(0, 200, (count, 2)),
                rng.uniform(5, 60, (count, 2))
            ]).round()
            indices = [[i for i in range(count) if rng.random() < share]
                       for share in (0.3, 0.6, 1)]
            near = boxes[rng.integers(0, count, 8)] if count else np.empty(
                (0, 4))
            near = near + rng.normal(0, 3, near.shape)
            rows = np.vstack([near, rng.uniform(5, 200, (5, 4))])
            rows = rows[:rng.integers(0, len(rows) + 1)]
            rows[:, 2:] += rows[:, :2]
            # Some have the same score.
            scores = rng.uniform(0.1, 0.95, (len(rows), 1)).round(2)
            images[event][name] = boxes.tolist(), indices
            predictions[event][name] = np.hstack([rows, scores]).tolist()
    return images, predictions


@pytest.mark.parametrize('seed', range(3))
def test_equals_a_plain_protocol(tmp_path, seed):
    images, predictions = random_protocol(seed)
    write_ground_truth(tmp_path, images)
    metric = METRICS.build(
        dict(type='WiderFaceMetric', ground_truth=str(tmp_path)))
    samples = list(data_samples(predictions))
    # In any order, in batches
    metric.process({}, samples[5:])
    metric.process({}, samples[:5])
    metrics = metric.evaluate(len(samples))
    expected = {
        f'wider_face/{name}': plain_protocol(images, predictions, subset)
        for subset, name in enumerate(('easy', 'medium', 'hard'))
    }
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert len(set(metrics.values())) == 3 and min(metrics.values()) > 0.1


def evaluate(root, images, predictions):
    write_ground_truth(root, images)
    metric = WiderFaceMetric(str(root))
    samples = list(data_samples(predictions))
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_nothing_found(tmp_path):
    images = {'0--Parade': {'a': ([[10, 10, 20, 20]], [[0]] * 3)}}
    metrics = evaluate(tmp_path, images, {'0--Parade': {'a': []}})
    assert set(metrics.values()) == {0}


def test_refuses_what_would_be_no_protocol(tmp_path):
    with pytest.raises(
            FileNotFoundError,
            match=r'Found no .*wider_face_val.mat, .*Set `ground_truth`'):
        WiderFaceMetric(str(tmp_path))
    images, predictions = random_protocol(0)
    write_ground_truth(tmp_path, images)
    del predictions['0--Parade']['0--Parade_3']
    metric = WiderFaceMetric(str(tmp_path))
    samples = list(data_samples(predictions))
    metric.process({}, samples)
    with pytest.raises(
            ValueError, match='for 11 of the 12 images.*0--Parade_3'):
        metric.evaluate(len(samples))


# ------------------------------------------------------- the whole config


@pytest.fixture
def wider_root(tmp_path):
    """A small WIDER FACE of drawn faces."""
    images = {}
    for split in 'train', 'val':
        folder = tmp_path / split / 'images' / '0--Parade'
        folder.mkdir(parents=True)
        lines = []
        for number in range(4):
            img = np.full((120, 150, 3), 90, np.uint8)
            img[30:78, 40:88] = draw_face(number)[..., None]
            cv2.imwrite(str(folder / f'{number}.jpg'), img)
            points = ' '.join(f'{x} {y} 0.0'
                              for x, y in ((56, 50), (72, 50), (64, 56),
                                           (58, 62), (70, 62)))
            lines += [f'# 0--Parade/{number}.jpg', f'40 30 48 48 {points} 0.9']
            images[str(number)] = [[40, 30, 48, 48]], [[0], [0], [0]]
        (tmp_path / split / 'label.txt').write_text('\n'.join(lines))
    (tmp_path / 'val' / 'ground_truth').mkdir()
    write_ground_truth(tmp_path / 'val' / 'ground_truth',
                       {'0--Parade': images})
    return tmp_path


def small_config(root):
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(root / 'work_dir')
    cfg.model.backbone.init_cfg = None
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        loader.dataset.data_root = str(root)
        loader.update(num_workers=0, persistent_workers=False)
    for transform in cfg.train_dataloader.dataset.pipeline:
        for choice in transform.get('transforms', []):
            choice[0].scale = (160, 160)
    cfg.train_dataloader.batch_size = 4
    for evaluator in cfg.val_evaluator, cfg.test_evaluator:
        evaluator.ground_truth = str(root / 'val' / 'ground_truth')
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 1
    return cfg


def test_pipeline_of_training(wider_root):
    cfg = small_config(wider_root)
    data = DATASETS.build(cfg.train_dataloader.dataset)
    np.random.seed(0)
    for index in range(4):
        sample = data[index]
        assert sample['inputs'].shape == (3, 160, 160)
        gt_instances = sample['data_samples'].gt_instances
        assert gt_instances.keypoints.shape == (1, 5, 3)
        left, top, right, bottom = gt_instances.bboxes[0].tolist()
        x, y, known = gt_instances.keypoints[0].unbind(-1)
        assert (known == 1).all() and x[0] < x[2] < x[1] and x[3] < x[4]
        assert ((x > left) & (x < right) & (y > top) & (y < bottom)).all()
        # The eyes are dark in the image, too.
        places = [(int(y[eye]), int(x[eye])) for eye in (0, 1)]
        image = sample['inputs'].float().mean(0)
        face = image[int(top):int(bottom), int(left):int(right)]
        assert all(image[place] < face.mean() for place in places)


@pytest.mark.slow
def test_trains_and_tests(wider_root, monkeypatch):
    cfg = small_config(wider_root)
    runner = Runner.from_cfg(cfg)
    runner.train()
    metrics = runner.test()
    assert set(metrics) == {
        f'wider_face/{subset}'
        for subset in ('easy', 'medium', 'hard')
    }
    work_dir = wider_root / 'work_dir'
    assert (work_dir / 'epoch_2.pth').is_file()
    # The tool draws what was found.
    config, = work_dir.glob('*.py')
    arguments = [config, work_dir / 'epoch_2.pth', '--work-dir', work_dir]
    monkeypatch.chdir(wider_root)
    monkeypatch.setattr(
        sys, 'argv', ['test.py', *map(str, arguments), '--show-dir', 'drawn'])
    runpy.run_path(f'{ROOT}/tools/test.py', run_name='__main__')
    drawn = sorted(path.name for path in (wider_root / 'drawn').iterdir())
    assert drawn == ['0.jpg', '1.jpg', '2.jpg', '3.jpg']


def test_pipeline_of_testing(wider_root):
    cfg = small_config(wider_root)
    data = DATASETS.build(cfg.test_dataloader.dataset)
    sample = data[0]['data_samples']
    assert sample.ori_shape == sample.img_shape == (120, 150)
    assert sample.scale_factor == (1, 1)
    versions = Compose(cfg.tta_pipeline)(data.get_data_info(0))
    assert [one.flip for one in versions['data_samples']] == [False, True]
