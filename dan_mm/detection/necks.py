# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Optional, Sequence, Tuple, Union

import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.necks import SSH
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


def _activation(channels: int) -> dict:
    """What RetinaFace has after convolutions with this many channels."""
    if channels <= 64:
        return dict(type='LeakyReLU', negative_slope=0.1)
    return dict(type='ReLU')


@MODELS.register_module()
class RetinaFacePyramid(BaseModule):
    """The feature pyramid of `RetinaFace
    <https://github.com/biubug6/Pytorch_Retinaface>`_.

    Unlike :class:`mmdet.models.FPN`, it smooths each level with its 3x3
    convolution before that level is upsampled into the next finer one; the
    coarsest level is not smoothed. Up to 64 channels the activation is a leaky
    ReLU, above that a ReLU.

    Args:
        in_channels (Sequence[int]): The channels of the feature maps, from
            fine to coarse.
        out_channels (int): The channels of the pyramid.
        norm_cfg (dict): The normalization. Defaults to ``dict(type='BN')``.
        init_cfg (dict | list[dict], optional): How to initialize the weights.
            Defaults to Xavier's way, that of :class:`mmdet.models.FPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        norm_cfg: dict = dict(type='BN'),
        init_cfg: Optional[Union[dict, Sequence[dict]]] = dict(
            type='Xavier', layer='Conv2d', distribution='uniform')
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = dict(norm_cfg=norm_cfg, act_cfg=_activation(out_channels))
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, **settings)
            for channels in in_channels)
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, **settings)
            for _ in in_channels[1:])

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Mix the feature maps.

        Args:
            inputs (Sequence[Tensor]): Maps of shape ``(B, C, H, W)``, from
                fine to coarse.

        Returns:
            tuple[Tensor]: Maps of the same heights and widths.
        """
        outs = [conv(x) for conv, x in zip(self.lateral_convs, inputs)]
        for level in range(len(outs) - 2, -1, -1):
            coarser = F.interpolate(outs[level + 1], outs[level].shape[-2:])
            outs[level] = self.fpn_convs[level](outs[level] + coarser)
        return tuple(outs)


@MODELS.register_module()
class RetinaFaceSSH(SSH):
    """The context module of `SSH: Single Stage Headless Face Detector
    <https://arxiv.org/abs/1708.03979>`_ as RetinaFace has it.

    It is :class:`mmdet.models.necks.SSH`, but up to 64 channels the
    activations inside are leaky ReLUs. Its arguments are those of that class.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for index, channels in enumerate(self.out_channels):
            for conv in getattr(self, f'ssh_module{index}').modules():
                if isinstance(conv, ConvModule) and conv.with_activation:
                    cfg = _activation(channels)
                    conv.act_cfg = cfg
                    conv.activate = MODELS.build(dict(cfg, inplace=True))
