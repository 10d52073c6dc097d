# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure training: loading samples and steps against the original code, and
how time and memory of a step grow."""
import argparse
import gc
import os
import os.path as osp
import tempfile
import warnings
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import Callable, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, MODELS, OPTIMIZERS
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn
from torchvision import transforms

import dan_mm
from dan_mm.engine import ChannelsLastHook
from dan_mm.models.losses import affinity_loss, partition_loss
from .common import ROOT, Reference, in_turn, ratio

CONFIG = f'{ROOT}/configs/dan_rafdb.py'
SECTIONS = ('loading', 'step', 'growth')
# Sides in pixels and extensions of the images that are loaded
FILES = ((48, 'png'), (100, 'jpg'), (350, 'jpg'))
GROWTH = dict(
    heads=[1, 2, 4, 8],
    size=[96, 160, 224, 320],
    batch=[8, 16, 32, 64],
    processes=[1, 2],
    images=[1000, 4000, 16000])
SETTINGS = dict(heads=4, size=224, batch=32, processes=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--section', nargs='+', choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        '--images',
        nargs='+',
        default=[f'{ROOT}/docs/images/astronaut.jpg'],
        help='photographs to cut the images out of (%(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='(%(default)s)')
    parser.add_argument(
        '--threads',
        type=int,
        default=os.cpu_count(),
        help='of a step; samples are loaded by one (%(default)s)')
    parser.add_argument('--out', help='a folder for the table and the figure')


# What the original code does on RAF-DB
# https://github.com/yaoing/DAN/blob/main/rafdb.py
ORIGINAL = transforms.Compose([
    transforms.Resize((224, 224)),
    transforms.RandomHorizontalFlip(),
    transforms.RandomApply([
        transforms.RandomRotation(20),
        transforms.RandomCrop(224, padding=32),
    ], 0.2),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    transforms.RandomErasing(scale=(0.02, 0.25)),
])


def write_rafdb(root: str, photographs: Sequence[np.ndarray], side: int,
                extension: str, number: int) -> None:
    """Write cut-outs of photographs in the layout of RAF-DB."""
    folder = osp.join(root, 'Image', 'aligned')
    os.makedirs(folder)
    os.makedirs(osp.join(root, 'EmoLabel'))
    rng = np.random.default_rng(0)
    lines = []
    for i in range(number):
        img = photographs[i % len(photographs)]
        size = min(img.shape[:2]) * 3 // 4
        top, left = (
            rng.integers(0, length - size + 1) for length in img.shape[:2])
        crop = cv2.resize(
            img[top:top + size, left:left + size], (side, side),
            interpolation=cv2.INTER_AREA)
        # Whatever its extension, the content tells the format.
        content = cv2.imencode(f'.{extension}', crop)[1].tobytes()
        path = osp.join(folder, f'train_{i:05d}_aligned.jpg')
        with open(path, 'wb') as file:
            file.write(content)
        lines.append(f'train_{i:05d}.jpg {i % 7 + 1}')
    path = osp.join(root, 'EmoLabel', 'list_patition_label.txt')
    with open(path, 'w') as file:
        file.write('\n'.join(lines))


def measure_loading(photographs: Sequence[np.ndarray],
                    rounds: int,
                    number: int = 256) -> None:
    """Print images a second, by one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers do
    cv2.setNumThreads(0)
    cfg = Config.fromfile(CONFIG).train_dataloader.dataset
    print('\nloading, one core     original  without cache        with cache')
    for side, extension in FILES:
        with tempfile.TemporaryDirectory() as root, \
                warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*official split')
            write_rafdb(root, photographs, side, extension, number)
            plain, cached = (
                DATASETS.build(dict(cfg, data_root=root, cache=cache))
                for cache in (None, 'cache'))
            paths = [plain.get_data_info(i)['img_path'] for i in range(number)]

            def load_original() -> None:
                for path in paths:
                    ORIGINAL(Image.open(path).convert('RGB'))

            def load(dataset: Sequence) -> None:
                for i in range(number):
                    dataset[i]

            times = in_turn(
                dict(
                    original=load_original,
                    plain=lambda: load(plain),
                    cached=lambda: load(cached)), rounds)
        speed = {
            name: number / median(values)
            for name, values in times.items()
        }
        print(f'{side:3} pixels, {extension.upper():5} '
              f'{speed["original"]:7.0f}/s  ' +
              '  '.join(f'{speed[name]:6.0f}/s '
                        f'({ratio(times["original"], times[name]):5.2f}x)'
                        for name in ('plain', 'cached')))
    torch.set_num_threads(threads)


def build(heads: int = 4) -> nn.Module:
    """Build DAN of the recipe of RAF-DB, from scratch."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.init_cfg = None
    cfg.model.neck.num_heads = heads
    return MODELS.build(cfg.model).train()


def make_step(model: nn.Module, batch: int, size: int) -> Callable[[], float]:
    """Make a function that trains a model for a step, on inputs that are
    normalised already, and returns the loss."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(
        256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(batch) % 7
    samples = [DataSample().set_gt_label(label) for label in labels]
    cfg = Config.fromfile(CONFIG)
    preprocessor = MODELS.build(
        dict(cfg.data_preprocessor, type='ClsDataPreprocessor'))
    data = preprocessor(dict(inputs=inputs, data_samples=samples))
    options = dict(cfg.optim_wrapper.optimizer, params=model.parameters())
    if isinstance(model, Reference):

        def loss() -> torch.Tensor:
            x, vectors, scores = model(data['inputs'])
            return (nn.functional.cross_entropy(scores, labels) +
                    affinity_loss(x.mean(
                        (2, 3)), model.heads.centers, labels) +
                    partition_loss(vectors))
    else:
        ChannelsLastHook.reorder(preprocessor, (), data)

        def loss() -> torch.Tensor:
            losses = model(**data, mode='loss')
            return sum(value for key, value in losses.items()
                       if key.startswith('loss'))

    optimizer = OPTIMIZERS.build(options)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def measure_step(rounds: int, batch: int = 32, size: int = 224) -> None:
    """Print the time of a step, and the losses of both."""
    from dan_to_mmpretrain import convert
    torch.manual_seed(0)
    reference = Reference().train()
    weights = convert(dict(model_state_dict=reference.original_weights()))
    model = build()
    model.load_state_dict(weights)
    steps = {
        'original': make_step(reference, batch, size),
        'ours': make_step(model, batch, size)
    }
    first = {name: step() for name, step in steps.items()}
    times = in_turn(steps, rounds)
    print(f'\nstep, batch of {batch}, {size} pixels, float32\n'
          f'original  {median(times["original"]):6.2f} s, first loss '
          f'{first["original"]:.6f}\n'
          f'ours      {median(times["ours"]):6.2f} s, first loss '
          f'{first["ours"]:.6f}, '
          f'{ratio(times["original"], times["ours"]):.2f} times as fast')


def peak_memory() -> float:
    """The peak of this process's memory since the last call, in MB."""
    with open('/proc/self/status') as file:
        [line] = [line for line in file if line.startswith('VmHWM')]
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return int(line.split()[1]) / 1024


def prepare(threads: int) -> None:
    """Begin a process that measures."""
    dan_mm.register_all_modules()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    DefaultScope.get_instance('benchmark', scope_name='mmpretrain')
    peak_memory()


def measure_one(name: str, settings: dict, rounds: int) -> Tuple[float, float]:
    """Measure a step of one process: the median time in seconds, and the peak
    of the memory in MB, imports included."""
    prepare(settings['threads'])
    model = (
        Reference(settings['heads']).train()
        if name == 'original' else build(settings['heads']))
    step = make_step(model, settings['batch'], settings['size'])
    times = in_turn({name: step}, rounds)[name]
    return median(times), peak_memory()


def join(rank: int, settings: dict, rounds: int, folder: str) -> None:
    """Measure a step of one of several processes with DDP."""
    processes = settings['processes']
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=processes)
    prepare(max(settings['threads'] // processes, 1))
    # Of weights of 1x1, whose two orders are the same
    warnings.filterwarnings('ignore', 'Grad strides do not match')
    model = nn.parallel.DistributedDataParallel(
        build(), broadcast_buffers=False)
    step = make_step(model, settings['batch'] // processes, settings['size'])
    times = in_turn(dict(step=step), rounds)['step']
    torch.save((median(times), peak_memory()), f'{folder}/{rank}.pth')
    torch.distributed.barrier()
    del model, step
    gc.collect()
    torch.distributed.destroy_process_group()


def measure_processes(settings: dict, rounds: int) -> Tuple[float, float]:
    """Measure a step of several processes that share a batch: the time in
    seconds, and the memory of all in MB."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(join, (settings, rounds, folder),
                                    settings['processes'])
        found = [
            torch.load(f'{folder}/{rank}.pth')
            for rank in range(settings['processes'])
        ]
    return max(time for time, _ in found), sum(memory for _, memory in found)


def open_dataset(number: int) -> Tuple[float, float]:
    """Measure a dataset with a cache, which is there: the time to open it in
    seconds, and the memory in MB."""
    prepare(1)
    cfg = Config.fromfile(CONFIG).train_dataloader.dataset
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write_rafdb(root, [np.zeros((99, 99, 3), np.uint8)], 48, 'png', number)
        cfg.data_root = root
        DATASETS.build(cfg)
        peak_memory()
        start = perf_counter()
        DATASETS.build(cfg)
        return perf_counter() - start, peak_memory()


def measure_growth(rounds: int, threads: int) -> List[dict]:
    """Print time and memory of a step against each setting, each in a process
    of its own."""
    from rich.progress import track
    base = dict(SETTINGS, threads=threads)
    context = get_context('spawn')

    def apart(function: Callable, *args) -> Tuple[float, float]:
        with context.Pool(1) as pool:
            return pool.apply(function, args)

    rows = []
    for key, value in track([(key, value) for key, values in GROWTH.items()
                             for value in values],
                            'Growth',
                            transient=True):
        settings = {**base, key: value}
        row = dict(setting=key, value=value)
        if key == 'images':
            row['ours'] = apart(open_dataset, value)
        elif key == 'processes':
            row['ours'] = measure_processes(settings, rounds)
        else:
            row['original'], row['ours'] = (
                apart(measure_one, name, settings, rounds)
                for name in ('original', 'ours'))
        rows.append(row)
    print('\ngrowth                      original                  ours')
    for row in rows:
        cells = [f'{row["setting"]:9} {row["value"]:6}']
        cells += [
            f'{row[name][0]:8.3f} s {row[name][1]:6.0f} MB'
            if name in row else ' ' * 20 for name in ('original', 'ours')
        ]
        if 'original' in row:
            cells.append(f'{row["original"][0] / row["ours"][0]:5.2f}x')
        print('  '.join(cells))
    return rows


def draw_growth(rows: Sequence[dict], path: str) -> None:
    """Draw time and memory against each setting."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    keys = list(dict.fromkeys(row['setting'] for row in rows))
    labels = dict(
        heads='attention heads',
        size='side of the image, pixels',
        batch='images in a batch',
        processes='processes for a batch',
        images='images of the dataset, opened')
    figure, axes = plt.subplots(2, len(keys), figsize=(2.5 * len(keys), 4.6))
    for column, key in enumerate(keys):
        own = [row for row in rows if row['setting'] == key]
        for line, factor in enumerate((1, 1 / 1024)):
            for name, colour, marker in (('original', '#d55e00', 'o'),
                                         ('ours', '#0072b2', 's')):
                points = [(row['value'], factor * row[name][line])
                          for row in own if name in row]
                if points:
                    axes[line, column].plot(
                        *zip(*points), marker=marker, color=colour, label=name)
            axes[line, column].set_ylim(
                0, 1.08 * max(factor * row[name][line] for row in own
                              for name in ('original', 'ours') if name in row))
            values = [row['value'] for row in own]
            axes[line, column].set_xticks(
                values,
                [f'{v // 1000}k' if v > 999 else f'{v}' for v in values])
        axes[1, column].set_xlabel(labels[key])
    axes[0, 0].set_ylabel('seconds a step')
    axes[1, 0].set_ylabel('peak memory, GB')
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def run(args: argparse.Namespace) -> int:
    photographs = [cv2.imread(path) for path in args.images]
    for path, img in zip(args.images, photographs):
        if img is None:
            raise SystemExit(f'Found no image {path}. Check the path.')
    dan_mm.register_all_modules()
    torch.set_num_threads(args.threads)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        if 'loading' in args.section:
            measure_loading(photographs, args.rounds)
        if 'step' in args.section:
            measure_step(args.rounds)
        if 'growth' in args.section:
            rows = measure_growth(args.rounds, args.threads)
            if args.out:
                os.makedirs(args.out, exist_ok=True)
                draw_growth(rows, osp.join(args.out, 'training_growth.png'))
    return 0
