# Copyright (c) dan_mm contributors. All rights reserved.
import json
import runpy
from copy import deepcopy

import cv2
import numpy as np
import pytest
import retinaface_reference
import torch
from conftest import ROOT, shared
from mmdet.apis import inference_detector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from dan_mm.detection import FaceLocalVisualizer

CONFIGS = f'{ROOT}/configs/retinaface'
IMAGES = [
    'faces_london/001_neutral.jpg', 'faces_london/001_happiness.jpg',
    'faces_london/011_neutral.jpg', 'group_photo/solvay_1927.jpg'
]


def build(name='mobilenet0.25'):
    cfg = Config.fromfile(f'{CONFIGS}/retinaface_{name}_widerface.py')
    cfg.model.backbone.pop('init_cfg')
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def annotated(bboxes, keypoints=None, size=128):
    """An image's faces as the dataset gives them."""
    bboxes = torch.as_tensor(bboxes, dtype=torch.float).reshape(-1, 4)
    gt_instances = InstanceData(
        bboxes=bboxes, labels=torch.zeros(len(bboxes), dtype=torch.long))
    if keypoints is not None:
        gt_instances.keypoints = torch.as_tensor(keypoints, dtype=torch.float)
    meta = dict(img_shape=(size, size), scale_factor=(1., 1.))
    return DetDataSample(metainfo=meta, gt_instances=gt_instances)


def random_faces(rng, number, size=128):
    """Boxes in an image, and landmarks of which some are unknown."""
    sides = rng.uniform(10, size, (number, 2))
    corners = rng.uniform(-5, size - 5, (number, 2))
    keypoints = np.concatenate([
        rng.uniform(0, size, (number, 5, 2)),
        rng.integers(0, 2, (number, 1, 1)) * np.ones((number, 5, 1))
    ], 2)
    return np.hstack([corners, corners + sides]), keypoints


def predict_raw(model, x):
    """Decode every anchor, in its order."""
    with torch.no_grad():
        outs = model.bbox_head(model.extract_feat(x))
        return model.bbox_head.predict_by_feat(
            *outs,
            batch_img_metas=[{}] * len(x),
            cfg=dict(score_thr=-1),
            with_nms=False)


def normalized(img):
    x = torch.from_numpy(np.float32(img) - (104, 117, 123)).float()
    return x.permute(2, 0, 1)[None]


# --------------------------------------------------------------- parity


@pytest.mark.parametrize('name', IMAGES)
def test_equals_the_original(detector, name):
    with open(shared('golden', 'retinaface_original.json')) as file:
        golden = json.load(file)[name]
    path = shared('data', *name.split('/'))
    img = cv2.imread(path)
    assert list(img.shape[1::-1]) == golden['size']

    raw, found = golden['raw'], predict_raw(detector, normalized(img))[0]
    assert len(found) == raw['n_priors']
    assert abs(found.scores.sum() - raw['score_sum']) < 1e-2

    def compare(instances, bboxes, scores, keypoints):
        errors = [
            np.abs(ours.numpy() - np.array(theirs).reshape(ours.shape)).max()
            for ours, theirs in ((instances.bboxes,
                                  bboxes), (instances.keypoints, keypoints),
                                 (instances.scores, scores))
        ]
        print(f'{name}: boxes {errors[0]:.0e} px, landmarks {errors[1]:.0e} '
              f'px, scores {errors[2]:.0e}')
        assert max(errors[:2]) < 1e-2 and errors[2] < 1e-4

    # Of the largest image there are fewer.
    compare(found[::997][:len(raw['box_head'])], raw['box_head'],
            raw['score_head'], raw['lm_head'])

    found = inference_detector(detector, path).pred_instances
    faces = found[found.scores > 0.5]
    expected = golden['detections']
    assert len(faces) == len(expected)
    compare(
        faces,
        *([face[key] for face in expected]
          for key in ('bbox', 'score', 'landmarks')))


@torch.no_grad()
def test_every_anchor_equals_a_plain_implementation(detector, original):
    """On an image whose sides no stride divides."""
    img = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    img = img[400:701, 200:611]
    boxes, scores, landmarks = original(normalized(img))
    bboxes, points = retinaface_reference.decode(boxes[0], landmarks[0],
                                                 *img.shape[:2])
    found = predict_raw(detector, normalized(img))[0]
    assert len(found) == 2 * (38 * 52 + 19 * 26 + 10 * 13) == len(bboxes)
    assert np.abs(found.bboxes.numpy() - bboxes).max() < 1e-2
    assert np.abs(found.keypoints.flatten(1).numpy() - points).max() < 1e-2
    assert (found.scores - scores[0, :, 1]).abs().max() < 1e-6

    expected = retinaface_reference.detect(original, img)
    found = inference_detector(detector, img).pred_instances
    # Those below may be on either side of the threshold.
    expected = expected[expected[:, 4] > 0.021]
    found = found[found.scores > 0.021]
    assert len(expected) == len(found) > 5
    assert np.abs(expected[:, :4] - found.bboxes.numpy()).max() < 1e-2


# ------------------------------------------------------------- training


@pytest.mark.parametrize(
    'name', ['mobilenet0.25',
             pytest.param('r50', marks=pytest.mark.slow)])
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build(name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # ResNet's blocks begin as identities.
            torch.nn.init.ones_(module.weight)
    bboxes, keypoints = random_faces(np.random.default_rng(0), 3, 96)
    keypoints[..., 2] = 1
    # Faces of all levels
    bboxes[:, 2:] = bboxes[:, :2] + [[20], [70], [250]]
    sample = annotated(bboxes, keypoints, 96)
    losses = model(torch.randn(2, 3, 96, 96), [sample, sample], mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_keypoints'}
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


def reference_loss(scores, boxes, landmarks, anchors, images, ratio=7):
    """One anchor after the other, in float64."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.
        return width * height / ((a[2] - a[0]) * (a[3] - a[1]) +
                                 (b[2] - b[0]) *
                                 (b[3] - b[1]) - width * height)

    def smooth_l1(difference):
        difference = abs(difference)
        return (difference**2 / 2 if difference < 1 else difference - 0.5)

    cls = box = kpt = faces = faces_known = 0
    for i, (bboxes, keypoints) in enumerate(images):
        owner = {}
        overlaps = [[iou(bbox, anchor) for anchor in anchors]
                    for bbox in bboxes]
        for j in range(len(anchors)):
            best = max(
                range(len(bboxes)), key=lambda k: overlaps[k][j], default=None)
            if best is not None and overlaps[best][j] >= 0.35:
                owner[j] = best
        for k in range(len(bboxes)):
            best = max(range(len(anchors)), key=lambda j: overlaps[k][j])
            if overlaps[k][best] >= 0.2:
                owner[best] = k
        loss = {}
        for j in range(len(anchors)):
            face, background = scores[i][j]
            target = face if j in owner else background
            loss[j] = np.logaddexp(face, background) - target
        negatives = sorted((loss[j] for j in loss if j not in owner),
                           reverse=True)
        cls += sum(loss[j] for j in owner)
        cls += sum(negatives[:ratio * len(owner)])
        faces += len(owner)
        for j, k in owner.items():
            left, top, right, bottom = anchors[j]
            width, height = right - left, bottom - top
            x, y = (left + right) / 2, (top + bottom) / 2
            bbox = bboxes[k]
            targets = (((bbox[0] + bbox[2]) / 2 - x) / width / 0.1,
                       ((bbox[1] + bbox[3]) / 2 - y) / height / 0.1,
                       np.log((bbox[2] - bbox[0]) / width) / 0.2,
                       np.log((bbox[3] - bbox[1]) / height) / 0.2)
            box += sum(
                smooth_l1(boxes[i][j][n] - targets[n]) for n in range(4))
            faces_known += keypoints[k][0][2] > 0
            for n, (px, py, known) in enumerate(keypoints[k]):
                if known > 0:
                    kpt += smooth_l1(landmarks[i][j][2 * n] -
                                     (px - x) / width / 0.1)
                    kpt += smooth_l1(landmarks[i][j][2 * n + 1] -
                                     (py - y) / height / 0.1)
    return (cls / max(faces, 1), 2 * box / max(faces, 1),
            kpt / max(faces_known, 1))


@pytest.mark.parametrize('seed', range(4))
def test_loss_equals_a_plain_implementation(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head = build().bbox_head
    # The last image has no faces.
    images = [random_faces(rng, number, 64) for number in (3, 12, 0)]
    outs = head([torch.randn(3, 64, size, size) * 5 for size in (8, 4, 2)])
    samples = [annotated(*image, 64) for image in images]
    losses = head.loss_by_feat(*outs,
                               [sample.gt_instances for sample in samples],
                               [sample.metainfo for sample in samples])

    def flatten(maps, size):
        return torch.cat(
            [level.permute(0, 2, 3, 1).reshape(3, -1, size) for level in maps],
            1).double().tolist()

    anchors = []
    for step, sizes in (8, (16, 32)), (16, (64, 128)), (32, (256, 512)):
        for y in range(64 // step):
            for x in range(64 // step):
                for size in sizes:
                    cx, cy = (x + 0.5) * step, (y + 0.5) * step
                    anchors.append((cx - size / 2, cy - size / 2,
                                    cx + size / 2, cy + size / 2))
    expected = reference_loss(
        flatten(outs[0], 2), flatten(outs[1], 4), flatten(outs[2], 10),
        anchors, images)
    found = [
        losses[f'loss_{name}'].item() for name in ('cls', 'bbox', 'keypoints')
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert min(expected) > 0.1


def test_losses_without_faces_or_landmarks():
    model = build()
    x = torch.randn(1, 3, 64, 64)
    losses = model(x, [annotated([], np.zeros((0, 5, 3)))], mode='loss')
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    # Processes wait for the gradients of each other.
    assert all(value.grad is not None for value in model.parameters())
    # A dataset of boxes only
    losses = model(x, [annotated([[10, 10, 40, 42]])], mode='loss')
    assert losses['loss_bbox'] > 0 and losses['loss_keypoints'] == 0
    sum(losses.values()).backward()


def test_a_face_that_no_anchor_reaches_is_left_out():
    head = build().bbox_head
    outs = head([torch.randn(1, 64, size, size) for size in (8, 4, 2)])
    sample = annotated([[30, 30, 33, 33]], np.ones((1, 5, 3)))
    losses = head.loss_by_feat(*outs, [sample.gt_instances], [{}])
    assert all(loss == 0 for loss in losses.values())


def test_trains_after_inference_mode():
    """The anchors are shared between the two."""
    model = build()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        predict_raw(model, x)
    sample = annotated([[10, 10, 40, 42]], np.ones((1, 5, 3)))
    sum(model(x, [sample], mode='loss').values()).backward()
    deepcopy(model)


# ------------------------------------------------------------ inference


def test_keeps_the_best_before_suppression():
    torch.manual_seed(0)
    head = build().bbox_head
    outs = head([torch.randn(1, 64, size, size) for size in (8, 4, 2)])
    every = head.predict_by_feat(
        *outs, [{}], cfg=dict(score_thr=0.), with_nms=False)[0]
    best = head.predict_by_feat(
        *outs, [{}], cfg=dict(score_thr=0., nms_pre=10), with_nms=False)[0]
    order = every.scores.argsort(descending=True)[:10]
    for key in 'scores', 'bboxes', 'keypoints':
        assert torch.equal(best[key], every[key][order])
    some = head.predict_by_feat(
        *outs, [{}], cfg=dict(score_thr=0.5), with_nms=False)[0]
    assert torch.equal(some.bboxes, every.bboxes[every.scores > 0.5])
    none = head.predict_by_feat(*outs, [{}], cfg=dict(score_thr=1.))[0]
    assert len(none) == 0 and none.keypoints.shape == (0, 5, 2)


def test_suppression_and_rescaling_keep_landmarks_with_their_boxes():
    head = build().bbox_head
    bboxes = torch.tensor([[10., 10, 30, 30], [11, 11, 31, 31],
                           [50, 50, 90, 90]])
    results = InstanceData(
        bboxes=bboxes,
        scores=torch.tensor([0.5, 0.9, 0.7]),
        labels=torch.zeros(3, dtype=torch.long),
        keypoints=bboxes[:, None, :2] + torch.arange(0., 10, 2)[:, None])
    kept = head._bbox_post_process(
        results,
        Config(dict(nms=dict(type='nms', iou_threshold=0.4), max_per_img=10)),
        rescale=True,
        img_meta=dict(scale_factor=(0.5, 0.25)))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
    assert kept.bboxes[0].tolist() == [22, 44, 62, 124]
    assert kept.keypoints[0, :2].tolist() == [[22, 44], [26, 52]]
    assert torch.equal(kept.keypoints[:, 0], kept.bboxes[:, :2])


def test_arrays_lists_and_sizes(detector):
    path = shared('data', 'faces_london', '001_neutral.jpg')
    one = inference_detector(detector, path).pred_instances
    img = cv2.imread(path)
    several = inference_detector(detector, [img, img[:601, :555]])
    assert torch.equal(several[0].pred_instances.bboxes, one.bboxes)
    first = [sample.pred_instances[0] for sample in several]
    assert first[0].scores > 0.9 and first[1].scores > 0.9
    assert (first[0].keypoints - first[1].keypoints).abs().max() < 3
    # The right part of the image is on the right of the face.
    left_eye, right_eye, nose, left, right = one.keypoints[0]
    assert left_eye[0] < nose[0] < right_eye[0] and left[0] < right[0]
    assert left_eye[1] < nose[1] < left[1]


def test_limits_the_longer_side(detector):
    path = shared('data', 'faces_london', '001_neutral.jpg')
    one = inference_detector(detector, path).pred_instances[0]
    detector.cfg.test_dataloader.dataset.pipeline[1].max_side = 320
    other = inference_detector(detector, path)
    assert other.img_shape == (320, 320)
    found = other.pred_instances[0]
    assert (one.bboxes - found.bboxes).abs().max() < 15
    assert (one.keypoints - found.keypoints).abs().max() < 8


def faces_of(detector, img):
    instances = inference_detector(detector, img).pred_instances
    return instances[instances.scores > 0.5]


def test_grey_and_transparent_images(detector):
    img = cv2.imread(shared('data', 'faces_london', '001_neutral.jpg'))
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)
    assert len(faces_of(detector, grey)) == 1
    assert torch.equal(
        faces_of(detector, grey).bboxes,
        faces_of(detector, grey[..., None]).bboxes)
    transparent = np.dstack([img, np.zeros(img.shape[:2], np.uint8)])
    assert torch.equal(
        faces_of(detector, transparent).bboxes,
        faces_of(detector, img).bboxes)


@pytest.mark.parametrize('img', [
    np.zeros((8, 8, 3), np.float32),
    np.zeros((8, 8, 2), np.uint8),
    np.zeros((0, 8, 3), np.uint8),
    np.zeros((1, 8, 8, 3), np.uint8),
])
def test_refuses_other_arrays(detector, img):
    with pytest.raises(
            ValueError, match=r'as an image, expected uint8 of shape'):
        inference_detector(detector, img)


def test_a_face_that_the_border_cuts(detector):
    img = cv2.imread(shared('data', 'faces_london', '001_neutral.jpg'))
    whole = faces_of(detector, img)[0]
    cut = faces_of(detector, img[:, 300:])
    assert len(cut) == 1
    # The box and the landmarks reach out of the image.
    assert cut.bboxes[0, 0] < 0 and cut.keypoints[0, 0, 0] < 10
    shift = torch.tensor([300, 0])
    assert (cut.keypoints[0] + shift - whole.keypoints).abs().max() < 40


# ------------------------------------------- augmentation, visualization


def flipped_sample(flip, direction, instances):
    return DetDataSample(
        metainfo=dict(
            flip=flip, flip_direction=direction, ori_shape=(100, 200)),
        pred_instances=instances)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_merges_flipped_predictions(direction):
    tta = MODELS.build(
        dict(
            type='RetinaFaceTTA',
            module=build(),
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.4), max_per_img=2)))
    points = torch.tensor([[20., 30], [40, 31], [30, 40], [22, 50], [39, 52]])
    bboxes = torch.tensor([[10., 20, 50, 60]])

    def instances(bboxes, keypoints, score):
        return InstanceData(
            bboxes=bboxes,
            scores=torch.tensor([score]),
            labels=torch.zeros(1, dtype=torch.long),
            keypoints=keypoints[None])

    mirrored, box = points.clone(), bboxes.clone()
    if direction != 'vertical':
        mirrored[:, 0] = 200 - mirrored[:, 0]
        mirrored = mirrored[[1, 0, 2, 4, 3]]
        box[:, [0, 2]] = 200 - box[:, [2, 0]]
    if direction != 'horizontal':
        mirrored[:, 1] = 100 - mirrored[:, 1]
        box[:, [1, 3]] = 100 - box[:, [3, 1]]
    merged = tta.merge_preds([[
        flipped_sample(False, None, instances(bboxes + 1, points + 1, 0.6)),
        flipped_sample(True, direction, instances(box, mirrored, 0.8)),
    ]])[0].pred_instances
    assert len(merged) == 1 and merged.scores == 0.8
    torch.testing.assert_close(merged.bboxes, bboxes)
    torch.testing.assert_close(merged.keypoints[0], points)

    empty = InstanceData(
        bboxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
        keypoints=torch.zeros(0, 5, 2))
    merged = tta.merge_preds([[
        flipped_sample(False, None, empty),
        flipped_sample(True, direction, empty)
    ]])
    assert len(merged[0].pred_instances) == 0


def test_augmented_inference_finds_the_same(detector):
    from mmcv.transforms import Compose
    cfg = detector.cfg
    tta = MODELS.build(dict(cfg.tta_model, module=detector))
    tta.eval()
    path = shared('data', 'faces_london', '001_neutral.jpg')
    data = Compose(cfg.tta_pipeline)(dict(img_path=path, img_id=0))
    data = {key: [[item] for item in value] for key, value in data.items()}
    with torch.no_grad():
        found = tta.test_step(data)[0].pred_instances
    one = inference_detector(detector, path).pred_instances[0]
    assert found.scores[0] > 0.99
    assert (found.keypoints[0] - one.keypoints).abs().max() < 8
    # An error of the sides would be a hundred pixels.
    assert one.keypoints[0, 1, 0] - one.keypoints[0, 0, 0] > 80


def test_draws_landmarks():
    visualizer = FaceLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('face', ), palette=[(0, 255, 0)])
    img = np.full((120, 120, 3), 90, np.uint8)
    points = torch.tensor([[40., 40], [80, 40], [60, 60], [45, 80], [75, 80]])
    instances = InstanceData(
        bboxes=torch.tensor([[20., 20, 100, 100]]),
        scores=torch.tensor([0.9]),
        labels=torch.zeros(1, dtype=torch.long),
        keypoints=points[None])
    known = torch.tensor([1., 1, 0, 1, 1])[:, None]
    ground_truth = instances[:]
    ground_truth.keypoints = torch.cat([points, known], 1)[None]
    visualizer.add_datasample(
        'face', img,
        DetDataSample(pred_instances=instances, gt_instances=ground_truth))
    truth, drawn = np.split(visualizer.get_image(), 2, 1)
    for (x, y), color in zip(points.int().tolist(), visualizer.COLORS):
        assert np.abs(drawn[y, x] - np.array(color)).max() < 30
    assert np.abs(truth[40, 40] - np.array(visualizer.COLORS[0])).max() < 30
    assert (truth[60, 60] == 90).all()
    visualizer.add_datasample('nobody', img,
                              DetDataSample(pred_instances=instances[:0]))


@pytest.mark.parametrize(
    'shapes', [
        [(40, 31)],
        [(40, 31), (40, 31)],
        [(40, 31), (33, 50)],
    ],
    ids=['one', 'same', 'different'])
@pytest.mark.parametrize('training', [False, True])
def test_preprocessing(shapes, training):
    mean = [104, 117, 123]
    ours = MODELS.build(dict(type='FaceDataPreprocessor', mean=mean))
    host = MODELS.build(
        dict(type='DetDataPreprocessor', mean=mean, std=[1, 1, 1]))
    data = dict(
        inputs=[
            torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
            for shape in shapes
        ],
        data_samples=[annotated([]) for _ in shapes])
    expected = host(deepcopy(data), training)
    found = ours(data, training)
    assert found['inputs'].dtype == torch.float
    assert torch.equal(found['inputs'], expected['inputs'])
    for one, other in zip(found['data_samples'], expected['data_samples']):
        assert one.batch_input_shape == other.batch_input_shape
        assert one.pad_shape == other.pad_shape


# --------------------------------------------------------------- package


def test_benchmark_compares_equal_detectors(original, tmp_path, capsys):
    source = shared('weights', 'retinaface_mobilenet0.25.pth')
    tool = runpy.run_path(
        f'{ROOT}/tools/analysis_tools/benchmark_retinaface.py')
    detect = tool['build_ours']('retinaface_mobilenet0.25', source)
    path = shared('data', 'faces_london', '001_neutral.jpg')
    img = cv2.imread(path)[150:500, 200:450]
    expected = retinaface_reference.detect(original, img)
    found = detect(img)
    assert expected[0, 4] > 0.9
    assert np.abs(expected[0] - found[0]).max() < 1e-2

    cv2.imwrite(str(tmp_path / 'face.png'), img)
    threads = torch.get_num_threads()
    tool['main']([
        str(tmp_path / 'face.png'), '--weights', source, '--repeat', '1',
        '--threads', '1'
    ])
    torch.set_num_threads(threads)
    assert 'face.png, 250x350: original ' in capsys.readouterr().out


def test_rejects_unknown_stages():
    with pytest.raises(ValueError, match='expected some of 0, 1 and 2'):
        MODELS.build(dict(type='MobileNetV1', out_indices=(1, 3)))


def test_stages():
    backbone = MODELS.build(dict(type='MobileNetV1', out_indices=(0, 2)))
    shapes = [tuple(x.shape) for x in backbone(torch.zeros(1, 3, 65, 33))]
    assert shapes == [(1, 64, 9, 5), (1, 256, 3, 2)]
