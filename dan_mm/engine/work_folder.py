# Copyright (c) dan_mm contributors. All rights reserved.
"""The folder that a training writes its checkpoints and logs to."""
import errno
import os
import os.path as osp
import re
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from typing import Dict, Iterator, NamedTuple, Optional

from mmengine.runner import CheckpointLoader

from dan_mm.errors import CheckpointLoadError
from dan_mm.files import LOCK, fcntl, is_regular


def check_writable(folder: str) -> None:
    """Make a folder and write to it, or raise SystemExit."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix='.'):
            pass
    except OSError as error:
        raise SystemExit(
            f'The work folder {folder} cannot be written to '
            f'({error.strerror}). Give another one with --work-dir.')


@contextmanager
def use_work_folder(folder: str, config: str) -> Iterator[None]:
    """Make a work folder and keep other trainings out of it, or raise
    SystemExit; ``config`` is the file whose copy MMEngine puts there."""
    # The first process of a launch, joined or not
    ranks = 'RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'
    if any(os.environ.get(name, '0') != '0' for name in ranks):
        yield
        return
    check_writable(folder)
    try:
        lock = os.open(
            osp.join(folder, LOCK),
            os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
            | getattr(os, 'O_NONBLOCK', 0), 0o666)
    except OSError as error:
        raise SystemExit(f'{osp.join(folder, LOCK)} cannot be opened '
                         f'({error.strerror}), expected a file. Remove it.')
    try:
        if fcntl:
            # Unlike that of `flock`, workers which outlive a killed process
            # for some seconds do not inherit this lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks.
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(lock)
            raise SystemExit(
                f'Another training uses the work folder {folder}. Wait until '
                'it ends, or give another folder with --work-dir.')
    try:
        copy = osp.join(folder, osp.basename(config))
        with suppress(OSError):
            # MMEngine would write the copy to where a link leads.
            if osp.islink(copy) or os.stat(copy).st_nlink > 1:
                os.remove(copy)
        yield
    finally:
        os.close(lock)


def _why_broken(path: str) -> Optional[str]:
    """Say what is wrong with a checkpoint to resume from, if anything is."""
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch does not look at the checksums.
            broken = archive.testzip()
        if broken:
            return f'the checksum of {broken} is wrong'
        checkpoint = CheckpointLoader.load_checkpoint(
            path, map_location='cpu', logger='silent')
        for part in 'message_hub', 'optimizer':
            if part not in checkpoint:
                return f'it has no {part}'
        return None
    except (CheckpointLoadError, OSError, zipfile.BadZipFile) as error:
        return str(error)


class Resumable(NamedTuple):
    """The path of a checkpoint to resume from, or None, and why newer ones are
    broken, by their names."""
    path: Optional[str]
    broken: Dict[str, str]


def find_resumable(folder: str,
                   work_dir: Optional[str] = None,
                   template: Optional[str] = None) -> Resumable:
    """Find the newest complete checkpoint of a training.

    Only regular files in the folder count: it may have been moved, so that the
    paths that MMEngine noted are wrong. ``work_dir`` has ``last_checkpoint``,
    by default the same folder; ``template`` has ``{}`` for the number.
    CheckpointLoadError is raised if there are checkpoints, but no complete
    one.
    """
    pattern = r'(?:epoch|iter)_(\d{1,12})\.pth'
    if template:
        pattern = re.escape(template).replace(r'\{\}', r'(\d{1,12})')
    steps = {}
    for name in os.listdir(folder) if osp.isdir(folder) else ():
        match = re.fullmatch(pattern, name)
        if match and is_regular(osp.join(folder, name)):
            steps[name] = int(match[1])
    note = osp.join(work_dir or folder, 'last_checkpoint')
    last = None
    if is_regular(note):
        with open(note, encoding='utf-8', errors='replace') as file:
            last = re.fullmatch(pattern, osp.basename(file.read(4096).strip()))
    # A training that began anew leaves later epochs of the one before.
    end = int(last[1]) if last else max(steps.values(), default=0)
    broken = {}
    if last and last[0] not in steps:
        broken[last[0]] = 'it is missing'
    for name in sorted(
            steps, key=lambda name: (steps[name] <= end, steps[name]))[::-1]:
        path = osp.join(folder, name)
        why = _why_broken(path)
        if why is None:
            return Resumable(path, broken)
        broken[name] = why
    if steps:
        reasons = '; '.join(f'{name}: {why}' for name, why in broken.items())
        raise CheckpointLoadError(
            f'Found no complete checkpoint in {folder} to resume from '
            f'({reasons}), expected one. Copy one there, or train in another '
            'folder.')
    return Resumable(None, broken)
