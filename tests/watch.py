# Copyright (c) dan_mm contributors. All rights reserved.
"""What tests of attacks have in common: a watch over the process, and a good
checkpoint to change."""
import contextlib
import os
import os.path as osp
import sys
import warnings

from conftest import ROOT

from dan_mm.errors import CheckpointLoadError

# One sentence, each of these
REFUSALS = (CheckpointLoadError, OSError, ValueError)
# Modules that nothing here imports, and one that is written for it
MODULES = ('antigravity', 'this', 'turtle', 'xmlrpc.server', 'evil',
           'evil.module')
SOURCES = tuple(f"/{name.replace('.', '/')}.py" for name in MODULES)
# What a file must not make this process do, by the names of audit events
# (https://docs.python.org/3/library/audit_events.html)
FORBIDDEN = ('ftplib.', 'os.chmod', 'os.exec', 'os.fork', 'os.kill', 'os.link',
             'os.mkdir', 'os.posix_spawn', 'os.remove', 'os.rename',
             'os.rmdir', 'os.spawn', 'os.symlink', 'os.system', 'os.truncate',
             'pty.', 'shutil.', 'smtplib.', 'socket.bind', 'socket.connect',
             'socket.getaddrinfo', 'socket.sendto', 'subprocess.', 'urllib.',
             'webbrowser.')
READABLE = tuple(
    osp.realpath(folder) + os.sep
    for folder in (sys.prefix, sys.base_prefix, ROOT, '/proc', '/sys'))

_watching = None  # what may be read, while something is watched
_events = []


def _audit(event: str, args: tuple) -> None:
    if _watching is None:
        return
    # `importlib.import_module` has no event of its own.
    runs = event == 'exec' and getattr(args[0], 'co_filename',
                                       '').endswith(SOURCES)
    imports = event == 'import' and args[0] in MODULES
    if runs or imports or event.startswith(FORBIDDEN):
        _events.append((event, args))
    if event == 'open' and isinstance(args[0], (str, bytes)):
        path, mode, flags = args
        path = osp.realpath(os.fsdecode(path))
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        # Python itself writes what it compiles.
        written = writes and '__pycache__' not in path
        if written or not path.startswith(_watching):
            _events.append((event, args))


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(*folders):
    """Within this, only these and what is installed may be read."""
    global _watching
    _events.clear()
    _watching = (*READABLE, *map(osp.realpath, folders))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        _watching = None
    assert not _events, _events


def refused_or(function, *args, **kwargs):
    """What a function returns, or None where it refuses with a sentence."""
    try:
        return function(*args, **kwargs)
    except REFUSALS as error:
        text = str(error)
        assert text and len(text) < 5000, text
        # Python's own words name no file, and no remedy.
        assert not isinstance(error, UnicodeError), text
        return None


MODEL = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='MAN', in_channels=32, num_heads=2),
    head=dict(
        type='AFN',
        num_classes=2,
        in_channels=32,
        loss_affinity=dict(type='AffinityLoss')),
    data_preprocessor=dict(mean=[0., 0., 0.], std=[1., 1., 1.]))
META = dict(
    model=MODEL,
    test_pipeline=[
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackInputs')
    ],
    dataset_meta=dict(
        classes=('anger', 'fear'), alignment=dict(size=32, margin=0.1)))


def check_paths(found, root):
    """Images are in the folder of the data set."""
    for info in found or ():
        path = osp.realpath(info['img_path'])
        assert path.startswith(osp.realpath(root) + os.sep), path


def load(kind, root, **kwargs):
    dataset = kind(data_root=str(root), **kwargs)
    return [dataset.get_data_info(i) for i in range(len(dataset))]
