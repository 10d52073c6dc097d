# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmdet.evaluation.functional import average_precision, bbox_overlaps
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from scipy.io import loadmat

SUBSETS = ('easy', 'medium', 'hard')


@METRICS.register_module()
class WiderFaceMetric(BaseMetric):
    """The official average precisions of `WIDER FACE
    <http://shuoyang1213.me/WIDERFACE/>`_: easy, medium and hard.

    Which faces belong to which of them is read from WIDER's own files. Scores
    are normalised to [0, 1] over all images, precision and recall are computed
    at 1000 thresholds, and the result is the area under the monotonic
    precision. Detections of faces outside of the subset are ignored; a second
    detection of the same face is a false positive.

    Modified from the evaluation that comes with WIDER FACE, and
    https://github.com/wondervictor/WiderFace-Evaluation. Boxes are not rounded
    to pixels before, as the original RetinaFace's are.

    Args:
        ground_truth (str): The folder with ``wider_face_val.mat`` and
            ``wider_{easy,medium,hard}_val.mat``, as the evaluation code of
            WIDER FACE has it.
        iou_thr (float): The minimum IoU of a match. Defaults to 0.5.
        collect_device (str): See :class:`mmengine.evaluator.BaseMetric`.
        prefix (str, optional): See :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        FileNotFoundError: If one of the files is missing.
    """

    default_prefix = 'wider_face'

    def __init__(self,
                 ground_truth: str,
                 iou_thr: float = 0.5,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.paths = {
            subset: osp.join(ground_truth, f'wider_{subset}_val.mat')
            for subset in ('face', *SUBSETS)
        }
        missing = [
            path for path in self.paths.values() if not osp.isfile(path)
        ]
        if missing:
            # Before hours of work, not after.
            raise FileNotFoundError(
                f'Found no {", ".join(missing)}, expected the four files of '
                'WIDER FACE\'s eval_tools/ground_truth. Set `ground_truth` to '
                'their folder.')
        self.iou_thr = iou_thr

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the faces of a batch, by ``img_path``."""
        for data_sample in data_samples:
            path = data_sample['img_path'].replace('\\', '/')
            event, name = path.split('/')[-2:]
            instances = data_sample['pred_instances']
            scores = instances['scores'].cpu().numpy().astype(np.float64)
            order = np.argsort(-scores, kind='stable')
            bboxes = instances['bboxes'].cpu().numpy().astype(np.float64)
            self.results.append((f'{event}/{osp.splitext(name)[0]}',
                                 bboxes[order], scores[order]))

    def compute_metrics(self, results: List[Tuple]) -> Dict[str, float]:
        """Compute the average precisions, in [0, 1], for ``easy``, ``medium``
        and ``hard``. ValueError is raised if an image has no predictions."""
        faces, subsets = self._load_ground_truth()
        found = {name: (bboxes, scores) for name, bboxes, scores in results}
        missing = sorted(faces.keys() - found.keys())
        if missing:
            raise ValueError(
                f'Found predictions for {len(faces) - len(missing)} of the '
                f'{len(faces)} images of WIDER FACE\'s validation set, '
                f'expected all, but there is none for {missing[0]}. Test on '
                'the whole set, in folders of its events.')
        scores = np.concatenate([scores for _, scores in found.values()])
        lowest, spread = 0.0, 1.0
        if len(scores):
            lowest, spread = scores.min(), np.ptp(scores) or 1.0

        thresholds = 1 - np.arange(1, 1001) / 1000
        metrics = {}
        for subset, members in subsets.items():
            counts = np.zeros((2, len(thresholds)))
            for name, counted in members.items():
                bboxes, scores = found[name]
                if len(bboxes) and len(faces[name]):
                    counts += self._count(bboxes, (scores - lowest) / spread,
                                          faces[name], counted, thresholds)
            proposals, recalled = counts
            precision = recalled / np.maximum(proposals, 1)
            recall = recalled / max(
                sum(len(counted) for counted in members.values()), 1)
            metrics[subset] = float(average_precision(recall, precision))
        return metrics

    def _load_ground_truth(self) -> Tuple[Dict, Dict]:
        """Load the faces of each image as left, top, right and bottom, and
        the indices of those that belong to each subset."""
        files = {subset: loadmat(path) for subset, path in self.paths.items()}
        faces: Dict[str, np.ndarray] = {}
        subsets: Dict[str, dict] = {subset: {} for subset in SUBSETS}
        content = files['face']
        for i, event in enumerate(content['event_list'][:, 0]):
            for j, name in enumerate(content['file_list'][i, 0][:, 0]):
                name = f'{event.item()}/{name.item()}'
                boxes = content['face_bbx_list'][i, 0][j, 0].reshape(-1, 4)
                faces[name] = np.hstack(
                    [boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(float)
                for subset in SUBSETS:
                    indices = files[subset]['gt_list'][i, 0][j, 0]
                    # MATLAB counts from 1.
                    subsets[subset][name] = indices.ravel().astype(int) - 1
        return faces, subsets

    def _count(self, bboxes: np.ndarray, scores: np.ndarray, faces: np.ndarray,
               counted: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Count in one image, at each threshold, the detections that count
        and the faces found, of shape ``(2, T)``."""
        # In pixels, a box of WIDER's code includes its right and bottom.
        overlaps = bbox_overlaps(bboxes, faces, use_legacy_coordinate=True)
        nearest = overlaps.argmax(1)
        hit = overlaps.max(1) >= self.iou_thr
        belongs = np.isin(nearest, counted)
        proposals = np.cumsum(~hit | belongs)
        first = np.zeros(len(bboxes), bool)
        hits = np.flatnonzero(hit & belongs)
        first[hits[np.unique(nearest[hits], return_index=True)[1]]] = True
        recalled = np.cumsum(first)
        above = np.searchsorted(-scores, -thresholds, side='right')
        counts = np.stack([proposals, recalled])
        return np.where(above > 0, counts[:, np.maximum(above - 1, 0)], 0)
