# Copyright (c) dan_mm contributors. All rights reserved.
"""Atomic writes, locks, and checks that no input is overwritten."""
import io
import json
import os
import os.path as osp
import re
import shutil
import stat
import threading
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import IO, Dict, Iterable, Iterator, Optional, Tuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = '.lock'
Identity = Tuple[int, int]


@contextmanager
def atomic_write(path: str, keep_partial: bool = False) -> Iterator[str]:
    """Atomic write: yield a temporary file in the same folder, then rename it
    to ``path``. After a failure, which raises OSError, the file that was there
    stays, and with ``keep_partial`` the temporary ``<path>.partial``.

    A link is replaced, and so is one name of a file that has several: what is
    read by another name stays as it is.
    """
    folder = osp.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    # The names of files have a limit of their own.
    temporary = f'{path}.partial' if keep_partial else partial_path(path)
    # It may be a link to elsewhere.
    with suppress(FileNotFoundError):
        os.remove(temporary)
    try:
        yield temporary
        # After a power failure, a renamed file must not be empty.
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        if osp.isfile(path):
            # Results about faces stay as private as they were.
            with suppress(OSError):
                shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        if not keep_partial:
            with suppress(OSError):
                os.remove(temporary)
        raise


def partial_path(path: str) -> str:
    """Get the path of the temporary file of an atomic write."""
    return osp.join(
        osp.dirname(path), f'.{os.getpid()}-{threading.get_ident()}.partial' +
        osp.splitext(path)[1][:8])


def remove_partials(folder: str) -> None:
    """Remove what killed processes left of atomic writes in a folder that is
    locked, and in its folders."""
    for root, _, names in os.walk(folder):
        for name in names:
            if re.fullmatch(r'\.\d+-\d+\.partial(\.\w+)?', name):
                os.remove(osp.join(root, name))


def write_bytes(path: str, content: bytes) -> None:
    """Write a file by :func:`atomic_write`."""
    with atomic_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)


def save_checkpoint(checkpoint: dict, path: str) -> None:
    """Save a checkpoint by :func:`atomic_write`."""
    import torch

    # Of a full disk, it would say that its archive is inconsistent.
    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_bytes(path, content.getvalue())


@contextmanager
def open_result(path: str) -> Iterator[IO[str]]:
    """Open a text file, checked by :func:`check_result`, for results that
    grow.

    It gets its name once all are written; those of an interrupted run are in
    ``<path>.partial``. Pipes and devices are written to directly. Of a link,
    such as ``/dev/stdout``, the target is replaced. Names of files may be no
    valid text. BlockingIOError is raised if another process writes to it.
    """
    options = dict(newline='', encoding='utf-8', errors='surrogateescape')
    if osp.exists(path) and not osp.isfile(path):
        with open(path, 'w', **options) as file:
            yield file
        return
    path = osp.realpath(path)
    with suppress(FileNotFoundError), open(f'{path}.partial', 'r+') as earlier:
        _lock(earlier.fileno(), path)
    with atomic_write(path, True) as temporary:
        with open(temporary, 'x', **options) as file:
            _lock(file.fileno(), path)
            yield file


def check_result(path: str, kind: str) -> None:
    """Check that results of a kind, 'json' or 'csv', can be written to a file:
    OSError is raised if not, or if there is something that is no earlier
    result, such as a model."""
    place = osp.realpath(path)
    folder = osp.dirname(place)
    if osp.isdir(path) or not osp.isdir(folder):
        raise FileNotFoundError(
            f'Cannot write {path}, expected a file in a folder that exists. '
            f'Make {folder}, or give another path.')
    # Pipes and devices
    if osp.exists(path) and not osp.isfile(path):
        return
    check_folder(folder)
    for file in path, f'{place}.partial':
        if osp.isfile(file) and not _is_result(file, kind):
            raise FileExistsError(
                f'{file} exists and is no earlier result of --{kind}. Remove '
                'it, or give another path.')


def _is_result(path: str, kind: str) -> bool:
    with open(path, 'rb') as file:
        line = file.readline(2**26)
    if not line:
        # An empty file, but no empty checkpoint or module
        return not osp.realpath(path).lower().endswith(('.pth', '.py'))
    if kind == 'csv':
        return line.startswith(b'path,frame,time,')
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(result, dict) and isinstance(result.get('faces'), list)


def check_folder(folder: str) -> None:
    """Check that files can be written to a folder that exists, or that it can
    be made, or raise OSError."""
    place = osp.abspath(folder)
    while not osp.lexists(place):
        place = osp.dirname(place)
    if not osp.isdir(place):
        raise NotADirectoryError(
            f'Cannot write to the folder {folder}: {place} is no folder. '
            'Give another path.')
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f'Cannot write to the folder {folder}: {place} is read-only. '
            'Give another path, or change its permissions.')


def identity(path: str) -> Optional[Identity]:
    """Get what identifies a file or folder, by whichever link or mount it is
    named. None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_regular(path: str) -> bool:
    """Whether a path is a regular file and no link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_file(path: str, read: Iterable[str]) -> None:
    """Raise ValueError if a file to write is one of those that are read."""
    own = identity(path)
    for file in read if own else ():
        if identity(file) == own:
            raise ValueError(
                f'Got {path} to write, which is an input: {file} is read. '
                'Give another path.')


def check_tree(out: str, inputs: Iterable[str],
               targets: Iterable[str] = ()) -> None:
    """Check that a folder to write, which need not exist, is apart from what
    is read: no links in it, and no mounts, lead there.

    OSError is raised if it can't be written to, ValueError if it is, has, or
    is in one of the ``inputs``, as a whole or in one of the ``targets``, the
    files that will be written in it.
    """
    check_folder(out)

    @lru_cache(None)
    def chain(folder: str) -> Tuple[Identity, ...]:
        """A folder and those above, from the root on"""
        above, own = osp.dirname(folder), identity(folder)
        return (() if above == folder else chain(above)) + (
            () if own is None else (own, ))

    folders: Dict[Identity, str] = {}
    above: Dict[Identity, str] = {}
    for path in inputs:
        place = osp.realpath(path)
        if osp.isdir(place):
            folders.update(dict.fromkeys(chain(place)[-1:], path))
        else:
            place = osp.dirname(place)
        above.update(dict.fromkeys(chain(place), path))
    for folder in {out, *map(osp.dirname, targets)}:
        found = [folders[one] for one in chain(osp.realpath(folder))
                 if one in folders]  # yapf: disable
        found += filter(None, [above.get(identity(folder))])
        if found:
            raise ValueError(
                f'Got the folder {out} to write to, of which {folder} leads '
                f'to the input {found[0]}, expected neither to be in the '
                'other. Give another folder.')


def _lock(handle: int, path: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, f'Another process writes to {path}, expected none. '
            'Wait until it ends, or give another path.') from None


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Keep other processes that lock it out of a folder, or raise
    BlockingIOError; the lock ends with the process. The folder is made, and
    removed if it stays empty."""
    made, place = [], osp.abspath(folder)
    while not osp.isdir(place):
        made.append(place)
        place = osp.dirname(place)
    os.makedirs(folder, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = osp.join(folder, LOCK)
    while True:
        # On NFS, only a file that is open for writing can be locked.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(handle, folder)
        except OSError:
            os.close(handle)
            raise
        # Who had it may have removed it since.
        if identity(path) == (os.fstat(handle).st_dev,
                              os.fstat(handle).st_ino):
            break
        os.close(handle)
    try:
        yield
    finally:
        os.remove(path)
        os.close(handle)
        with suppress(OSError):
            for empty in made:
                os.rmdir(empty)


# What spreadsheets take for the beginning of a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d', '\uff0b', '\uff0d',
           '\uff20')


def to_cell(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, by a ``'`` in
    front; one that begins with ``'`` gets another."""
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def from_cell(text: str) -> str:
    """Undo :func:`to_cell`."""
    return text[1:] if text.startswith("'") else text
