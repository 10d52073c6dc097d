# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Sequence

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS


@MODELS.register_module()
class FaceDataPreprocessor(DetDataPreprocessor):
    """Subtract the mean from images, the only normalisation of RetinaFace.

    For training, and for images of different sizes, it is
    :class:`mmdet.models.DetDataPreprocessor` with a standard deviation of 1.
    Otherwise it makes one pass over the images instead of five, and returns
    them channels-last, which is faster on a CPU.

    Args:
        mean (Sequence[float]): The mean of B, G and R.
        **kwargs: See :class:`mmdet.models.DetDataPreprocessor`.
    """

    def __init__(self, mean: Sequence[float], **kwargs) -> None:
        super().__init__(
            mean=[float(value) for value in mean],
            std=[1.0] * len(mean),
            **kwargs)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data (dict): ``inputs``, uint8 tensors of shape ``(3, H, W)``, and
                ``data_samples``.
            training (bool): Whether it is for training. Defaults to False.

        Returns:
            dict: ``inputs``, a tensor of shape ``(B, 3, H, W)``, and
            ``data_samples``.
        """
        shapes = {tuple(x.shape) for x in data['inputs']}
        if training or len(shapes) != 1 or self.pad_size_divisor != 1:
            return super().forward(data, training)
        data = self.cast_data(data)
        inputs = data['inputs']
        inputs = inputs[0][None] if len(inputs) == 1 else torch.stack(
            list(inputs))
        inputs = (inputs -
                  self.mean).contiguous(memory_format=torch.channels_last)
        for data_sample in data['data_samples'] or []:
            size = tuple(inputs.shape[-2:])
            data_sample.set_metainfo(
                dict(batch_input_shape=size, pad_shape=size))
        return dict(inputs=inputs, data_samples=data['data_samples'])
