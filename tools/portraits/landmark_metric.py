# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmdet.evaluation.functional import bbox_overlaps
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class FaceLandmarkMetric(BaseMetric):
    """Recall of faces, false positives, and the error of the landmarks.

    Detections are matched to faces greedily by IoU, in the order of their
    scores. The results are:

    - ``recall``: the ratio of the faces that are detected.
    - ``false_positives``: the number of unmatched detections per image.
    - ``nme``: the normalised mean error of the five landmarks: their mean
      distance, divided by the distance between the eyes, over the detected
      faces whose landmarks are all known; NaN if there are none.

    The ground truth is ``instances`` of the dataset, as in
    :class:`WiderFaceLandmarks`. Faces with ``ignore_flag`` and detections
    matched to them do not count.

    Args:
        score_thr (float): The minimum score of a detection. Defaults to 0.5.
        iou_thr (float): The minimum IoU of a match. Defaults to 0.5.
        collect_device (str): See :class:`mmengine.evaluator.BaseMetric`.
        prefix (str, optional): See :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'faces'

    def __init__(self,
                 score_thr: float = 0.5,
                 iou_thr: float = 0.5,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.score_thr = score_thr
        self.iou_thr = iou_thr

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Match the faces of a batch."""
        for data_sample in data_samples:
            if 'instances' not in data_sample:
                raise KeyError(
                    f'Found {sorted(data_sample)} in a prediction, expected '
                    '`instances`, the ground truth. Add it to the `meta_keys` '
                    'of PackDetInputs.')
            self.results.append(
                self._compare(data_sample['pred_instances'],
                              data_sample['instances']))

    def _compare(self, found: dict, instances: List[dict]) -> dict:
        """Match the detections of an image with its faces."""
        scores = found['scores'].cpu().numpy()
        order = np.argsort(-scores, kind='stable')
        order = order[scores[order] >= self.score_thr]
        bboxes = found['bboxes'].cpu().numpy()[order].astype(np.float64)
        keypoints = found['keypoints'].cpu().numpy()[order].astype(np.float64)
        faces = np.array([face['bbox'] for face in instances],
                         np.float64).reshape(-1, 4)
        ignored = np.array([face['ignore_flag'] for face in instances], bool)
        landmarks = np.array([face['keypoints'] for face in instances],
                             np.float64).reshape(-1, 5, 3)

        overlaps = bbox_overlaps(bboxes, faces)
        overlaps[overlaps < self.iou_thr] = -1
        hits, false, errors = 0, 0, []
        for row, predicted in zip(overlaps, keypoints):
            # A face that counts comes before one that does not.
            free = np.where(ignored, -1, row)
            face = int(free.argmax()) if len(free) else -1
            if face < 0 or free[face] < 0:
                false += not (row[ignored] >= 0).any()
                continue
            hits += 1
            overlaps[:, face] = -1
            points, known = landmarks[face, :, :2], landmarks[face, :, 2] > 0
            if known.all():
                distances = np.linalg.norm(predicted - points, axis=1)
                eyes = np.linalg.norm(points[1] - points[0])
                errors.append(float(distances.mean() / eyes))
        return dict(
            faces=int((~ignored).sum()), hits=hits, false=false, errors=errors)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Compute the metrics."""
        faces, hits, false = (
            sum(result[key] for result in results)
            for key in ('faces', 'hits', 'false'))
        errors = [error for result in results for error in result['errors']]
        return dict(
            recall=hits / faces if faces else float('nan'),
            false_positives=false / len(results),
            nme=float(np.mean(errors)) if errors else float('nan'))
