# Copyright (c) dan_mm contributors. All rights reserved.
"""Answer HTTP requests: images in, the expressions of their faces as JSON
out. Requests that arrive together share a batch."""
import argparse
import socket
import sys
from typing import IO

from .config import add_detector_arguments, add_model_arguments
from .output import add_verbose, results_only

HELP = 'answer HTTP requests with the expressions of faces'
# In which requests that are under way are answered when it is stopped
STOP_SECONDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='the address to listen at (default: %(default)s, which others '
        'cannot reach)')
    parser.add_argument(
        '--port',
        type=int,
        default=8000,
        help='the port to listen on (default: %(default)s); 0 is a free one')
    parser.add_argument(
        '--max-body',
        type=int,
        default=32,
        metavar='MiB',
        help='the size of a request (default: %(default)s)')
    parser.add_argument(
        '--max-requests',
        type=int,
        default=64,
        help='how many requests may be under way at once (default: '
        '%(default)s); the next one gets the status 503')
    parser.add_argument(
        '--timeout',
        type=float,
        default=30,
        metavar='SECONDS',
        help='after which a request gets the status 504 (default: '
        '%(default)s)')
    add_detector_arguments(parser)
    add_verbose(parser)


def run(args: argparse.Namespace) -> int:
    for name in 'max_body', 'max_requests', 'timeout':
        if not getattr(args, name) > 0:
            option = name.replace('_', '-')
            raise ValueError(f'Got --{option} {getattr(args, name)}, expected '
                             'more than 0.')
    with results_only(args.verbose) as output:
        serve(args, output)
    return 0


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before anything that takes time."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    # With the protocol by its number, asyncio leaves out the delay in which
    # the body of each answer would wait for the client.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != 'win32':
            # Or a port would be taken for a minute after the server has ended.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f'Cannot listen at {host}, port {port} ({error}). Free '
                      'the port, or give another one with --port.') from error
    return listener


def serve(args: argparse.Namespace, output: IO[str]) -> None:
    """See :func:`run`."""
    import numpy as np

    from dan_mm.apis import FaceDetector, FERInferencer
    # First, since it says what to install.
    from dan_mm.apis.server import Connection, Limits, build_app
    import uvicorn  # isort: skip

    from dan_mm.apis.web_guard import is_loopback
    listener = bind(args.host, args.port)
    inferencer = FERInferencer(
        args.model,
        args.config,
        device=args.device,
        batch_size=args.batch_size,
        precision=args.precision)
    inferencer.detector = FaceDetector(
        args.detector_config,
        args.detector_checkpoint,
        device=args.device,
        score_thr=args.score_thr,
        export=inferencer.export)
    # What does not work is said now, not to the first request.
    inferencer(np.zeros((64, 64, 3), np.uint8))
    limits = Limits(args.max_body * 2**20, args.max_requests, args.timeout)
    app = build_app(inferencer, args.host, limits)
    if not is_loopback(args.host):
        print(
            f'Warning: --host got {args.host}, expected 127.0.0.1. Others on '
            'the network can send it images; it has no users or passwords. '
            'Leave out --host to keep it to this machine.',
            file=sys.stderr)
    host = f'[{args.host}]' if ':' in args.host else args.host
    listener.listen()
    print(
        f'Listening at http://{host}:{listener.getsockname()[1]}, explained '
        'at /docs. Ctrl-C stops it.',
        file=output,
        flush=True)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws='none',
        # It would close the files of other logs.
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS)
    uvicorn.Server(config).run(sockets=[listener])
