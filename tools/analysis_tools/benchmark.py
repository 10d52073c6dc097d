# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure the time of inference against a plain, eager model as the authors
have it (``tests/reference.py``, with torchvision's ResNet-18), in one run."""
import argparse
import os
import os.path as osp
import sys
from statistics import median
from time import perf_counter
from typing import Callable, Dict, List

import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch import nn
from torchvision.models import resnet18

from dan_mm import register_all_modules
from dan_mm.apis import find_model
from dan_mm.description import build_classifier
from dan_mm.models import switch_to_deploy

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
sys.path.append(osp.join(ROOT, 'tests'))
from reference import ReferenceDAN  # noqa: E402 isort: skip

DAN = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='MAN', in_channels=512),
    head=dict(type='AFN', num_classes=8, in_channels=512))


class Reference(nn.Module):
    """DAN as the authors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(resnet18().children())[:-2])
        self.heads = ReferenceDAN(512, 4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads(self.features(x))[1]


def build(deploy: bool, size: int, shipped: bool = False) -> ImageClassifier:
    """Build DAN on ResNet-18 with random weights, or the shipped model."""
    if shipped:
        found = find_model()
        model = build_classifier(found.description, found.weights, found.path)
    else:
        model = MODELS.build(DAN)
    if deploy:
        switch_to_deploy(model, torch.Size((1, 3, size, size)))
    return model.eval()


@torch.inference_mode()
def measure(models: Dict[str, Callable], sizes: Dict[str, int], batch: int,
            rounds: int) -> Dict[str, List[float]]:
    """Run the models in turn, so that all see the same machine."""
    inputs = {
        name: torch.rand(batch, 3, sizes[name], sizes[name])
        for name in models
    }
    times: Dict[str, List[float]] = {name: [] for name in models}
    for _ in range(rounds + 2):
        for name, model in models.items():
            start = perf_counter()
            model(inputs[name])
            times[name].append(perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def processor() -> str:
    """The name of the processor and its instructions for neural networks."""
    if not osp.exists('/proc/cpuinfo'):
        return 'unknown processor'
    with open('/proc/cpuinfo') as file:
        info = dict(
            map(str.strip, line.split(':', 1)) for line in file if ':' in line)
    flags = [
        flag for flag in info.get('flags', '').split()
        if flag in ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16',
                    'amx_tile', 'amx_int8')
    ]
    return f'{info.get("model name", "unknown processor")} ({" ".join(flags)})'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['inference'])
    parser.add_argument(
        '--threads', type=int, default=os.cpu_count(), help='(%(default)s)')
    parser.add_argument('--rounds', type=int, default=30, help='(%(default)s)')
    args = parser.parse_args()
    register_all_modules()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        models = {
            'reference, 224': Reference().eval(),
            'DAN on ResNet-18, as trained, 224': build(False, 224),
            'DAN on ResNet-18, deployed, 224': build(True, 224),
            'shipped model, as trained, 112': build(False, 112, True),
            'shipped model, deployed, 112': build(True, 112, True),
        }
    sizes = {name: int(name[-3:]) for name in models}
    print(f'{processor()}; {args.threads} threads, torch {torch.__version__}, '
          f'medians of {args.rounds} rounds')
    for batch in 1, 16:
        times = measure(models, sizes, batch, args.rounds)
        base = times['reference, 224']
        print(f'\nbatch of {batch:2}                       images/s  '
              'times as fast as the reference')
        for name, values in times.items():
            ratio = median(one / own for one, own in zip(base, values))
            print(f'{name:34} {batch / median(values):8.1f}  {ratio:6.2f}')


if __name__ == '__main__':
    main()
