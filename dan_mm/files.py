# Copyright (c) dan_mm contributors. All rights reserved.
"""Writing files: never half, never twice, never over what is not ours."""
import json
import os
import os.path as osp
import threading
from contextlib import contextmanager, suppress
from typing import IO, Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def atomic_write(path: str, keep_partial: bool = False) -> Iterator[str]:
    """Atomic write: a temporary file in the same folder, then rename.

    A link is replaced, and so is one name of a file that has several: what is
    read by another name stays as it is.

    Args:
        path (str): The file to write; its folder is made.
        keep_partial (bool): Whether the temporary file, ``<path>.partial``,
            stays there after a failure. Defaults to False.

    Yields:
        str: The temporary file, to be written within the context.

    Raises:
        OSError: If it can't be written. A file that was there stays.
    """
    folder = osp.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    # The names of files have a limit of their own.
    temporary = f'{path}.partial' if keep_partial else osp.join(
        folder, f'.{os.getpid()}-{threading.get_ident()}.partial' +
        osp.splitext(path)[1][:8])
    # It may be a link to elsewhere.
    with suppress(FileNotFoundError):
        os.remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if not keep_partial:
            with suppress(OSError):
                os.remove(temporary)
        raise


def write_bytes(path: str, content: bytes) -> None:
    """Write a file by :func:`atomic_write`."""
    with atomic_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)


@contextmanager
def open_result(path: str) -> Iterator[IO[str]]:
    """Open a text file for results that grow.

    It has its name when all are there. Those of an interrupted run are in
    ``<path>.partial``. Pipes and devices are written to directly.

    Args:
        path (str): The file, checked by :func:`check_result`.

    Yields:
        IO[str]: The file. Names of files may be no valid text.
    """
    options = dict(newline='', encoding='utf-8', errors='surrogateescape')
    if osp.exists(path) and not osp.isfile(path):
        with open(path, 'w', **options) as file:
            yield file
        return
    with atomic_write(path, True) as temporary:
        with open(temporary, 'w', **options) as file:
            yield file


def check_result(path: str, kind: str) -> None:
    """Check that results can be written to a file.

    Args:
        path (str): The file.
        kind (str): 'json' or 'csv'.

    Raises:
        FileExistsError: If there is a file that is no earlier result, such as
            a model.
        OSError: If it can't be written there.
    """
    folder = osp.dirname(osp.abspath(path))
    if osp.isdir(path) or not osp.isdir(folder):
        raise FileNotFoundError(
            f'Can not write {path}, expected the path of a file in a folder '
            f'that exists. Make {folder}, or give another path.')
    check_folder(folder)
    for file in path, f'{path}.partial':
        if osp.isfile(file) and not _is_result(file, kind):
            raise FileExistsError(
                f'{file} exists and is no earlier result of --{kind}, '
                'expected a new file, or one to replace. Remove it, or give '
                'another path.')


def _is_result(path: str, kind: str) -> bool:
    with open(path, 'rb') as file:
        line = file.readline(2**20)
    if kind == 'csv':
        return not line or line.startswith(b'path,frame,time,')
    try:
        return not line or 'faces' in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


def check_folder(folder: str) -> None:
    """Check that files can be written to a folder that exists, or that it can
    be made.

    Raises:
        OSError: If not.
    """
    place = osp.abspath(folder)
    while not osp.lexists(place):
        place = osp.dirname(place)
    if not osp.isdir(place):
        raise NotADirectoryError(
            f'Can not write to the folder {folder}: {place} is no folder. '
            'Give another path.')
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f'Can not write to the folder {folder}: {place} is read-only. '
            'Give another path, or change its permissions.')


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Keep other processes that lock it out of a folder; the lock ends with
    the process.

    Args:
        folder (str): The folder, which is made.

    Raises:
        BlockingIOError: If another process has it.
    """
    os.makedirs(folder, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, f'Another process writes to {folder}, expected none. '
            'Wait until it ends, or give another folder.') from None
    finally:
        os.close(handle)


# What spreadsheets take for the beginning of a formula
FORMULA = ('=', '+', '-', '@', '\t', '\r')


def to_cell(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, by a ``'`` in
    front; one that begins with ``'`` gets another."""
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def from_cell(text: str) -> str:
    """Undo :func:`to_cell`."""
    return text[1:] if text.startswith("'") else text
