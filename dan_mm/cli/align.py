# Copyright (c) dan_mm contributors. All rights reserved.
"""Find the faces of a tree of images, and write the same tree of aligned
crops."""
import argparse
import os

from .config import add_detector_arguments
from .output import add_verbose, results_only

HELP = 'write aligned crops of the faces of a tree of images'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'src', help='the folder of images; nothing in it is changed')
    parser.add_argument('dst', help='the folder to write')
    parser.add_argument(
        '--faces',
        choices=['largest', 'central', 'confident', 'all'],
        default='largest',
        help='which faces of an image to write (default: %(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        default=224,
        help='the side of a crop in pixels (default: %(default)s)')
    parser.add_argument(
        '--margin',
        type=float,
        default=0.1,
        help='what to add around the face on each side, as a share of the '
        'crop (default: %(default)s)')
    parser.add_argument(
        '--interpolation',
        choices=['nearest', 'bilinear', 'bicubic', 'lanczos'],
        default='bilinear',
        help='(default: %(default)s)')
    parser.add_argument(
        '--like',
        metavar='MODEL',
        help='align as the faces that a model was trained on (a checkpoint, a '
        'work folder, or a name of the model index), instead of --size, '
        '--margin and --interpolation')
    add_detector_arguments(parser)
    parser.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count(),
        help='processes that decode images (default: %(default)s)')
    add_verbose(parser)


def run(args: argparse.Namespace) -> int:
    with results_only(args.verbose) as output:
        from dan_mm.apis.align_tree import run
        return run(args, output)
