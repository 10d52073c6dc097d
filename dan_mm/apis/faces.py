# Copyright (c) dan_mm contributors. All rights reserved.
from typing import (TYPE_CHECKING, Callable, List, NamedTuple, Optional,
                    Sequence)

import numpy as np

if TYPE_CHECKING:
    from dan_mm.onnx.folder import ExportFolder


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


class Detections(NamedTuple):
    """The N faces of an image, the most certain first: left, top, right and
    bottom, of shape ``(N, 4)``, scores in [0, 1], of shape ``(N, )``, and
    landmarks, of shape ``(N, 5, 2)``, float32 and in pixels."""
    bboxes: np.ndarray
    scores: np.ndarray
    keypoints: np.ndarray


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
        export (ExportFolder, optional): A folder of ``dan-mm export``,
            see :func:`dan_mm.onnx.folder.read_export`, whose RetinaFace runs
            with onnxruntime. Defaults to None.

    Raises:
        ImportError: If there is a config, and mmdet or the compiled ops of
            mmcv are missing; or an export folder, and onnxruntime is.
        OSError: If the weights can't be read or downloaded.
        ValueError: If there is a config without weights, or the reverse, or
            no such device.
    """

    def __init__(self,
                 config: Optional[str] = None,
                 checkpoint: Optional[str] = None,
                 device: Optional[str] = None,
                 score_thr: float = 0.5,
                 max_side: int = 1600,
                 export: Optional['ExportFolder'] = None) -> None:
        if (config is None) != (checkpoint is None):
            raise ValueError(
                f'Got the config {config} and the checkpoint {checkpoint} of '
                'a detector, expected both or none. Give both.')
        self.score_thr = score_thr
        self._find: Callable[[Sequence[np.ndarray]], List[Detections]]
        if export is not None and config is None:
            from dan_mm.onnx.runtime import ONNXDetector
            self._find = ONNXDetector(export, device, max_side, score_thr)
            return
        from .torch_detector import (MMDetFinder, RetinaFaceFinder,
                                     choose_device)
        device = choose_device(device)
        if config is None:
            self._find = RetinaFaceFinder(device, max_side)
        else:
            self._find = MMDetFinder(config, checkpoint, device, max_side)

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
            for bbox, score, keypoints in zip(*found)
            if score >= self.score_thr
        ] for found in self._find(images)]
