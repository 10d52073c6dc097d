# Copyright (c) dan_mm contributors. All rights reserved.
"""Face detectors that run with PyTorch."""
from collections import defaultdict
from typing import List, Optional, Sequence

import numpy as np
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.transforms import Compose
from mmengine.device import get_device

from dan_mm.imaging import prepare_image
from dan_mm.models.retinaface import RetinaFace
from dan_mm.models.retinaface_weights import get_weights
from dan_mm.scope import default_scope
from .faces import Detections

# Pixels that a processor takes together: what is more leaves its caches. On 2
# cores, 8 images of 640x640 pixels took 12 ms each, and 4 took 8 ms each.
MAX_TOGETHER = 1_700_000


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


def group_by_shape(shapes: Sequence[tuple]) -> List[List[int]]:
    """Group images for batches: padding to a common size would reach the
    results at the border."""
    groups = defaultdict(list)
    for i, shape in enumerate(shapes):
        groups[shape].append(i)
    return list(groups.values())


class RetinaFaceFinder:
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
        for group in group_by_shape([img.shape for img, _ in prepared]):
            step = len(group)
            if self.device == 'cpu':
                pixels = prepared[group[0]][0][..., 0].size
                step = max(MAX_TOGETHER // pixels, 1)
            for start in range(0, len(group), step):
                part = group[start:start + step]
                batch, factors = zip(*(prepared[i] for i in part))
                batch = torch.from_numpy(np.stack(batch)).to(self.device)
                for i, found in zip(part, self.model.predict(batch, factors)):
                    results[i] = Detections(*(values.cpu().numpy()
                                              for values in found))
        return results


class MMDetFinder:
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
        for group in group_by_shape([item['inputs'].shape for item in items]):
            batch = {key: [items[i][key] for i in group] for key in items[0]}
            for i, sample in zip(group, self.model.test_step(batch)):
                found = sample.pred_instances
                results[i] = Detections(*(part.cpu().numpy()
                                          for part in (found.bboxes,
                                                       found.scores,
                                                       found.keypoints)))
        return results
