# Copyright (c) dan_mm contributors. All rights reserved.
"""A plain reading of the original RetinaFace: eager PyTorch, anchors made anew
for each image, every anchor decoded, and NMS in NumPy. The tests compare with
it, and the benchmark measures it."""
from itertools import product
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch import Tensor


def conv_bn(inputs: int,
            outputs: int,
            kernel: int = 3,
            stride: int = 1,
            leaky: Optional[float] = 0.0) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs)
    ]
    if leaky is not None:
        layers.append(nn.LeakyReLU(leaky, inplace=True))
    return nn.Sequential(*layers)


def conv_dw(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs), nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True))


class MobileNet(nn.Module):
    """The backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_bn(3, 8, stride=2, leaky=0.1), conv_dw(8, 16),
            conv_dw(16, 32, 2), conv_dw(32, 32), conv_dw(32, 64, 2),
            conv_dw(64, 64))
        self.stage2 = nn.Sequential(
            conv_dw(64, 128, 2), *(conv_dw(128, 128) for _ in range(5)))
        self.stage3 = nn.Sequential(conv_dw(128, 256, 2), conv_dw(256, 256))

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        first = self.stage1(x)
        second = self.stage2(first)
        return dict(first=first, second=second, third=self.stage3(second))


class Pyramid(nn.Module):
    """The feature pyramid."""

    def __init__(self, inputs: Sequence[int], outputs: int,
                 leaky: float) -> None:
        super().__init__()
        for number, channels in enumerate(inputs, 1):
            self.add_module(f'output{number}',
                            conv_bn(channels, outputs, 1, leaky=leaky))
        self.merge1 = conv_bn(outputs, outputs, leaky=leaky)
        self.merge2 = conv_bn(outputs, outputs, leaky=leaky)

    def forward(self, maps: Dict[str, Tensor]) -> List[Tensor]:
        first, second, third = maps.values()
        first, second, third = (self.output1(first), self.output2(second),
                                self.output3(third))
        second = self.merge2(second +
                             F.interpolate(third, size=second.shape[2:]))
        first = self.merge1(first +
                            F.interpolate(second, size=first.shape[2:]))
        return [first, second, third]


class SSH(nn.Module):
    """The context module."""

    def __init__(self, channels: int, leaky: float) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.conv3X3 = conv_bn(channels, half, leaky=None)
        self.conv5X5_1 = conv_bn(channels, quarter, leaky=leaky)
        self.conv5X5_2 = conv_bn(quarter, quarter, leaky=None)
        self.conv7X7_2 = conv_bn(quarter, quarter, leaky=leaky)
        self.conv7x7_3 = conv_bn(quarter, quarter, leaky=None)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.conv5X5_1(x)
        return F.relu(
            torch.cat([
                self.conv3X3(x),
                self.conv5X5_2(middle),
                self.conv7x7_3(self.conv7X7_2(middle))
            ], 1))


class Output(nn.Module):
    """An output of one level."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1x1 = nn.Conv2d(channels, 2 * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1x1(x).permute(0, 2, 3, 1).contiguous()
        return out.view(len(x), -1, self.size)


class RetinaFace(nn.Module):
    """The network, with the original names of weights.

    Args:
        name (str): ``'retinaface_mobilenet0.25'`` or ``'retinaface_r50'``.
            Defaults to the former.
    """

    def __init__(self, name: str = 'retinaface_mobilenet0.25') -> None:
        super().__init__()
        if name == 'retinaface_r50':
            self.body = torchvision.models._utils.IntermediateLayerGetter(
                torchvision.models.resnet50(),
                dict(layer2='first', layer3='second', layer4='third'))
            inputs, channels, leaky = [512, 1024, 2048], 256, 0.0
        else:
            self.body = MobileNet()
            inputs, channels, leaky = [64, 128, 256], 64, 0.1
        self.fpn = Pyramid(inputs, channels, leaky)
        for number in 1, 2, 3:
            self.add_module(f'ssh{number}', SSH(channels, leaky))
        for head, size in (('ClassHead', 2), ('BboxHead', 4), ('LandmarkHead',
                                                               10)):
            outputs = [Output(channels, size) for _ in range(3)]
            self.add_module(head, nn.ModuleList(outputs))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Predict.

        Args:
            x (Tensor): Shape ``(B, 3, H, W)``.

        Returns:
            tuple[Tensor]: Boxes ``(B, N, 4)``, scores of background and face
            ``(B, N, 2)`` and landmarks ``(B, N, 10)``, encoded.
        """
        maps = self.fpn(self.body(x))
        maps = [
            getattr(self, f'ssh{number}')(level)
            for number, level in enumerate(maps, 1)
        ]
        boxes, scores, landmarks = (
            torch.cat([output(level) for output, level in zip(head, maps)], 1)
            for head in (self.BboxHead, self.ClassHead, self.LandmarkHead))
        return boxes, F.softmax(scores, -1), landmarks


def make_anchors(height: int, width: int) -> Tensor:
    """Make anchors, one after the other, as ratios of the image size."""
    anchors: List[float] = []
    for step, sizes in (8, (16, 32)), (16, (64, 128)), (32, (256, 512)):
        for y, x in product(
                range(-(-height // step)), range(-(-width // step))):
            for size in sizes:
                anchors += [(x + 0.5) * step / width,
                            (y + 0.5) * step / height, size / width,
                            size / height]
    return torch.Tensor(anchors).view(-1, 4)


def decode(boxes: Tensor, landmarks: Tensor, height: int,
           width: int) -> Tuple[np.ndarray, np.ndarray]:
    """Decode every anchor.

    Returns:
        tuple[ndarray]: Boxes ``(N, 4)`` and landmarks ``(N, 10)``, in pixels.
    """
    anchors = make_anchors(height, width)
    centers, sizes = anchors[:, :2], anchors[:, 2:]
    decoded = torch.cat([
        centers + boxes[:, :2] * 0.1 * sizes,
        sizes * torch.exp(boxes[:, 2:] * 0.2)
    ], 1)
    decoded[:, :2] -= decoded[:, 2:] / 2
    decoded[:, 2:] += decoded[:, :2]
    points = torch.cat([
        centers + landmarks[:, i:i + 2] * 0.1 * sizes for i in range(0, 10, 2)
    ], 1)
    size = torch.Tensor([width, height])
    return (decoded * size.repeat(2)).numpy(), (points *
                                                size.repeat(5)).numpy()


def nms(bboxes: np.ndarray, scores: np.ndarray) -> List[int]:
    """Suppress boxes that overlap."""
    left, top, right, bottom = bboxes.T
    areas = (right - left + 1) * (bottom - top + 1)
    order = scores.argsort()[::-1]
    keep = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(best)
        width = np.minimum(right[best], right[rest]) - np.maximum(
            left[best], left[rest]) + 1
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(
            top[best], top[rest]) + 1
        shared = np.maximum(0, width) * np.maximum(0, height)
        overlap = shared / (areas[best] + areas[rest] - shared)
        order = rest[overlap <= 0.4]
    return keep


@torch.no_grad()
def detect(network: nn.Module, img: np.ndarray) -> np.ndarray:
    """Find faces.

    Args:
        network (nn.Module): A :class:`RetinaFace`.
        img (ndarray): BGR, uint8 of shape ``(H, W, 3)``.

    Returns:
        ndarray: Left, top, right, bottom, score and landmarks, of shape
        ``(N, 15)``.
    """
    height, width = img.shape[:2]
    img = np.float32(img) - (104, 117, 123)
    x = torch.from_numpy(img.transpose(2, 0, 1)).float().unsqueeze(0)
    boxes, scores, landmarks = network(x)
    bboxes, points = decode(boxes[0], landmarks[0], height, width)
    scores = scores[0, :, 1].numpy()
    inds = np.where(scores > 0.02)[0]
    inds = inds[scores[inds].argsort()[::-1][:5000]]
    keep = inds[nms(bboxes[inds], scores[inds])][:750]
    return np.hstack([bboxes[keep], scores[keep, None], points[keep]])
