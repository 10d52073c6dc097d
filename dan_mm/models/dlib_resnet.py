# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import Sequential
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS


class DlibBlock(nn.Module):
    """A residual block of :class:`DlibResNet`.

    Args:
        in_channels (int): The number of input channels.
        out_channels (int): The number of output channels, at least as many.
        stride (int): The stride, 1 or 2. A block of stride 2 has no padding
            in its first convolution.
        norm_cfg (dict): The normalization layers.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int,
                 norm_cfg: dict) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.conv1 = nn.Conv2d(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=1 if stride == 1 else 0,
            bias=False)
        self.bn1 = build_norm_layer(norm_cfg, out_channels)[1]
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = build_norm_layer(norm_cfg, out_channels)[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args:
            x (Tensor): Shape ``(B, in_channels, H, W)``.

        Returns:
            Tensor: Shape ``(B, out_channels, H', W')``, where H' is H for
            stride 1, and half of it, rounded down, for stride 2.
        """
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride == 2:
            x = F.avg_pool2d(x, 2)
        # A convolution without padding can give one row and column less than
        # the pooling.
        height, width = x.shape[2] - out.shape[2], x.shape[3] - out.shape[3]
        if height or width:
            out = F.pad(out, (0, width, 0, height))
        channels = self.out_channels - x.shape[1]
        if channels:
            x = F.pad(x, (0, 0, 0, 0, 0, channels))
        return torch.relu(out + x)


@MODELS.register_module()
class DlibResNet(BaseBackbone):
    """The face recognition ResNet of `dlib
    <http://dlib.net/dnn_face_recognition_ex.cpp.html>`_, with BatchNorm.

    Its weights, trained on about three million face images, are public domain
    (CC0) and in the PyPI package ``face_recognition_models``.
    ``tools/model_converters/dlib_to_mmpretrain.py`` converts them. The input
    is RGB minus ``(122.782, 117.001, 104.298)``, divided by 256; dlib aligns
    faces to 150x150 pixels.

    Args:
        num_stages (int): The number of stages, at most 5. The stages have 32,
            64, 128, 256 and 256 channels; all but the first halve the map.
            Defaults to 5.
        out_indices (Sequence[int]): The stages to return. Defaults to
            ``(4, )``.
        frozen_stages (int): The number of stages to freeze: 0 freezes
            the stem, 1 also the first stage. -1 freezes nothing. Defaults to
            -1.
        norm_eval (bool): Whether BatchNorm layers keep their statistics in
            training. Defaults to False.
        norm_cfg (dict): The normalization layers. Defaults to
            ``dict(type='BN')``.
        init_cfg (dict | list[dict], optional): The initialization. Defaults
            to kaiming-normal convolutions and BatchNorm weights of 1.

    Examples:
        >>> import torch
        >>> from dan_mm.models import DlibResNet
        >>> backbone = DlibResNet()
        >>> backbone(torch.rand(1, 3, 150, 150))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    # Channels and number of blocks
    STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))

    def __init__(
        self,
        num_stages: int = 5,
        out_indices: Sequence[int] = (4, ),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        init_cfg: Optional[Union[dict, Sequence[dict]]] = [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='_BatchNorm'),
        ]
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not 1 <= num_stages <= len(self.STAGES):
            raise ValueError(f'Got num_stages={num_stages}, expected 1 to '
                             f'{len(self.STAGES)}.')
        if not out_indices or not all(0 <= i < num_stages
                                      for i in out_indices):
            raise ValueError(
                f'Got out_indices={tuple(out_indices)} and '
                f'num_stages={num_stages}, expected indices from 0 to '
                f'{num_stages - 1}.')
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        in_channels = self.STAGES[0][0]
        self.conv1 = nn.Conv2d(3, in_channels, 7, stride=2, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.stages = []
        for i, (channels, depth) in enumerate(self.STAGES[:num_stages]):
            blocks = []
            for number in range(depth):
                stride = 2 if i and not number else 1
                blocks.append(
                    DlibBlock(in_channels, channels, stride, norm_cfg))
                in_channels = channels
            self.add_module(f'layer{i + 1}', Sequential(*blocks))
            self.stages.append(f'layer{i + 1}')
        self._freeze_stages()

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """Args:
            x (Tensor): Images of shape ``(B, 3, H, W)``.

        Returns:
            tuple[Tensor]: The feature maps of the stages ``out_indices``, of
            shape ``(B, C, H', W')``; 112x112 pixels give H' = 26, 13, 6, 3, 1.
        """
        x = torch.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2)
        outs = []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'DlibResNet':
        """Set the mode, except for what is frozen."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        frozen = []
        if self.frozen_stages >= 0:
            frozen = [self.conv1, self.bn1]
        frozen += [
            getattr(self, name)
            for name in self.stages[:max(self.frozen_stages, 0)]
        ]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
