# Copyright (c) dan_mm contributors. All rights reserved.
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from dan_mm.imaging import FaceAligner


@TRANSFORMS.register_module()
class AlignFace(FaceAligner, BaseTransform):
    """Align the face of an image by its five landmarks, or cut out its box:
    see :func:`dan_mm.imaging.align_face`.

    :class:`FERDataset` notes the settings in its ``metainfo``, which
    checkpoints carry, so that inference aligns as training did.

    **Required Keys:**

    - img
    - keypoints (optional): of shape ``(5, 2)``, in pixels of ``img``.
    - bbox (optional): left, top, right, bottom, in pixels of ``img``.

    **Modified Keys:**

    - img
    - img_shape

    Args:
        size (int | tuple[int, int]): See :func:`dan_mm.imaging.align_face`, as
            for the rest.
        margin (float): In [0, 10]. Defaults to 0.
        interpolation (str): Defaults to 'bilinear'.
        template (Sequence, optional): Defaults to None.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def transform(self, results: dict) -> dict:
        """Align the face of ``results['img']``.

        Raises:
            ValueError: If there is neither a box nor landmarks.
        """
        results['img'] = self.align(results['img'], results.get('keypoints'),
                                    results.get('bbox'))
        results['img_shape'] = results['img'].shape[:2]
        return results
