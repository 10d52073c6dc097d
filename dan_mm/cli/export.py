# Copyright (c) dan_mm contributors. All rights reserved.
"""Write a model and the face detector as ONNX files into a folder, which
`dan-mm predict --model OUT` and `FERInferencer('OUT')` run with NumPy, OpenCV
and onnxruntime alone.
"""
import argparse
import os.path as osp
import sys
from typing import IO, List

from .config import find_config
from .output import add_verbose, results_only

HELP = 'write a model as ONNX files, which run without PyTorch'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command line."""
    parser.add_argument(
        'model',
        nargs='?',
        help='a checkpoint, a work folder, or a name of the model index '
        '(default: the model that is shipped)')
    parser.add_argument(
        'out', help='the folder to write: new, empty, or an earlier export')
    parser.add_argument(
        '--config', help='the config of the model, which is code and runs')
    parser.add_argument(
        '--calibrate',
        nargs='+',
        metavar='IMAGE',
        help='write int8 models, too, calibrated on these images or folders, '
        "or on a config's validation set: dan_ferplus")
    parser.add_argument(
        '--aligned',
        action='store_true',
        help='the images to calibrate on are aligned crops of one face')
    add_verbose(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with results_only(args.verbose) as output:
        return export(args, output)


def export(args: argparse.Namespace, output: IO[str]) -> int:
    """Export a model, and print the files."""
    if args.aligned and not args.calibrate:
        raise ValueError('Got --aligned without --calibrate, expected both.')
    from dan_mm.apis.media import expand
    sources, aligned = [], args.aligned
    if args.calibrate:
        if len(args.calibrate) == 1 and not osp.isdir(
                args.calibrate[0]) and (args.calibrate[0].endswith('.py')
                                        or not osp.exists(args.calibrate[0])):
            sources, aligned = find_validation(args.calibrate[0]), True
        else:
            sources = expand(args.calibrate)
    try:
        from dan_mm.onnx.export import export as write
        from dan_mm.onnx.quantize import quantize
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error.name} is missing, expected it for the export. Run `pip '
            'install onnx onnxruntime onnxscript`.') from error
    print('Exporting ...', file=sys.stderr)
    inferencer = write(args.model, args.out, args.config)
    if args.calibrate:
        print('Quantizing ...', file=sys.stderr)
        quantize(args.out, inferencer, sources, aligned)
    from dan_mm.onnx.folder import list_files
    for name, size in list_files(args.out):
        print(f'{size / 1e6:6.1f} MB  {osp.join(args.out, name)}', file=output)
    return 0


def find_validation(name: str) -> List[str]:
    """List the images of the validation set of a config."""
    from mmengine.config import Config
    from mmengine.registry import DATASETS

    from dan_mm.scope import default_scope
    cfg = Config.fromfile(find_config(name))
    if not cfg.get('val_dataloader'):
        raise ValueError(f'The config {name} has no validation set, expected '
                         'one. Give images to --calibrate.')
    with default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
