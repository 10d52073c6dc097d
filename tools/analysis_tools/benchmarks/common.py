# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import sys
import tempfile
from statistics import median
from time import perf_counter, sleep
from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import nn
from torchvision.models import resnet18

ROOT = osp.dirname(
    osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__)))))
REST = 0.1  # seconds
sys.path += [
    osp.join(ROOT, 'tests'),
    osp.join(ROOT, 'tools', 'model_converters')
]


def in_turn(functions: Dict[str, Callable],
            rounds: int) -> Dict[str, List[float]]:
    """Time functions in turn, so that all see the same machine.

    Before each, the threads of the one before come to rest, since those of
    OpenMP go on looking for work for a while, and it is called once more, so
    that caches have what is its own. The first round does not count.
    """
    times: Dict[str, List[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            sleep(REST)
            function()
            start = perf_counter()
            function()
            times[name].append(perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(base: Sequence[float], own: Sequence[float]) -> float:
    """By how much one is faster than the other: the median over rounds."""
    return median(one / other for one, other in zip(base, own))


class Reference(nn.Module):
    """DAN on ResNet-18 as the authors have it, in plain, eager PyTorch.

    Args:
        num_heads (int): The number of attention heads. Defaults to 4.
        num_classes (int): Defaults to 7.
    """

    def __init__(self, num_heads: int = 4, num_classes: int = 7) -> None:
        super().__init__()
        from reference import ReferenceDAN
        self.features = nn.Sequential(*list(resnet18().children())[:-2])
        self.heads = ReferenceDAN(512, num_heads, num_classes)

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """Compute the feature map ``(B, 512, H, W)``, the scaled vectors of
        the heads ``(B, K, 512)`` and the class scores ``(B, classes)``."""
        x = self.features(x)
        vectors = self.heads.heads(x)
        if self.heads.num_heads > 1:
            vectors = vectors.log_softmax(1)
        return x, vectors, self.heads.bn(self.heads.fc(vectors.sum(1)))

    def original_weights(self) -> dict:
        """Get the weights under the names of the original code."""
        return {
            name.replace('heads.', '', 1): value
            for name, value in self.state_dict().items()
        }

    def save(self, path: str) -> None:
        """Save it as a checkpoint of ours, with the classes of RAF-DB."""
        from dan_to_mmpretrain import main as convert
        with tempfile.NamedTemporaryFile(suffix='.pth') as file:
            torch.save(
                dict(model_state_dict=self.original_weights()), file.name)
            convert([file.name, path, '--dataset', 'rafdb'])
