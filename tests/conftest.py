# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import gc
import os
import os.path as osp
import shutil
import signal
import warnings
import zipfile
from uuid import uuid4

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

import dan_mm
from dan_mm.apis import FaceDetector
from dan_mm.hub import download
from dan_mm.models.retinaface_weights import WEIGHTS

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
SHARED = osp.join(osp.dirname(ROOT), 'shared')

dan_mm.register_all_modules(init_default_scope=False)
# Shells let the jobs that they start in the background ignore Ctrl-C, and so
# would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """MMEngine collects garbage for each dataset: half a second, if it looks
    at all that was imported."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file share a process, and its fixtures."""
    from xdist.scheduler import LoadFileScheduling
    return LoadFileScheduling(config, log)


def shared(*parts: str) -> str:
    """The path of a file that is not in the repository; the test is skipped
    where it is missing."""
    path = osp.join(SHARED, *parts)
    if not osp.exists(path):
        pytest.skip(f'needs {osp.join("../shared", *parts)}')
    return path


def load_dataset(type, data_root, **kwargs):
    """Load a dataset, which need not have the official counts."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*official split.*')
        return DATASETS.build(
            dict(type=type, data_root=str(data_root), **kwargs))


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory, monkeypatch) -> None:
    """The current folder is empty: what a checkout has been used for, and
    where the tests are started from, makes no difference."""
    monkeypatch.chdir(tmp_path_factory.mktemp('cwd'))


@pytest.fixture(scope='session', autouse=True)
def torch_home(tmp_path_factory) -> str:
    """A `TORCH_HOME` of the tests alone."""
    home = str(tmp_path_factory.mktemp('torch_home'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', home)
        yield home


@pytest.fixture(scope='session')
def detector_weights(torch_home) -> str:
    """The public weights of the face detector, in that folder."""
    source = osp.join(SHARED, 'weights', 'retinaface_mobilenet0.25.pth')
    weights = dict(WEIGHTS['retinaface_mobilenet0.25'])
    path = osp.join(torch_home, 'hub', 'checkpoints',
                    osp.basename(weights['url']))
    if osp.isfile(source):
        os.makedirs(osp.dirname(path), exist_ok=True)
        return shutil.copy(source, path)
    try:
        return download(**weights)
    except OSError as error:
        pytest.skip(f'needs the weights of the face detector: {error}')


@pytest.fixture(scope='session')
def face_detector(detector_weights):
    """The default face detector."""
    return FaceDetector(device='cpu')


@pytest.fixture(scope='session')
def astronaut() -> str:
    """The portrait of an astronaut in the wheel of scikit-image, 512x512, in
    the public domain."""
    return osp.join(
        osp.dirname(pytest.importorskip('skimage').__file__), 'data',
        'astronaut.png')


def draw_face(seed: int, size: int = 48) -> np.ndarray:
    """An image to load where there is no real one: uint8 (size, size)."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size), 90 + seed % 80, np.uint8)
    unit = size // 12
    cv2.ellipse(image, (size // 2, size // 2), (4 * unit, 5 * unit), 0, 0, 360,
                200, -1)
    for x in (4, 8):
        cv2.circle(image, (x * unit, 5 * unit), unit // 2, 30, -1)
    cv2.ellipse(image, (size // 2, 8 * unit), (2 * unit, unit), 0, 0,
                180 if seed % 2 else -180, 40, 2)
    noise = rng.integers(-8, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def is_crop(img: np.ndarray) -> bool:
    """Whether a detector is given a face to look at once more, turned."""
    height, width = img.shape[:2]
    return height == width and height % 32 == 0


@pytest.fixture(scope='session')
def ferplus_root(tmp_path_factory) -> str:
    """A small FER+ in the official layout: 160 training and 40 validation
    images, real ones where they are at hand."""
    root = tmp_path_factory.mktemp('ferplus')
    archive = osp.join(SHARED, 'data', 'ferplus_train_valid.zip')
    header = ('Usage,Image name,neutral,happiness,surprise,sadness,anger,'
              'disgust,fear,contempt,unknown,NF').split(',')
    rows = []
    if osp.exists(archive):
        with zipfile.ZipFile(archive) as file:
            votes = file.read('ferplus/fer2013new.csv').decode().splitlines()
            for usage, folder, number in (('Training', 'FER2013Train', 160),
                                          ('PublicTest', 'FER2013Valid', 40)):
                (root / folder).mkdir()
                # Happiness and surprise with many votes, so that a few
                # images are enough for each class.
                picked = [
                    row for row in csv.reader(votes) if row[0] == usage
                    and row[1] and max(map(int, row[3:5])) >= 8
                ][:number]
                for row in picked:
                    content = file.read(f'ferplus/{folder}/{row[1]}')
                    (root / folder / row[1]).write_bytes(content)
                rows += picked
    else:
        for usage, folder, number in (('Training', 'FER2013Train', 160),
                                      ('PublicTest', 'FER2013Valid', 40)):
            (root / folder).mkdir()
            for i in range(number):
                name = f'fer{len(rows):07d}.png'
                cv2.imwrite(str(root / folder / name), draw_face(i))
                votes = [0] * 10
                votes[1 + i % 2] = 10
                rows.append([usage, name, *votes])
    with open(root / 'fer2013new.csv', 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])
    return str(root)


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    """MMEngine names experiments by the second, and those of one name share
    what they note. The log of a test ends with it: a server that configures
    `logging`, as uvicorn does, closes the files of all logs."""
    from_cfg = Runner.from_cfg

    def build(cfg):
        cfg.experiment_name = uuid4().hex
        return from_cfg(cfg)

    monkeypatch.setattr(Runner, 'from_cfg', build)
    yield
    MMLogger._instance_dict.clear()
