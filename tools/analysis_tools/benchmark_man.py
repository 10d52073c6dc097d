# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure MAN with its heads one after the other, as it is, against all heads
together in grouped convolutions."""
from statistics import median
from time import perf_counter

import torch
from mmengine.device import get_device
from torch import nn

from dan_mm.models import MAN

HEADS = 4


class GroupedMAN(nn.Module):
    """MAN with one convolution for the same convolution of all heads."""

    def __init__(self, in_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        outputs = in_channels * num_heads
        mid, low = outputs // 2, outputs // 16

        def conv_bn(inputs, outputs, height, width, groups):
            return nn.Sequential(
                nn.Conv2d(
                    inputs,
                    outputs, (height, width),
                    padding=(height // 2, width // 2),
                    groups=groups), nn.BatchNorm2d(outputs))

        self.conv1x1 = conv_bn(in_channels, mid, 1, 1, 1)
        self.conv3x3 = conv_bn(mid, outputs, 3, 3, num_heads)
        self.conv1x3 = conv_bn(mid, outputs, 1, 3, num_heads)
        self.conv3x1 = conv_bn(mid, outputs, 3, 1, num_heads)
        self.channel = nn.Sequential(
            nn.Conv1d(outputs, low, 1, groups=num_heads), nn.BatchNorm1d(low),
            nn.ReLU(inplace=True),
            nn.Conv1d(low, outputs, 1, groups=num_heads), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1x1(x)
        y = torch.relu(self.conv3x3(y) + self.conv1x3(y) + self.conv3x1(y))
        maps = y.unflatten(1, (self.num_heads, -1)).sum(dim=2)
        pooled = torch.einsum('bchw,bkhw->bkc', x, maps) / maps[0, 0].numel()
        gate = self.channel(pooled.flatten(1).unsqueeze(2))
        return pooled * gate.view_as(pooled)


def measure(module: nn.Module, x: torch.Tensor, training: bool) -> float:
    """Get the median time of a forward pass, or of a forward and a backward
    pass, in milliseconds."""
    module.train(training)
    x = x.clone().requires_grad_(training)
    times = []
    for _ in range(9):
        if x.is_cuda:
            torch.cuda.synchronize()
        start = perf_counter()
        with torch.set_grad_enabled(training):
            out = module(x)
            out = out[1] if isinstance(out, tuple) else out
            if training:
                out.sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (perf_counter() - start))
    return median(times[2:])


def main() -> None:
    device = get_device()
    print(f'{HEADS} heads, 512 channels, {device}, torch '
          f'{torch.__version__}, {torch.get_num_threads()} threads; median of '
          '7, in ms')
    for batch, side, training in ((1, 7, False), (32, 7, False), (32, 7, True),
                                  (128, 3, True)):
        x = torch.rand(batch, 512, side, side, device=device)
        one_by_one = measure(MAN(512, HEADS).to(device), x, training)
        grouped = measure(GroupedMAN(512, HEADS).to(device), x, training)
        print(f'batch {batch:3}, maps {side}x{side}, '
              f'{"training" if training else "inference":9}: '
              f'one by one {one_by_one:7.1f}, grouped {grouped:7.1f}, '
              f'ratio {one_by_one / grouped:.2f}')


if __name__ == '__main__':
    main()
