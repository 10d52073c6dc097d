# Copyright (c) dan_mm contributors. All rights reserved.
"""Facial expressions of images and videos."""
import argparse
import errno
import sys
from typing import Optional, Sequence

from dan_mm.version import __version__
from . import align, doctor, download, export, predict, serve, test, train, web
from .output import drop_output

# Each module has `HELP`, `add_arguments(parser)` and `run(args)`, which
# returns the exit status. They import the standard library alone until `run`:
# help, typos and the version are answered at once, and `doctor` works where
# nothing else can be imported.
COMMANDS = dict(
    predict=predict,
    align=align,
    train=train,
    test=test,
    export=export,
    web=web,
    serve=serve,
    download=download,
    doctor=doctor)
# The exit status of an interrupted command, as in shells
INTERRUPTED = 130


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='dan-mm', description=__doc__)
    parser.add_argument(
        '--version', action='version', version=f'dan-mm {__version__}')
    commands = parser.add_subparsers(
        dest='command', metavar='COMMAND', required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line. The exit status is 0, 1 if something could not be
    read, or 2 if the command could not start or continue."""
    args = None
    try:
        args = parse_args(sys.argv[1:] if argv is None else list(argv))
        status = COMMANDS[args.command].run(args)
        if sys.stdout:
            # Or a full disk would be found when Python ends.
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print('Interrupted; what was written stays.', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has had enough.
        drop_output()
        return 0
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError,
            ValueError) as error:
        full = getattr(error, 'errno', None) == errno.ENOSPC
        # Configs are code of users, who need to see where it failed.
        code = args is None or args.command in ('train', 'test')
        if getattr(args, 'verbose', False) or code and not full:
            raise
        if full:
            error = ('The disk is full. Free space, and run the command '
                     'again.')
            drop_output()
        print(f'dan-mm {args.command}: {error}', file=sys.stderr)
        return 2
