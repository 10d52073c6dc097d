# Copyright (c) dan_mm contributors. All rights reserved.
"""The network of RetinaFace, which MMDet trains and prediction uses.

It needs neither mmdet nor mmcv's compiled ops: :mod:`dan_mm.detection`
registers the parts in MMDet.
"""
import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule, Sequential
from torch import Tensor
from torchvision.ops import nms


def _activation(channels: int) -> dict:
    """What RetinaFace has after convolutions with this many channels."""
    if channels <= 64:
        return dict(type='LeakyReLU', negative_slope=0.1)
    return dict(type='ReLU')


class MobileNetV1(BaseModule):
    """MobileNetV1 as `RetinaFace
    <https://github.com/biubug6/Pytorch_Retinaface>`_ has it: with leaky ReLU,
    and without a classifier.

    The network is that of `MobileNets: Efficient Convolutional Neural Networks
    for Mobile Vision Applications <https://arxiv.org/abs/1704.04861>`_.

    Args:
        width (float): The ratio of the channels to the full network's.
            Defaults to 0.25, with which the maps have 64, 128 and 256
            channels.
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
            x (Tensor): Images of shape ``(B, 3, H, W)``.

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


class SSHContextModule(BaseModule):
    """The wide part of an :class:`SSHModule`: a 5x5 and a 7x7 convolution as
    two and three of 3x3, the first one shared.

    The arguments are those of :class:`SSHModule`.
    """

    def __init__(self, in_channels: int, out_channels: int,
                 norm_cfg: dict) -> None:
        super().__init__()
        quarter = out_channels // 4
        settings = dict(padding=1, norm_cfg=norm_cfg)
        act_cfg = _activation(out_channels)
        self.conv5x5_1 = ConvModule(
            in_channels, quarter, 3, act_cfg=act_cfg, **settings)
        self.conv5x5_2 = ConvModule(
            quarter, quarter, 3, act_cfg=None, **settings)
        self.conv7x7_2 = ConvModule(
            quarter, quarter, 3, act_cfg=act_cfg, **settings)
        self.conv7x7_3 = ConvModule(
            quarter, quarter, 3, act_cfg=None, **settings)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Compute both, each of shape ``(B, out_channels / 4, H, W)``."""
        x = self.conv5x5_1(x)
        return self.conv5x5_2(x), self.conv7x7_3(self.conv7x7_2(x))


class SSHModule(BaseModule):
    """The context module of a level, whose ``out_channels`` are a multiple of
    4."""

    def __init__(self, in_channels: int, out_channels: int,
                 norm_cfg: dict) -> None:
        super().__init__()
        self.conv3x3 = ConvModule(
            in_channels,
            out_channels // 2,
            3,
            padding=1,
            norm_cfg=norm_cfg,
            act_cfg=None)
        self.context_module = SSHContextModule(in_channels, out_channels,
                                               norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Add context to a map of shape ``(B, C, H, W)``."""
        return F.relu(torch.cat([self.conv3x3(x), *self.context_module(x)], 1))


class RetinaFaceSSH(BaseModule):
    """The context modules of `SSH: Single Stage Headless Face Detector
    <https://arxiv.org/abs/1708.03979>`_ as RetinaFace has them.

    The arguments and the names of the weights are those of
    :class:`mmdet.models.necks.SSH`, but up to 64 channels the activations
    inside are leaky ReLUs.

    Args:
        num_scales (int): The number of levels.
        in_channels (Sequence[int]): The channels of the maps.
        out_channels (Sequence[int]): The channels to return, multiples of 4.
        norm_cfg (dict): The normalization. Defaults to ``dict(type='BN')``.
        init_cfg (dict | list[dict], optional): How to initialize the weights.
            Defaults to Xavier's way.
    """

    def __init__(
        self,
        num_scales: int,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        norm_cfg: dict = dict(type='BN'),
        init_cfg: Optional[Union[dict, Sequence[dict]]] = dict(
            type='Xavier', layer='Conv2d', distribution='uniform')
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not num_scales == len(in_channels) == len(out_channels):
            raise ValueError(
                f'Got num_scales={num_scales}, in_channels={in_channels} and '
                f'out_channels={out_channels}, expected channels for each '
                'scale.')
        for index, channels in enumerate(zip(in_channels, out_channels)):
            self.add_module(f'ssh_module{index}',
                            SSHModule(*channels, norm_cfg=norm_cfg))

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Add context to the maps, each of shape ``(B, C, H, W)``."""
        return tuple(module(x) for module, x in zip(self.children(), inputs))


class RetinaFaceOutputs(nn.Module):
    """The convolutions from which scores, boxes and landmarks come.

    Args:
        in_channels (int): The channels of each feature map.
        num_anchors (Sequence[int]): The anchors at each place of each map.
            Defaults to ``(2, 2, 2)``.
        num_keypoints (int): The number of landmarks. Defaults to 5.
    """

    def __init__(self,
                 in_channels: int,
                 num_anchors: Sequence[int] = (2, 2, 2),
                 num_keypoints: int = 5) -> None:
        super().__init__()

        def convs(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(in_channels, number * outputs, 1)
                for number in num_anchors)

        self.conv_cls = convs(2)
        self.conv_reg = convs(4)
        self.conv_kpt = convs(2 * num_keypoints)

    def forward(self, x: Sequence[Tensor]) -> Tuple[List[Tensor], ...]:
        """Predict scores, boxes and landmarks, none of them decoded.

        Args:
            x (Sequence[Tensor]): Maps of shape ``(B, C, H, W)``, A anchors at
                each place.

        Returns:
            tuple[list[Tensor]]: For each map ``cls_scores`` of shape
            ``(B, A * 2, H, W)``, where face comes before background,
            ``bbox_preds`` of shape ``(B, A * 4, H, W)`` and ``kpt_preds`` of
            shape ``(B, A * 10, H, W)``.
        """
        return tuple([conv(feat) for conv, feat in zip(convs, x)]
                     for convs in (self.conv_cls, self.conv_reg,
                                   self.conv_kpt))


def select_anchors(levels: Sequence[Tensor], priors: Tensor,
                   score_thr: float) -> Tuple[Tensor, ...]:
    """Select the anchors of a level whose scores are above a threshold, in
    their order: most are no faces, and need no decoding.

    ``levels`` are scores, boxes and landmarks of one image, each of shape ``(A
    * n, H, W)``, ``priors`` the anchors, of shape ``(H * W * A, 4)``. Returns
    those of the N selected ones, of shape ``(N, )``, ``(N, 4)``, ``(N, 10)``
    and ``(N, 4)``.
    """
    height, width = levels[0].shape[-2:]
    anchors = len(priors) // (height * width)
    cls_scores, bbox_preds, kpt_preds = (
        level.float().reshape(anchors, -1, height * width) for level in levels)
    # The softmax of two scores
    scores = (cls_scores[:, 0] - cls_scores[:, 1]).sigmoid()
    place, anchor = (scores.t() > score_thr).nonzero(as_tuple=True)
    return (scores[anchor, place], bbox_preds[anchor, :, place],
            kpt_preds[anchor, :, place], priors[place * anchors + anchor])


class Detections(NamedTuple):
    """The faces of an image, the most certain first: left, top, right and
    bottom, of shape ``(N, 4)``, scores in [0, 1], of shape ``(N, )``, and left
    eye, right eye, nose tip, left and right corner of the mouth as seen in the
    image, of shape ``(N, 5, 2)``, float32 and in pixels."""
    bboxes: Tensor
    scores: Tensor
    keypoints: Tensor


class RetinaFace(nn.Module):
    """`RetinaFace: Single-stage Dense Face Localisation in the Wild
    <https://arxiv.org/abs/1905.00641>`_, for prediction.

    Modified from https://github.com/biubug6/Pytorch_Retinaface. The names of
    the weights, and what is found, are those of the detectors that MMDet
    trains with ``configs/retinaface``.

    Args:
        backbone (nn.Module, optional): It returns three maps, of strides 8, 16
            and 32. Defaults to None, :class:`MobileNetV1` x0.25.
        in_channels (Sequence[int]): The channels of these. Defaults to
            ``(64, 128, 256)``.
        out_channels (int): The channels of the pyramid. Defaults to 64.
    """

    # B, G, R
    MEAN = (104., 117., 123.)
    STRIDES = (8, 16, 32)
    # The sides of the two anchors at each place of a map, in pixels
    SIDES = ((16, 32), (64, 128), (256, 512))
    # Of the centres, and of the logarithms of the sizes
    VARIANCES = (0.1, 0.2)
    # A box is at most that much larger or smaller than its anchor, or its size
    # could overflow.
    MAX_RATIO = 1000 / 16
    SCORE_THR = 0.02
    # Boxes to suppress, their minimum IoU, and faces to return
    NMS_PRE = 5000
    IOU_THR = 0.4
    MAX_PER_IMG = 750

    def __init__(self,
                 backbone: Optional[nn.Module] = None,
                 in_channels: Sequence[int] = (64, 128, 256),
                 out_channels: int = 64) -> None:
        super().__init__()
        self.backbone = backbone or MobileNetV1()
        levels = len(self.STRIDES)
        self.neck = nn.Sequential(
            RetinaFacePyramid(in_channels, out_channels),
            RetinaFaceSSH(levels, [out_channels] * levels,
                          [out_channels] * levels))
        self.bbox_head = RetinaFaceOutputs(out_channels)
        self._priors: Dict[tuple, List[Tensor]] = {}

    def forward(self, x: Tensor) -> Tuple[List[Tensor], ...]:
        """Predict scores, boxes and landmarks, none of them decoded.

        Args:
            x (Tensor): BGR images less ``MEAN``, float of shape
                ``(B, 3, H, W)``.

        Returns:
            tuple[list[Tensor]]: See :meth:`RetinaFaceOutputs.forward`.
        """
        return self.bbox_head(self.neck(self.backbone(x)))

    @torch.inference_mode()
    def predict(
            self, images: Tensor,
            scale_factors: Sequence[Tuple[float, float]]) -> List[Detections]:
        """Find faces.

        Args:
            images (Tensor): BGR, uint8 of shape ``(B, H, W, 3)``, on the
                device of the weights.
            scale_factors (Sequence[tuple[float, float]]): By how much the
                width and the height of each image were scaled. The faces are
                in pixels of the image before that.

        Returns:
            list[Detections]: The faces of each image.
        """
        # Convolutions on a CPU are fast with this order, channels last.
        x = (images - images.new_tensor(self.MEAN, dtype=torch.float)).permute(
            0, 3, 1, 2)
        outs = self(x)
        priors = self._get_priors(outs[0])
        return [
            self._decode([[level[i] for level in maps]
                          for maps in outs], priors, factor)
            for i, factor in enumerate(scale_factors)
        ]

    def _get_priors(self, maps: Sequence[Tensor]) -> List[Tensor]:
        """Get the anchors of each map, of shape ``(H * W * 2, 4)``; images of
        the same size share them."""
        key = (*(level.shape[-2:] for level in maps), maps[0].device)
        if key not in self._priors:
            self._priors = {
                key: [
                    self._make_priors(level, stride,
                                      sides) for level, stride, sides in zip(
                                          maps, self.STRIDES, self.SIDES)
                ]
            }
        return self._priors[key]

    @staticmethod
    def _make_priors(level: Tensor, stride: int, sides: Tuple[int,
                                                              int]) -> Tensor:
        settings = dict(dtype=torch.float, device=level.device)
        height, width = level.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(height, **settings),
            torch.arange(width, **settings),
            indexing='ij')
        centers = (torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride
        halves = torch.tensor(sides, **settings)[:, None] / 2
        return torch.cat([centers - halves, centers + halves],
                         -1).flatten(0, 1)

    def _decode(self, outs: Sequence[Sequence[Tensor]],
                priors: Sequence[Tensor],
                scale_factor: Tuple[float, float]) -> Detections:
        """Decode the faces of one image, and suppress boxes that overlap."""
        scores, deltas, offsets, priors = map(
            torch.cat,
            zip(*(select_anchors(level, level_priors, self.SCORE_THR)
                  for *level, level_priors in zip(*outs, priors))))
        if len(scores) > self.NMS_PRE:
            scores, kept = scores.topk(self.NMS_PRE)
            deltas, offsets, priors = deltas[kept], offsets[kept], priors[kept]
        sizes = priors[:, 2:] - priors[:, :2]
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        center_spread, size_spread = self.VARIANCES
        limit = math.log(self.MAX_RATIO)
        halves = sizes / 2 * (deltas[:, 2:] * size_spread).clamp(
            -limit, limit).exp()
        middles = centers + deltas[:, :2] * center_spread * sizes
        bboxes = torch.cat([middles - halves, middles + halves], 1)
        keypoints = (
            centers[:, None] + offsets.unflatten(1, (-1, 2)) *
            (center_spread * sizes)[:, None])
        factor = bboxes.new_tensor(scale_factor)
        bboxes, keypoints = bboxes / factor.repeat(2), keypoints / factor
        # The original code counts the last pixel: a box from 0 to 9 is 10
        # wide.
        inclusive = bboxes + bboxes.new_tensor([0, 0, 1, 1])
        # Of equal scores, which box stays depends on the order. This is that
        # of mmcv's NMS; torchvision's keeps it.
        order = scores.sort(descending=True)[1]
        kept = nms(inclusive[order], scores[order], self.IOU_THR)
        kept = order[kept[:self.MAX_PER_IMG]]
        return Detections(bboxes[kept], scores[kept], keypoints[kept])
