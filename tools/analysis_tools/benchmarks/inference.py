# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure inference against the authors' model and the original detector, as
``tests/`` has them in plain, eager PyTorch: same weights, same processors, in
turn."""
import argparse
import json
import os
import os.path as osp
import re
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter
from typing import Callable, Dict, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import dan_mm
from dan_mm.apis import FERInferencer
from dan_mm.apis.faces import FaceDetector
from dan_mm.cli.predict import write_json
from dan_mm.imaging import align_face
from dan_mm.models.retinaface_weights import WEIGHTS
from .common import ROOT, Reference, in_turn, ratio

SECTIONS = ('classifier', 'detector', 'photograph', 'video', 'start')
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--section', nargs='+', choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        '--images',
        nargs='+',
        default=[f'{ROOT}/docs/images/astronaut.jpg'],
        help='photographs: the one with the most faces is looked at whole, '
        'int8 is calibrated on all (%(default)s)')
    parser.add_argument('--rounds', type=int, default=10, help='(%(default)s)')
    parser.add_argument('--out', help='a JSON file for the numbers')


class Models:
    """The models that are compared, exported to a folder.

    Args:
        folder (str): The folder.
        images (Sequence[str]): What int8 is calibrated on.
    """

    def __init__(self, folder: str, images: Sequence[str]) -> None:
        torch.manual_seed(0)
        self.reference = Reference()
        # BatchNorm that has seen nothing lets the numbers grow.
        with torch.no_grad():
            for _ in range(20):
                self.reference(torch.randn(8, 3, 96, 96))
        self.reference.eval()
        checkpoint = osp.join(folder, 'dan-resnet18.pth')
        self.reference.save(checkpoint)
        self.paths = {}
        for name, model in (('DAN on ResNet-18', checkpoint), ('shipped',
                                                               None)):
            out = osp.join(folder, name)
            command = [sys.executable, '-m', 'dan_mm', 'export']
            command += [model] if model else []
            subprocess.run([*command, out, '--calibrate', *images], check=True)
            self.paths[name] = model, out

    def inferencers(self, name: str) -> Dict[str, FERInferencer]:
        """Get a model as a user has it."""
        model, out = self.paths[name]
        made = dict(
            torch=FERInferencer(model, device='cpu'),
            float32=FERInferencer(out),
            int8=FERInferencer(out, precision='int8'))
        for inferencer in made.values():
            inferencer.detector = FaceDetector(
                device='cpu', export=inferencer.export)
        return made


def original_detector() -> Callable[[np.ndarray], np.ndarray]:
    """Build the procedure of the original code."""
    import retinaface_reference

    from dan_mm.checkpoint import load_file
    from dan_mm.hub import download
    name = 'retinaface_mobilenet0.25'
    network = retinaface_reference.RetinaFace(name).eval()
    network.load_state_dict({
        re.sub(r'^module\.', '', key): value
        for key, value in load_file(download(**WEIGHTS[name])).items()
    })
    return lambda img: retinaface_reference.detect(network, img)


def normalise(crops: Sequence[np.ndarray]) -> torch.Tensor:
    """Make the input of the reference."""
    x = torch.from_numpy(np.stack(crops)[..., ::-1].copy()).float()
    return ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def machine() -> Tuple[str, float, float]:
    """The processor and its instructions for neural networks, and the limits:
    float32 operations a second in a matrix product, bytes a second that a copy
    reads and writes."""
    name, flags = 'unknown processor', []
    if osp.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            info = dict(
                map(str.strip, line.split(':', 1)) for line in file
                if ':' in line)
        name = info.get('model name', name)
        flags = [
            flag for flag in info.get('flags', '').split()
            if flag.startswith(('avx2', 'avx512', 'avx_vnni', 'amx'))
        ]
    one = torch.rand(2048, 2048)
    source, target = torch.rand(2**26), torch.empty(2**26)
    times = in_turn(
        dict(
            product=lambda: torch.mm(one, one),
            copy=lambda: target.copy_(source)), 5)
    return (f'{name}, {os.cpu_count()} processors ({" ".join(flags)})',
            2 * 2048**3 / min(times['product']),
            2 * 4 * 2**26 / min(times['copy']))


def cost(model: Callable, x: torch.Tensor) -> Tuple[float, float]:
    """Count the operations of a model, and the bytes that its layers read and
    write."""
    moved = 0

    def add(module: torch.nn.Module, inputs: tuple,
            output: torch.Tensor) -> None:
        nonlocal moved
        for value in (*inputs, output, *module.parameters()):
            if isinstance(value, torch.Tensor):
                moved += value.numel() * value.element_size()

    hooks = [
        module.register_forward_hook(add) for module in model.modules()
        if not list(module.children())
    ]
    with FlopCounterMode(display=False) as counter:
        model(x)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), moved


class Table:
    """Print rows as they are measured, and keep them."""

    def __init__(self) -> None:
        self.rows: List[dict] = []

    def add(self,
            section: str,
            times: Dict[str, List[float]],
            base: str,
            count: int = 1,
            unit: str = 'images') -> None:
        """Add the rows of a section: times of ``count`` items."""
        print(f'\n{section:42} {unit}/s    ratio')
        for name, values in times.items():
            row = dict(
                section=section,
                row=name,
                per_second=count / median(values),
                ratio=ratio(times[base], values))
            self.rows.append(row)
            print(f'{name:42} {row["per_second"]:8.1f} {row["ratio"]:7.2f}x')


@torch.inference_mode()
def measure_classifiers(models: Models, table: Table, rounds: int) -> None:
    """Measure the classifiers alone, on crops of their size."""
    _, flops, bandwidth = machine()
    rng = np.random.default_rng(0)
    ours = {name: models.inferencers(name) for name in models.paths}
    for batch in 1, 16:
        rows = {}
        for name, inferencers in ours.items():
            for kind, inferencer in inferencers.items():
                classifier = inferencer._classifier
                size = 224 if name.startswith('DAN') else 112
                crops = [
                    rng.integers(0, 256, (size, size, 3), np.uint8)
                    for _ in range(batch)
                ]
                rows[f'{name}, {size}, {kind}'] = (
                    lambda run=classifier, crops=crops: run(
                        crops, False, False))
        x = torch.randn(batch, 3, 224, 224)
        times = in_turn(
            dict(reference=lambda: models.reference(x), **rows), rounds)
        table.add(f'classifier, batch of {batch}', times, 'reference', batch)
        operations, moved = cost(models.reference, x)
        least = max(operations / flops, moved / bandwidth)
        print(f'The reference takes {operations / 1e9:.1f} GFLOP and moves '
              f'{moved / 1e6:.0f} MB: at the limits '
              f'{1e3 * operations / flops:.1f} and '
              f'{1e3 * moved / bandwidth:.1f} ms, it takes '
              f'{1e3 * median(times["reference"]):.1f} ms, '
              f'{100 * least / median(times["reference"]):.0f} % of the '
              'limit.')


@torch.inference_mode()
def measure_detectors(models: Models, table: Table, rounds: int,
                      photographs: Sequence[np.ndarray]) -> None:
    """Measure the detectors, an image at a time."""
    original = original_detector()
    ours = models.inferencers('shipped')
    for img in photographs:
        height, width = img.shape[:2]
        found = len(ours['torch'].detector([img])[0])
        times = in_turn(
            dict(
                original=lambda: original(img),
                **{
                    kind: lambda run=inferencer.detector: run([img])
                    for kind, inferencer in ours.items()
                }), rounds)
        table.add(f'detector, {width}x{height}, {found} faces', times,
                  'original')


@torch.inference_mode()
def measure_photograph(models: Models, table: Table, rounds: int,
                       img: np.ndarray) -> None:
    """Measure the way from a photograph to its answers."""
    original = original_detector()

    def naive() -> None:
        for row in original(img):
            if row[4] > 0.5:
                crop = align_face(img, row[5:].reshape(5, 2), size=224)
                models.reference(normalise([crop]))[2].softmax(1)

    functions = dict(naive=naive)
    for name in models.paths:
        for kind, inferencer in models.inferencers(name).items():
            functions[f'{name}, {kind}'] = (lambda run=inferencer: run(img))
    faces = len(models.inferencers('shipped')['float32'](img)[0].faces)
    height, width = img.shape[:2]
    table.add(f'photograph, {width}x{height}, {faces} faces',
              in_turn(functions, rounds), 'naive')


def write_video(path: str, img: np.ndarray, frames: int) -> None:
    """Write 720p, the photograph moving slowly to and fro."""
    scale = 720 / img.shape[0]
    img = cv2.resize(img, None, fx=scale, fy=scale)[:720, :1240]
    # What every OpenCV can write
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), 30,
                             (1280, 720))
    for number in range(frames):
        frame = np.full((720, 1280, 3), 90, np.uint8)
        left = round(20 + 20 * np.sin(number / 15))
        frame[:img.shape[0], left:left + img.shape[1]] = img
        writer.write(frame)
    writer.release()


def measure_video(models: Models,
                  table: Table,
                  rounds: int,
                  img: np.ndarray,
                  folder: str,
                  frames: int = 200) -> None:
    """Measure a video of 720p with the results of each frame written."""
    path = osp.join(folder, 'video.mp4')
    write_video(path, img, frames)

    def predict(inferencer: FERInferencer) -> None:
        with open(os.devnull, 'w') as file:
            for image, result in inferencer.stream_images(path):
                write_json(file, image, result)

    times = in_turn(
        {
            kind: lambda run=inferencer: predict(run)
            for kind, inferencer in models.inferencers('shipped').items()
        }, max(rounds // 4, 1))
    table.add('video, 1280x720, shipped', times, 'torch', frames, 'frames')


def measure_start(models: Models, table: Table, img: np.ndarray,
                  folder: str) -> None:
    """Measure from the start of a process to its first answer."""
    path = osp.join(folder, 'start.png')
    cv2.imwrite(path, cv2.resize(img, (640, 640)))
    code = ('import sys; from dan_mm.apis import FERInferencer; '
            'print(FERInferencer(sys.argv[2] or None)(sys.argv[1]))')
    model, out = models.paths['shipped']
    times = in_turn(
        {
            kind:
            lambda name=name: subprocess.run(
                [sys.executable, '-c', code, path, name or ''],
                check=True,
                capture_output=True)
            for kind, name in (('torch', model), ('float32', out))
        }, 3)
    table.add(
        'start to the first answer, 640x640', times, 'torch', unit='answers')


def run(args: argparse.Namespace) -> int:
    images = [(path, cv2.imread(path)) for path in args.images]
    for path, img in images:
        if img is None:
            raise SystemExit(f'Found no image {path}. Check the path.')
    dan_mm.register_all_modules()
    table = Table()
    name, flops, bandwidth = machine()
    print(f'{name}; {flops / 1e9:.0f} GFLOP/s in a matrix product, '
          f'{bandwidth / 1e9:.1f} GB/s in a copy; torch {torch.__version__}; '
          f'medians of {args.rounds} rounds in turn')
    begin = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        models = Models(folder, args.images)
        detector = models.inferencers('shipped')['float32'].detector
        faces = [len(detector([img])[0]) for _, img in images]
        group = images[int(np.argmax(faces))][1]
        portrait = images[int(
            np.argmin(np.array(faces) + 99 * (np.array(faces) == 0)))][1]
        if 'classifier' in args.section:
            measure_classifiers(models, table, args.rounds)
        if 'detector' in args.section:
            square = cv2.resize(portrait, (640, 640))
            measure_detectors(models, table, args.rounds, [square, group])
        if 'photograph' in args.section:
            measure_photograph(models, table, args.rounds, group)
        if 'video' in args.section:
            measure_video(models, table, args.rounds, portrait, folder)
        if 'start' in args.section:
            measure_start(models, table, portrait, folder)
    print(f'\nin {perf_counter() - begin:.0f} s')
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(
                dict(
                    machine=name,
                    flops=flops,
                    bandwidth=bandwidth,
                    rows=table.rows),
                file,
                indent=1)
    return 0
