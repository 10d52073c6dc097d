# Copyright (c) dan_mm contributors. All rights reserved.
"""Say what is wrong with this installation, and how to mend it.

The exit status is 1 if there is a problem.
"""
import argparse

HELP = 'say what is wrong with this installation, and how to mend it'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command line: there are none."""


def run(args: argparse.Namespace) -> int:
    """Examine the installation.

    Returns:
        int: The exit status.
    """
    from dan_mm.doctor import main
    return main()
