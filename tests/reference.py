# Copyright (c) dan_mm contributors. All rights reserved.
"""A plain reading of DAN's equations, with one module per head and one loop
per sum, under the names of the original code. The tests compare with it."""
import math
import sys

import torch
from torch import nn

EPS = sys.float_info.epsilon


class SpatialUnit(nn.Module):
    """Equation (3)."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(channels, half, kernel_size=1), nn.BatchNorm2d(half))
        self.conv_3x3 = nn.Sequential(
            nn.Conv2d(half, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels))
        self.conv_1x3 = nn.Sequential(
            nn.Conv2d(half, channels, kernel_size=(1, 3), padding=(0, 1)),
            nn.BatchNorm2d(channels))
        self.conv_3x1 = nn.Sequential(
            nn.Conv2d(half, channels, kernel_size=(3, 1), padding=(1, 0)),
            nn.BatchNorm2d(channels))

    def attention(self, x):
        y = self.conv1x1(x)
        y = torch.relu(self.conv_3x3(y) + self.conv_1x3(y) + self.conv_3x1(y))
        return y.sum(dim=1, keepdim=True)

    def forward(self, x):
        return x * self.attention(x)


class ChannelUnit(nn.Module):
    """Equation (4)."""

    def __init__(self, channels):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(channels, channels // 16),
            nn.BatchNorm1d(channels // 16), nn.ReLU(),
            nn.Linear(channels // 16, channels), nn.Sigmoid())

    def forward(self, s):
        pooled = s.mean(dim=3).mean(dim=2)
        return pooled * self.attention(pooled)


class Head(nn.Module):

    def __init__(self, channels):
        super().__init__()
        self.sa = SpatialUnit(channels)
        self.ca = ChannelUnit(channels)

    def forward(self, x):
        return self.ca(self.sa(x))


class ReferenceDAN(nn.Module):
    """Everything after the backbone."""

    def __init__(self, channels, num_heads, num_classes):
        super().__init__()
        self.num_heads = num_heads
        for j in range(num_heads):
            self.add_module(f'cat_head{j}', Head(channels))
        self.fc = nn.Linear(channels, num_classes)
        self.bn = nn.BatchNorm1d(num_classes)
        self.centers = nn.Parameter(torch.randn(num_classes, channels))

    def heads(self, x):
        return torch.stack(
            [self.get_submodule(f'cat_head{j}')(x)
             for j in range(self.num_heads)], 1)  # yapf: disable

    def maps(self, x):
        return torch.cat([
            self.get_submodule(f'cat_head{j}').sa.attention(x)
            for j in range(self.num_heads)
        ], 1)

    def forward(self, x):
        """Return the scaled vectors of the heads and the class scores."""
        v = self.heads(x)
        if self.num_heads > 1:
            v = v - torch.log(torch.exp(v).sum(dim=1, keepdim=True))
        return v, self.bn(self.fc(v.sum(dim=1)))


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean)**2 for value in values) / (len(values) - 1)


def affinity(feats, centers, labels, form):
    """Equation (2), sample by sample; soft labels are lists of shares."""
    sigma = sum(variance(centers[:, d]) for d in range(centers.size(1))) + EPS
    terms = []
    for x, label in zip(feats, labels):
        if label.ndim == 0:
            distance = ((x - centers[label])**2).sum()
        else:
            distance = sum(share * ((x - center)**2).sum()
                           for share, center in zip(label, centers))
        terms.append(min(max(distance / sigma, 1e-12), 1e12))
    return sum(terms) / (len(terms) if form == 'original' else 1)


def center(feats, centers, labels, form):
    distances = [((x - centers[label])**2).sum()
                 for x, label in zip(feats, labels)]
    return sum(distances) / (len(distances) if form == 'original' else 1)


def partition(v, form):
    """Equation (6), number by number."""
    batch, num_heads, dims = v.shape
    if num_heads == 1:
        return 0.
    variances = [
        variance(v[i, :, d]).item() for i in range(batch) for d in range(dims)
    ]
    if form == 'original':
        return math.log(1 + num_heads /
                        (sum(variances) / len(variances) + EPS))
    return sum(math.log(1 + num_heads / (value + EPS))
               for value in variances) / len(variances)
