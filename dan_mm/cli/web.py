# Copyright (c) dan_mm contributors. All rights reserved.
"""Show the expressions of faces, and what DAN looks at, on a page in the
browser that this machine serves to itself."""
import argparse
import os
import signal
import sys
from tempfile import TemporaryDirectory
from typing import IO

from .output import add_verbose, results_only

HELP = 'show the expressions of faces on a page in the browser'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model',
        nargs='?',
        help='checkpoint, work folder or name in the model index (default: '
        'the model that is shipped)')
    parser.add_argument(
        '--config',
        help='config of the checkpoint, where it is not found by itself; a '
        'config is code and is executed')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen at (default: %(default)s, which others can '
        'not reach)')
    parser.add_argument(
        '--port',
        type=int,
        help='port to listen on (default: the first free one from 7860)')
    parser.add_argument(
        '--device', help='such as cpu or cuda:1 (default: a GPU if any)')
    add_verbose(parser)


class Stopped(BaseException):
    """A signal, by its number, asks the process to end."""


def stop(number: int, _) -> None:
    # A second one does not wait.
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def run(args: argparse.Namespace) -> int:
    # By these signals, the folder of uploads would stay.
    for name in 'SIGINT', 'SIGTERM', 'SIGHUP':
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        # A request that is under way may still write there.
        with results_only(args.verbose) as output, TemporaryDirectory(
                ignore_cleanup_errors=True) as folder:
            # Gradio reads it when it is imported.
            os.environ['GRADIO_TEMP_DIR'] = folder
            serve(args, output)
    except Stopped as stopped:
        # A request that is under way would keep the process.
        signal.raise_signal(*stopped.args)
    return 0


def serve(args: argparse.Namespace, output: IO[str]) -> None:
    """See :func:`run`."""
    try:
        import numpy as np

        from dan_mm.apis import FERInferencer, web_page
        from dan_mm.apis.web_guard import is_loopback
        inferencer = FERInferencer(
            args.model, config=args.config, device=args.device)
        # What the detector lacks is said now, not to the first image.
        inferencer(np.zeros((64, 64, 3), np.uint8))
    except (ImportError, OSError, RuntimeError, TypeError,
            ValueError) as error:
        raise SystemExit(str(error))
    if not is_loopback(args.host):
        print(
            f'Warning: --host got {args.host}, expected 127.0.0.1. Others on '
            'the network can open the page and send it images. Leave out '
            '--host to keep it to this machine.',
            file=sys.stderr)
    # Gradio asks its own page whether it is there, even through a proxy.
    os.environ['no_proxy'] = '*'
    page = web_page.build(inferencer)
    try:
        url = web_page.launch(page, args.host, args.port)
    except OSError as error:
        raise SystemExit(f'Cannot listen at {args.host} ({error}). Free '
                         'the port, or give another one with --port.')
    print(
        f'The page is at {url}: open it in a browser. Ctrl-C stops it.',
        file=output,
        flush=True)
    page.block_thread()
