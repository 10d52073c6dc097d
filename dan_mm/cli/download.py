# Copyright (c) dan_mm contributors. All rights reserved.
"""Download once what prediction needs, and print the size and the path of each
file. For a machine without a network, run it on another one and copy the files
to the same paths there, in PyTorch's folder, which TORCH_HOME moves."""
import argparse
import os.path as osp

from .output import results_only

HELP = 'download once what prediction needs, for machines without a network'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command line: there are none."""


def run(args: argparse.Namespace) -> int:
    with results_only(verbose=False) as output:
        from dan_mm.apis.model_index import shipped_model
        from dan_mm.hub import download
        from dan_mm.models.retinaface_weights import WEIGHTS
        detector = download(**WEIGHTS['retinaface_mobilenet0.25'])
        for name, path in (('face detector', detector), ('expressions',
                                                         shipped_model())):
            print(
                f'{name:13}  {osp.getsize(path) / 1e6:5.1f} MB  {path}',
                file=output)
    return 0
