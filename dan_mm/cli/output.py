# Copyright (c) dan_mm contributors. All rights reserved.
"""What commands print: results on the standard output, the rest on the
standard error, and the output of other packages with ``--verbose`` only."""
import argparse
import io
import os
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any, Iterator


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--verbose`` to a command line."""
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='print the output of other packages and tracebacks, too')


def _show_warning(message: Any, *args, **kwargs) -> None:
    from dan_mm.apis.inferencer import printable
    print(f'Warning: {printable(str(message))}', file=sys.stderr)


def drop_output() -> None:
    """Leave nothing to write when Python ends."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def refuse_unwritten(path: str) -> Iterator[None]:
    """End the process with one sentence and the status 2 where a file can't be
    written."""
    try:
        yield
    except OSError as error:
        print(
            f'Cannot write {path}: {error.strerror or error}. Free space, '
            'change its permissions, or give another path.',
            file=sys.stderr)
        sys.exit(2)


@contextmanager
def results_only(verbose: bool) -> Iterator[IO[str]]:
    """Print results to the standard output, and nothing else.

    What other packages print there, such as the log of MMEngine, goes nowhere
    or to the standard error. Of warnings, those of this package are shown, as
    a line each."""
    if not verbose:
        # FFmpeg and OpenCV report every broken frame on the standard error.
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
        os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
    output = sys.stdout or open(os.devnull, 'w')
    # Names of files may be no valid text.
    output.reconfigure(errors='backslashreplace')
    with warnings.catch_warnings(), redirect_stdout(
            sys.stderr if verbose else io.StringIO()):
        if not verbose:
            warnings.simplefilter('ignore')
            warnings.filterwarnings('default', module=r'dan_mm\.')
            # The context restores it.
            warnings.showwarning = _show_warning
        yield output
