# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure how fast RetinaFace finds the faces of an image, on the CPU, one
image at a time, against the procedure of the original code with the same
weights, as tests/retinaface_reference.py has it."""
import argparse
import os.path as osp
import re
import runpy
import tempfile
import time
from typing import Callable, List, Optional, Sequence

import mmcv
import numpy as np
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.transforms import Compose
from mmdet.apis import inference_detector, init_detector
from mmdet.utils import get_test_pipeline_cfg

from dan_mm.checkpoint import load_file
from dan_mm.hub import download
from dan_mm.models.retinaface_weights import WEIGHTS, convert_file

ROOT = osp.join(osp.dirname(osp.abspath(__file__)), '..', '..')


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'images',
        nargs='*',
        help='images to find faces in (default: two of noise, 640x640 and '
        '1600x1158)')
    parser.add_argument(
        '--name',
        choices=sorted(WEIGHTS),
        default='retinaface_mobilenet0.25',
        help='the network (default: %(default)s)')
    parser.add_argument(
        '--weights', help='its public weights (default: download them)')
    parser.add_argument(
        '--threads', type=int, default=2, help='(default: %(default)s)')
    parser.add_argument(
        '--repeat',
        type=int,
        default=15,
        help='measurements, of which the median counts (default: %(default)s)')
    return parser.parse_args(argv)


def build_original(name: str,
                   weights: str) -> Callable[[np.ndarray], np.ndarray]:
    """Build the original detector."""
    reference = runpy.run_path(
        osp.join(ROOT, 'tests', 'retinaface_reference.py'))
    network = reference['RetinaFace'](name).eval()
    network.load_state_dict({
        re.sub(r'^module\.', '', key): value
        for key, value in load_file(weights).items()
    })
    return lambda img: reference['detect'](network, img)


def build_ours(name: str, weights: str) -> Callable[[np.ndarray], np.ndarray]:
    """Build our detector, made fast. It returns what the original does."""
    config = osp.join(ROOT, 'configs', 'retinaface', f'{name}_widerface.py')
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = osp.join(folder, 'converted.pth')
        convert_file(weights, checkpoint)
        model = init_detector(config, checkpoint, device='cpu')
    model = fuse_conv_bn(model).to(memory_format=torch.channels_last)
    pipeline = get_test_pipeline_cfg(model.cfg)
    pipeline[0].type = 'LoadImageFromNDArray'
    pipeline = Compose(pipeline)

    @torch.inference_mode()
    def detect(img: np.ndarray) -> np.ndarray:
        found = inference_detector(model, img, pipeline).pred_instances
        return torch.cat(
            [found.bboxes, found.scores[:, None],
             found.keypoints.flatten(1)], 1).numpy()

    return detect


def measure(functions: Sequence[Callable], img: np.ndarray,
            repeat: int) -> List[float]:
    """Measure functions of an image in turns."""
    seconds = []
    for _ in range(repeat + 2):
        row = []
        for function in functions:
            start = time.perf_counter()
            function(img)
            row.append(time.perf_counter() - start)
        seconds.append(row)
    # The first ones fill caches.
    return np.median(seconds[2:], 0).tolist()


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    weights = args.weights or download(**WEIGHTS[args.name])
    detectors = (build_original(args.name,
                                weights), build_ours(args.name, weights))
    images = [(path, mmcv.imread(path)) for path in args.images]
    if not images:
        rng = np.random.default_rng(0)
        images = [('noise', rng.integers(0, 256, (*shape, 3), np.uint8))
                  for shape in ((640, 640), (1158, 1600))]
    print(f'{args.name}, torch {torch.__version__}, {args.threads} threads, '
          f'median of {args.repeat}, in ms')
    for name, img in images:
        before, after = measure(detectors, img, args.repeat)
        counts = [(detect(img)[:, 4] > 0.5).sum() for detect in detectors]
        print(f'{name}, {img.shape[1]}x{img.shape[0]}: original '
              f'{1e3 * before:.1f} ({counts[0]} faces), ours '
              f'{1e3 * after:.1f} ({counts[1]} faces), ratio '
              f'{before / after:.2f}')


if __name__ == '__main__':
    main()
