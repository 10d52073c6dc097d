# Copyright (c) dan_mm contributors. All rights reserved.
"""Run an export folder with NumPy, OpenCV and onnxruntime."""
import os
import os.path as osp
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np

from dan_mm.apis.classifier import Classified
from dan_mm.apis.faces import Detections
from dan_mm.errors import CheckpointLoadError
from dan_mm.imaging import INTERPOLATIONS, prepare_image
from .folder import METADATA, ExportFolder, encode

# Of RetinaFace: threshold, suppression, largest number of faces, the sides of
# the two anchors at each place of a map by its stride, variances and clipping
SCORE_THR, IOU_THR, MAX_FACES = 0.02, 0.4, 750
ANCHORS = {8: (16, 32), 16: (64, 128), 32: (256, 512)}
VARIANCES, MAX_RATIO = (0.1, 0.2), 1000 / 16


def _open(folder: ExportFolder,
          name: str,
          device: Optional[str],
          threads: int = 0):
    """Start a session with that many threads, 0 for all processors, or say
    what is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'onnxruntime is missing, expected it for the export folder '
            f'{folder.path}. Run `pip install onnxruntime`.') from error
    known = onnxruntime.get_available_providers()
    kind, _, number = (device or 'cpu').partition(':')
    providers: list = ['CPUExecutionProvider']
    if kind == 'cuda' and 'CUDAExecutionProvider' in known:
        providers.insert(
            0, ('CUDAExecutionProvider', dict(device_id=int(number or 0))))
    elif kind != 'cpu':
        raise ValueError(f"Got the device '{device}', expected cpu, or cuda "
                         'with the package onnxruntime-gpu.')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for work would slow down reading.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            folder.models[name], options, providers=providers)
    except Exception as error:
        raise ValueError(
            f'onnxruntime {onnxruntime.__version__} cannot load '
            f'{osp.join(folder.path, name)} ({str(error):.200}). Update it, '
            'or export the model again.') from error
    stored = session.get_modelmeta().custom_metadata_map
    if stored.get(METADATA) != encode(folder.about):
        raise ValueError(f'The manifest of {folder.path} does not belong to '
                         f'its {name}. Export the model again.')
    return session


class ONNXClassifier:
    """The classifier of an export folder.

    The attributes are those of
    :class:`dan_mm.apis.torch_classifier.TorchClassifier`.

    Args:
        folder (ExportFolder): The folder.
        device (str, optional): 'cpu' or, with onnxruntime-gpu, 'cuda:0'.

    Raises:
        ImportError: If onnxruntime is missing.
        ValueError: If the file can't be used, or there is no such device.
    """

    def __init__(self, folder: ExportFolder, device: Optional[str]) -> None:
        self.session = _open(folder, 'classifier.onnx', device)
        self.path = folder.path
        self.metainfo = folder.about
        self.classes: Tuple[str, ...] = tuple(folder.about['classes'])
        self.device = device or 'cpu'
        self.max_faces: Optional[int] = None
        self._input = self.session.get_inputs()[0].name
        self._outputs = {output.name for output in self.session.get_outputs()}

    def try_crop(self, crop: np.ndarray) -> None:
        """Try a crop. ValueError is raised if that fails."""
        try:
            scores = self([crop], False, False).scores
            if scores.shape != (1, len(self.classes)):
                raise ValueError(f'it gives scores of the shape '
                                 f'{scores.shape}')
        except Exception as error:
            raise ValueError(f'The classifier of {self.path} cannot be used '
                             f'for a face ({str(error):.200}). Export the '
                             'model again.') from error

    def __call__(self, crops: List[np.ndarray], embeddings: bool,
                 attention_maps: bool) -> Classified:
        """See :class:`dan_mm.apis.torch_classifier.TorchClassifier`."""
        names = ['scores']
        if embeddings:
            names.append('embeddings')
        if attention_maps and 'attention_maps' in self._outputs:
            names.append('attention_maps')
        batch = np.stack([self._preprocess(crop) for crop in crops])
        values = self.session.run(names, {self._input: batch})
        return Classified(**dict(zip(names, values)))

    def _preprocess(self, crop: np.ndarray) -> np.ndarray:
        if self.metainfo['channels'] == 1:
            crop = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)[..., None]
        return apply_pipeline(crop, self.metainfo['pipeline'])


def apply_pipeline(img: np.ndarray, steps: Sequence[dict]) -> np.ndarray:
    """Apply the steps of the manifest to a crop, uint8 of shape
    ``(H, W, C)``."""
    for step in steps:
        width, height = step['size']
        if step['type'] == 'crop':
            top = max(round((img.shape[0] - height) / 2), 0)
            left = max(round((img.shape[1] - width) / 2), 0)
            img = img[top:top + height, left:left + width]
        elif img.shape[:2] != (height, width):
            resize = (
                pillow_resize if step['backend'] == 'pillow' else cv2_resize)
            channels = img.shape[2]
            img = resize(img, (width, height), step['interpolation'])
            img = img.reshape(height, width, channels)
    return img


def cv2_resize(img: np.ndarray, size: Tuple[int, int],
               interpolation: str) -> np.ndarray:
    """Resize an image to a width and height, as mmcv does."""
    flags = dict(INTERPOLATIONS, area=cv2.INTER_AREA)
    return cv2.resize(img, size, interpolation=flags[interpolation])


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# The kernels of Pillow and how far they reach
KERNELS = dict(
    bilinear=(lambda x: np.clip(1 - np.abs(x), 0, None), 1.),
    bicubic=(_bicubic, 2.),
    box=(lambda x: ((x > -0.5) & (x <= 0.5)).astype(float), 0.5))
UNIT = 2**22  # Pillow computes with integers


def _weights(before: int, after: int, interpolation: str) -> np.ndarray:
    """What each pixel of a line adds to each one of the resized line, of shape
    ``(after, before)``, in whole ``1 / UNIT``."""
    kernel, support = KERNELS[interpolation]
    scale = before / after
    spread = max(scale, 1)
    centers = (np.arange(after)[:, None] + 0.5) * scale
    # The pixels that Pillow takes into account
    first = np.maximum((centers - support * spread + 0.5).astype(int), 0)
    last = np.minimum((centers + support * spread + 0.5).astype(int), before)
    pixels = np.arange(before)
    weights = kernel((pixels + 0.5 - centers) / spread)
    weights *= (pixels >= first) & (pixels < last)
    weights /= weights.sum(1, keepdims=True)
    return np.trunc(weights * UNIT + np.copysign(0.5, weights))


def pillow_resize(img: np.ndarray, size: Tuple[int, int],
                  interpolation: str) -> np.ndarray:
    """Resize an image to a width and height as Pillow does, with the average
    over all pixels where it shrinks: first its rows, then its columns, both
    rounded. The result is the same.
    """
    for axis in 1, 0:
        after = size[1 - axis]
        if img.shape[axis] != after:
            weights = _weights(img.shape[axis], after, interpolation)
            lines = np.moveaxis(img, axis, 0)
            out = np.tensordot(weights, lines.astype(float), 1) / UNIT
            out = np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8)
            img = np.moveaxis(out, 0, axis)
    return img


class ONNXDetector:
    """The face detector of an export folder.

    Args:
        folder (ExportFolder): The folder.
        device (str, optional): See :class:`ONNXClassifier`.
        max_side (int): See :class:`dan_mm.apis.FaceDetector`.
        score_thr (float): See there.

    Raises:
        ImportError: If onnxruntime is missing.
        ValueError: If the file can't be used, or there is no such device.
    """

    def __init__(self, folder: ExportFolder, device: Optional[str],
                 max_side: int, score_thr: float) -> None:
        self.session = _open(folder, 'detector.onnx', device)
        self._each = _open(folder, 'detector.onnx', device, threads=1)
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self.max_side = max_side
        # Of two faces at one place the more certain one stays: what is below
        # the threshold does not change what is above.
        self.score_thr = max(score_thr, SCORE_THR)

    def __call__(self, images: Sequence[np.ndarray]) -> List[Detections]:
        """Find faces: see :class:`dan_mm.apis.FaceDetector`."""
        if len(images) == 1:
            return [self._find(self.session, images[0])]
        # Several images on a processor each take less time and memory than
        # one batch on all of them.
        return list(self._pool.map(partial(self._find, self._each), images))

    def _find(self, session, img: np.ndarray) -> Detections:
        """Find the faces of an image."""
        img, factor = prepare_image(img, self.max_side)
        outs = session.run(['scores', 'bboxes', 'keypoints'],
                           {'images': img[None]})
        if not all(np.isfinite(out).all() for out in outs):
            raise CheckpointLoadError(
                'The face detector gives what is no number. Export the model '
                'again.')
        return self._decode(*(out[0] for out in outs), img.shape, factor)

    def _decode(self, scores: np.ndarray, deltas: np.ndarray,
                offsets: np.ndarray, shape: tuple,
                factor: tuple) -> Detections:
        """Decode the faces of an image, and suppress boxes that overlap."""
        kept = np.flatnonzero(scores > self.score_thr)
        kept = kept[np.argsort(-scores[kept], kind='stable')]
        scores, deltas, offsets = scores[kept], deltas[kept], offsets[kept]
        centers, sides = select_anchors(kept, *shape[:2])
        limit = np.log(MAX_RATIO)
        halves = sides / 2 * np.exp(
            np.clip(deltas[:, 2:] * VARIANCES[1], -limit, limit))
        middles = centers + deltas[:, :2] * VARIANCES[0] * sides
        keypoints = centers[:, None] + VARIANCES[0] * (
            offsets.reshape(-1, 5, 2) * sides[:, None])
        factor = np.float32(factor)
        bboxes = np.hstack([middles - halves, middles + halves]) / np.tile(
            factor, 2)
        # The original code counts the last pixel: a box from 0 to 9 is 10
        # wide.
        chosen = suppress(bboxes + (0, 0, 1, 1), IOU_THR)[:MAX_FACES]
        return Detections(
            np.float32(bboxes[chosen]), scores[chosen],
            np.float32(keypoints[chosen] / factor))


def select_anchors(numbers: np.ndarray, height: int,
                   width: int) -> Tuple[np.ndarray, np.ndarray]:
    """The centres, of shape ``(N, 2)``, and sides, of shape ``(N, 1)``, of
    numbered anchors of an image, in pixels: map by map, row by row."""
    centers = np.empty((len(numbers), 2))
    sides = np.empty((len(numbers), 1))
    first = 0
    for stride, pair in ANCHORS.items():
        columns = -(-width // stride)
        last = first + 2 * columns * -(-height // stride)
        here = (first <= numbers) & (numbers < last)
        place, anchor = np.divmod(numbers[here] - first, 2)
        y, x = np.divmod(place, columns)
        centers[here] = (np.column_stack([x, y]) + 0.5) * stride
        sides[here, 0] = np.array(pair)[anchor]
        first = last
    return centers, sides


def suppress(bboxes: np.ndarray, iou_thr: float) -> np.ndarray:
    """Non-maximum suppression.

    ``bboxes`` are sorted by their scores and of shape ``(N, 4)``. Returns the
    numbers of those that overlap no better one by more than ``iou_thr``."""
    left, top, right, bottom = bboxes.T
    areas = (right - left) * (bottom - top)
    kept, rest = [], np.arange(len(bboxes))
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        shared = (
            np.clip(
                np.minimum(right[best], right[rest]) -
                np.maximum(left[best], left[rest]), 0, None) * np.clip(
                    np.minimum(bottom[best], bottom[rest]) -
                    np.maximum(top[best], top[rest]), 0, None))
        rest = rest[shared <= iou_thr * (areas[best] + areas[rest] - shared)]
    return np.array(kept, int)
