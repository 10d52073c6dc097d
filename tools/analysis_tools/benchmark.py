# Copyright (c) dan_mm contributors. All rights reserved.
"""Measure speed against the original code, in one run."""
import argparse
import sys
from typing import Optional, Sequence

from benchmarks import inference, train


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for module in inference, train:
        name = module.__name__.rpartition('.')[2]
        command = commands.add_parser(
            name,
            help=module.__doc__.partition(':')[0],
            description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == '__main__':
    sys.exit(main())
