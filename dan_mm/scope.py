# Copyright (c) dan_mm contributors. All rights reserved.
import threading
from contextlib import contextmanager
from typing import Iterator

from mmengine.registry import DefaultScope

_lock = threading.RLock()


@contextmanager
def default_scope(name: str) -> Iterator[None]:
    """Build modules in a scope, in one thread at a time.

    MMEngine's default scope is that of the whole process, and its
    :meth:`~mmengine.registry.DefaultScope.overwrite_default_scope` is not
    thread-safe. This is a decorator, too.

    Args:
        name (str): The scope, such as ``'mmpretrain'``.
    """
    with _lock, DefaultScope.overwrite_default_scope(name):
        yield
