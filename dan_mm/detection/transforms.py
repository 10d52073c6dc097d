# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform, RandomFlip
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS

from dan_mm.imaging import prepare_image

# The landmarks of a face in its mirror image
FLIPPED_LANDMARKS = [1, 0, 2, 4, 3]


@TRANSFORMS.register_module()
class PrepareFaceImage(BaseTransform):
    """Convert an image to BGR, and shrink it if it is too large.

    Grey images get three equal channels, and the fourth channel of BGRA is
    dropped.

    Required Keys:

    - img

    Modified Keys:

    - img
    - img_shape

    Added Keys:

    - scale_factor

    Args:
        max_side (int, optional): An image whose longer side has more pixels
            is shrunk to that; detections are in pixels of the original image.
            Defaults to None, any size.

    Raises:
        ValueError: If the array is no image.
    """

    def __init__(self, max_side: Optional[int] = None) -> None:
        self.max_side = max_side

    def transform(self, results: dict) -> dict:
        """Prepare the image."""
        img, factor = prepare_image(results['img'], self.max_side)
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['scale_factor'] = factor
        return results

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(max_side={self.max_side})'


@TRANSFORMS.register_module()
class RandomFaceCrop(BaseTransform):
    """Crop a random square, as in the training of RetinaFace.

    Modified from
    https://github.com/biubug6/Pytorch_Retinaface/blob/master/data/data_augment.py

    The square contains at least one whole face. Faces whose centre is in it
    are kept, and their boxes and landmarks are clipped to it. If no such
    square is found, the image is not cropped.

    Required Keys:

    - img
    - gt_bboxes (np.float32)
    - gt_bboxes_labels
    - gt_keypoints

    Modified Keys:

    - img
    - img_shape
    - gt_bboxes
    - gt_bboxes_labels
    - gt_keypoints

    Args:
        scales (Sequence[float]): The sides to choose from, as ratios of the
            shorter side of the image. Defaults to
            ``(0.3, 0.45, 0.6, 0.8, 1.0)``.
        attempts (int): How many squares to try. Defaults to 250.
    """

    def __init__(self,
                 scales: Sequence[float] = (0.3, 0.45, 0.6, 0.8, 1.0),
                 attempts: int = 250) -> None:
        self.scales = scales
        self.attempts = attempts

    def transform(self, results: dict) -> dict:
        """Crop a square."""
        bboxes = results['gt_bboxes']
        centers = (bboxes[:, :2] + bboxes[:, 2:]) / 2
        for _ in range(self.attempts):
            left, top, side = self._choose(results['img'].shape[:2])
            first, last = np.array([left, top]), np.array([left, top]) + side
            whole = (bboxes[:, :2] >= first) & (bboxes[:, 2:] <= last)
            inside = ((centers > first) & (centers < last)).all(1)
            if (whole.all(1) & inside).any():
                break
        else:
            return results
        results['img'] = results['img'][top:top + side, left:left + side]
        results['img_shape'] = results['img'].shape[:2]
        results['gt_bboxes'] = np.clip(bboxes[inside] - np.tile(first, 2), 0,
                                       side).astype(np.float32)
        results['gt_bboxes_labels'] = results['gt_bboxes_labels'][inside]
        keypoints = results['gt_keypoints'][inside]
        keypoints[..., :2] = np.clip(keypoints[..., :2] - first, 0, side)
        results['gt_keypoints'] = keypoints
        return results

    def _choose(self, shape: Tuple[int, int]) -> Tuple[int, int, int]:
        """Choose left, top and side of a square in an image."""
        height, width = shape
        side = max(int(np.random.choice(self.scales) * min(height, width)), 1)
        return (np.random.randint(max(width - side, 1)),
                np.random.randint(max(height - side, 1)), side)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(scales={self.scales}, '
                f'attempts={self.attempts})')


@TRANSFORMS.register_module()
class RandomFaceFlip(RandomFlip):
    """Flip an image, and swap the left and right landmarks of its faces.

    :class:`mmcv.transforms.RandomFlip` moves the landmarks, but a left eye
    stays a left eye. The keys and arguments are those of that class.
    """

    def _flip_keypoints(self, keypoints: np.ndarray, img_shape: Tuple[int,
                                                                      int],
                        direction: str) -> np.ndarray:
        """Flip landmarks of shape ``(N, 5, 3)``."""
        flipped = super()._flip_keypoints(keypoints, img_shape, direction)
        return (flipped
                if direction == 'vertical' else flipped[:, FLIPPED_LANDMARKS])


@TRANSFORMS.register_module()
class PackFaceInputs(PackDetInputs):
    """Pack an image and its faces with their landmarks.

    It is :class:`mmdet.datasets.transforms.PackDetInputs`, with
    ``gt_keypoints`` as ``gt_instances.keypoints``. Without
    ``gt_ignore_flags``, which MMCV's loading leaves out, all faces count.
    """

    mapping_table = {
        **PackDetInputs.mapping_table, 'gt_keypoints': 'keypoints'
    }

    def transform(self, results: dict) -> dict:
        """Pack the image and its faces."""
        results.setdefault('gt_ignore_flags',
                           np.zeros(len(results['gt_bboxes']), bool))
        # MMCV's resizing makes them float64.
        results['gt_bboxes'] = results['gt_bboxes'].astype(np.float32)
        return super().transform(results)
