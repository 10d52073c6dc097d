# Copyright (c) dan_mm contributors. All rights reserved.
from typing import Sequence


class CheckpointLoadError(ValueError):
    """A checkpoint is broken, holds more than weights and plain data, or does
    not fit."""


class CheckpointNotFoundError(CheckpointLoadError, FileNotFoundError):
    """There is no such checkpoint."""


def describe(error: Exception) -> str:
    """Describe an error in one sentence, with its type unless the message is
    one of ours."""
    if isinstance(error, (OSError, ValueError)) and str(error):
        return str(error)
    return f'{type(error).__name__}: {error}'


def list_some(items: Sequence[str], most: int = 3) -> str:
    """List the first of some items, and say how many more there are."""
    more = f' and {len(items) - most} more' if items[most:] else ''
    return f'{", ".join(items[:most])}{more}'
