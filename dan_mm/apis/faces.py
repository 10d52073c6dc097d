# Copyright (c) dan_mm contributors. All rights reserved.
from collections import defaultdict
from typing import List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.transforms import Compose
from mmengine.device import get_device

from dan_mm.datasets.loading import prepare_image
from dan_mm.models.retinaface import Detections, RetinaFace
from dan_mm.models.retinaface_weights import get_weights
from dan_mm.scope import default_scope


def choose_device(device: Optional[str] = None) -> str:
    """Check a device, such as ``'cuda:0'``, or choose the first GPU or the
    CPU. ValueError is raised if there is none such."""
    if device is None:
        return get_device()
    try:
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).split('\n')[0]
        raise ValueError(f"Got the device '{device}' ({reason}), expected one "
                         f"that is here, such as '{get_device()}'.") from error
    return device


class Face(NamedTuple):
    """A face in an image.

    Args:
        bbox (ndarray): Left, top, right and bottom in pixels, float32 of
            shape ``(4, )``.
        score (float): How sure the detector is, in [0, 1].
        keypoints (ndarray): Left eye, right eye, nose tip, left and right
            corner of the mouth as seen with the face upright, in pixels,
            float32 of shape ``(5, 2)``.
        landmarks_plausible (bool): Whether they are those of a face: see
            :func:`dan_mm.apis.orientation.find_faces`. Defaults to True.
    """
    bbox: np.ndarray
    score: float
    keypoints: np.ndarray
    landmarks_plausible: bool = True


class FaceDetector:
    """Find the faces of images, several images at a time.

    By default it is RetinaFace with MobileNetV1 x0.25, which needs neither
    mmdet nor mmcv's compiled ops. With a config it is any detector of MMDet
    that has landmarks.

    Args:
        config (str, optional): The path of the config of a detector of MMDet;
            a config is code. Defaults to None, RetinaFace with MobileNetV1
            x0.25 and its public weights, which are downloaded once.
        checkpoint (str, optional): The weights of the detector of the config.
            Defaults to None.
        device (str, optional): Defaults to None, the first GPU, or the CPU.
        score_thr (float): The score from which on a face counts, in [0, 1].
            Defaults to 0.5.
        max_side (int): An image whose longer side has more pixels is shrunk to
            that for the detection. Defaults to 1600.

    Raises:
        ImportError: If there is a config, and mmdet or the compiled ops of
            mmcv are missing.
        OSError: If the weights can't be read or downloaded.
        ValueError: If there is a config without weights, or the reverse, or
            no such device.
    """

    def __init__(self,
                 config: Optional[str] = None,
                 checkpoint: Optional[str] = None,
                 device: Optional[str] = None,
                 score_thr: float = 0.5,
                 max_side: int = 1600) -> None:
        if (config is None) != (checkpoint is None):
            raise ValueError(
                f'Got the config {config} and the checkpoint {checkpoint} of '
                'a detector, expected both or none. Give both.')
        device = choose_device(device)
        if config is None:
            self._find = _RetinaFaceFinder(device, max_side)
        else:
            self._find = _MMDetFinder(config, checkpoint, device, max_side)
        self.score_thr = score_thr

    def __call__(self, images: Sequence[np.ndarray]) -> List[List[Face]]:
        """Find faces.

        Args:
            images (Sequence[ndarray]): BGR, uint8 of shape ``(H, W, 3)``.

        Returns:
            list[list[Face]]: The faces of each image, the most certain first.

        Raises:
            ValueError: If an array is no image.
        """
        return [[
            Face(bbox, float(score), keypoints)
            for bbox, score, keypoints in zip(*(part.cpu().numpy()
                                                for part in found))
            if score >= self.score_thr
        ] for found in self._find(images)]


def _group_by_shape(shapes: Sequence[tuple]) -> List[List[int]]:
    """Group images for batches: padding to a common size would reach the
    results at the border."""
    groups = defaultdict(list)
    for i, shape in enumerate(shapes):
        groups[shape].append(i)
    return list(groups.values())


class _RetinaFaceFinder:
    """RetinaFace without MMDet."""

    def __init__(self, device: str, max_side: int) -> None:
        model = RetinaFace()
        model.load_state_dict(get_weights())
        # The same results, faster
        self.model = fuse_conv_bn(model.eval()).to(
            device, memory_format=torch.channels_last)
        self.device = device
        self.max_side = max_side

    def __call__(self, images: Sequence[np.ndarray]) -> List[Detections]:
        prepared = [prepare_image(img, self.max_side) for img in images]
        results: List[Detections] = [None] * len(images)
        for group in _group_by_shape([img.shape for img, _ in prepared]):
            batch, factors = zip(*(prepared[i] for i in group))
            batch = torch.from_numpy(np.stack(batch)).to(self.device)
            for i, found in zip(group, self.model.predict(batch, factors)):
                results[i] = found
        return results


class _MMDetFinder:
    """A detector of MMDet."""

    def __init__(self, config: str, checkpoint: str, device: str,
                 max_side: int) -> None:
        # First, since it says what to install.
        import dan_mm.detection  # noqa: F401 isort: skip
        from mmdet.apis import init_detector
        from mmdet.utils import get_test_pipeline_cfg

        # `init_detector` leaves its scope behind, where it would break what
        # the caller builds next.
        with default_scope('mmdet'):
            model = init_detector(config, checkpoint, device=device)
            load, *rest = get_test_pipeline_cfg(model.cfg)
            load.type = 'mmdet.LoadImageFromNDArray'
            prepare = dict(type='mmdet.PrepareFaceImage', max_side=max_side)
            self.pipeline = Compose([
                load, prepare,
                *(step for step in rest if step.type != 'PrepareFaceImage')
            ])
        self.model = fuse_conv_bn(model).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> List[Detections]:
        items = [self.pipeline(dict(img=img, img_id=0)) for img in images]
        results: List[Detections] = [None] * len(images)
        for group in _group_by_shape([item['inputs'].shape for item in items]):
            batch = {key: [items[i][key] for i in group] for key in items[0]}
            for i, sample in zip(group, self.model.test_step(batch)):
                found = sample.pred_instances
                results[i] = Detections(found.bboxes, found.scores,
                                        found.keypoints)
        return results
