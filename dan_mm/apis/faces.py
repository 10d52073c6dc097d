# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
from collections import defaultdict
from typing import List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from mmengine.device import get_device

from .model_index import find_configs

CONFIG = 'retinaface/retinaface_mobilenet0.25_widerface.py'


def choose_device(device: Optional[str] = None) -> str:
    """Check a device, or choose one.

    Args:
        device (str, optional): Such as ``'cpu'`` or ``'cuda:0'``. Defaults to
            None, the first GPU, or the CPU.

    Returns:
        str: The device.

    Raises:
        ValueError: If there is none such.
    """
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
    """A face in a picture.

    Args:
        bbox (ndarray): Left, top, right and bottom in pixels, float32 of
            shape ``(4, )``.
        score (float): How sure the detector is, in [0, 1].
        keypoints (ndarray): Left eye, right eye, nose tip, left and right
            corner of the mouth as seen in the picture, in pixels, float32 of
            shape ``(5, 2)``.
    """
    bbox: np.ndarray
    score: float
    keypoints: np.ndarray


class FaceDetector:
    """Find the faces of pictures with a detector of MMDet, several pictures at
    a time.

    Args:
        config (str, optional): The path of its config; a config is code.
            Defaults to None, RetinaFace with MobileNetV1 x0.25.
        checkpoint (str, optional): Its weights. Defaults to None, the public
            ones of that detector, which are downloaded once.
        device (str, optional): Defaults to None, the first GPU, or the CPU.
        score_thr (float): The score from which on a face counts, in [0, 1].
            Defaults to 0.5.
        max_side (int): A picture whose longer side has more pixels is shrunk
            to that for the detection. Defaults to 1600.

    Raises:
        ImportError: If mmdet or the compiled ops of mmcv are missing.
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
        # First, since it says what to install.
        from dan_mm.detection import get_checkpoint  # isort: skip
        from mmcv.cnn import fuse_conv_bn
        from mmcv.transforms import Compose
        from mmdet.apis import init_detector
        from mmdet.utils import get_test_pipeline_cfg
        from mmengine.registry import DefaultScope
        if (config is None) != (checkpoint is None):
            raise ValueError(
                f'Got the config {config} and the checkpoint {checkpoint} of '
                'a detector, expected both or none. Give both.')
        if config is None:
            config = osp.join(find_configs(), CONFIG)
            checkpoint = get_checkpoint()
        # `init_detector` leaves its scope behind, where it would break what
        # the caller builds next.
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = init_detector(
                config, checkpoint, device=choose_device(device))
            load, *rest = get_test_pipeline_cfg(model.cfg)
            load.type = 'mmdet.LoadImageFromNDArray'
            prepare = dict(type='mmdet.PrepareFaceImage', max_side=max_side)
            self.pipeline = Compose([
                load, prepare,
                *(step for step in rest if step.type != 'PrepareFaceImage')
            ])
        # The same results, faster
        self.model = fuse_conv_bn(model).to(memory_format=torch.channels_last)
        self.score_thr = score_thr

    def __call__(self, pictures: Sequence[np.ndarray]) -> List[List[Face]]:
        """Find faces.

        Args:
            pictures (Sequence[ndarray]): BGR, uint8 of shape ``(H, W, 3)``.

        Returns:
            list[list[Face]]: The faces of each picture, the most certain
            first.

        Raises:
            ValueError: If an array is no picture.
        """
        results: List[List[Face]] = [[] for _ in pictures]
        # Padding to a common size would reach the results at the border.
        by_shape = defaultdict(list)
        for i, picture in enumerate(pictures):
            data = self.pipeline(dict(img=picture, img_id=0))
            by_shape[data['inputs'].shape].append((i, data))
        for group in by_shape.values():
            indices, items = zip(*group)
            batch = {key: [item[key] for item in items] for key in items[0]}
            with torch.inference_mode():
                samples = self.model.test_step(batch)
            for i, sample in zip(indices, samples):
                found = sample.pred_instances.cpu().numpy()
                results[i] = [
                    Face(bbox, float(score),
                         keypoints) for bbox, score, keypoints in zip(
                             found.bboxes, found.scores, found.keypoints)
                    if score >= self.score_thr
                ]
        return results
