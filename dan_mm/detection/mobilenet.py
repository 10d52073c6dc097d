# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Optional, Sequence, Tuple

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule, Sequential
from torch import Tensor


@MODELS.register_module()
class MobileNetV1(BaseModule):
    """MobileNetV1 as `RetinaFace
    <https://github.com/biubug6/Pytorch_Retinaface>`_ has it: with leaky ReLU,
    and without a classifier.

    The network is that of `MobileNets: Efficient Convolutional Neural Networks
    for Mobile Vision Applications <https://arxiv.org/abs/1704.04861>`_.

    Args:
        width (float): The share of the channels of the full network. Defaults
            to 0.25, with which the maps have 64, 128 and 256 channels.
        out_indices (Sequence[int]): The stages to return, of 0, 1 and 2, with
            the strides 8, 16 and 32. Defaults to ``(0, 1, 2)``.
        norm_cfg (dict): The normalization. Defaults to ``dict(type='BN')``.
        act_cfg (dict): The activation. Defaults to
            ``dict(type='LeakyReLU', negative_slope=0.1)``.
        init_cfg (dict | list[dict], optional): How to initialize the weights.
            Defaults to None, the way of
            :class:`mmcv.cnn.ConvModule`.
    """

    # The channels and the stride of each block
    STAGES = (
        ((32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
        ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
        ((1024, 2), (1024, 1)),
    )

    def __init__(self,
                 width: float = 0.25,
                 out_indices: Sequence[int] = (0, 1, 2),
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='LeakyReLU', negative_slope=0.1),
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if not set(out_indices) <= {0, 1, 2}:
            raise ValueError(f'Got out_indices={out_indices}, expected some '
                             'of 0, 1 and 2: there are three stages.')
        self.out_indices = out_indices
        settings = dict(padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        before = 3
        for number, stage in enumerate(self.STAGES, 1):
            blocks = []
            for channels, stride in stage:
                channels = int(channels * width)
                block = (
                    ConvModule
                    if before == 3 else DepthwiseSeparableConvModule)
                blocks.append(
                    block(before, channels, 3, stride=stride, **settings))
                before = channels
            self.add_module(f'stage{number}', Sequential(*blocks))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x (Tensor): Pictures of shape ``(B, 3, H, W)``.

        Returns:
            tuple[Tensor]: Maps of shape ``(B, C, H', W')``, where H' is H
            divided by the stride and rounded up.
        """
        outs = []
        for number in range(max(self.out_indices) + 1):
            x = getattr(self, f'stage{number + 1}')(x)
            if number in self.out_indices:
                outs.append(x)
        return tuple(outs)
