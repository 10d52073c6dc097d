# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List, Optional

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData


@VISUALIZERS.register_module()
class FaceLocalVisualizer(DetLocalVisualizer):
    """Draw faces with their landmarks: red eyes, a green nose tip and blue
    corners of the mouth, the left ones darker.

    The arguments are those of :class:`mmdet.visualization.DetLocalVisualizer`.
    """

    COLORS = [(160, 0, 0), (255, 80, 80), (0, 200, 0), (0, 0, 160),
              (80, 80, 255)]

    def _draw_instances(self, image: np.ndarray, instances: InstanceData,
                        classes: Optional[List[str]],
                        palette: Optional[List[tuple]]) -> np.ndarray:
        """Draw faces of the ground truth or of a prediction."""
        image = super()._draw_instances(image, instances, classes, palette)
        if not len(instances) or 'keypoints' not in instances:
            return image
        for number, color in enumerate(self.COLORS):
            points = instances.keypoints[:, number]
            if points.shape[-1] == 3:
                # Ground truth says which landmarks are known.
                points = points[points[:, 2] > 0, :2]
            if len(points):
                self.draw_points(
                    points, colors=[color], sizes=4 * self.line_width)
        return self.get_image()
