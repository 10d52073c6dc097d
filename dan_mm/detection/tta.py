# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData
from torch import Tensor

from .transforms import FLIPPED_LANDMARKS


@MODELS.register_module()
class RetinaFaceTTA(DetTTAModel):
    """Merge the faces and landmarks detected in flipped and resized versions
    of an image.

    The arguments are those of
    :class:`mmdet.models.test_time_augs.DetTTAModel`, which merges boxes only.
    """

    def _merge_single_sample(
            self, data_samples: List[DetDataSample]) -> DetDataSample:
        """Merge the predictions for the versions of one image."""
        instances = InstanceData.cat([
            self._restore(data_sample.pred_instances, data_sample)
            for data_sample in data_samples
        ])
        if len(instances):
            bboxes, keep = batched_nms(instances.bboxes, instances.scores,
                                       instances.labels, self.tta_cfg['nms'])
            instances = instances[keep]
            # Some kinds of suppression change scores.
            instances.scores = bboxes[:, -1]
            instances = instances[:self.tta_cfg['max_per_img']]
        data_samples[0].pred_instances = instances
        return data_samples[0]

    def _restore(self, instances: InstanceData,
                 data_sample: DetDataSample) -> InstanceData:
        """Flip predictions back."""
        if not data_sample.get('flip'):
            return instances
        shape, direction = data_sample.ori_shape, data_sample.flip_direction
        return InstanceData(
            bboxes=bbox_flip(instances.bboxes, shape, direction),
            scores=instances.scores,
            labels=instances.labels,
            keypoints=self._flip_keypoints(instances.keypoints, shape,
                                           direction))

    def _flip_keypoints(self, keypoints: Tensor, shape: tuple,
                        direction: str) -> Tensor:
        size = keypoints.new_tensor(shape[::-1])
        mirrored = keypoints.new_tensor(
            [direction != 'vertical', direction != 'horizontal'])
        keypoints = torch.where(mirrored > 0, size - keypoints, keypoints)
        return (keypoints if direction == 'vertical' else
                keypoints[:, FLIPPED_LANDMARKS])
