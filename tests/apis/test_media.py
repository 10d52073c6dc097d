# Copyright (c) dan_mm contributors. All rights reserved.
"""Images and frames from everything that people have."""
import os

import cv2
import numpy as np
import pytest

from dan_mm.apis.media import batches, expand, read
from dan_mm.reading import InputImage, MediaReader

FRAME = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture(scope='module')
def reader():
    return MediaReader()


def test_expand(tmp_path):
    for name in ('b.png', 'sub/a.JPG', 'film.mp4', 'x.MTS', '.hidden.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    names = [os.path.relpath(path, tmp_path) for path in expand(tmp_path)]
    assert names == ['b.png', 'film.mp4', 'sub/a.JPG', 'x.MTS']
    assert expand(0) == [0]
    assert expand(FRAME)[0] is FRAME
    missing = str(tmp_path / 'missing.png')
    assert expand([missing, 1, FRAME])[:2] == [missing, 1]
    assert type(expand([np.str_(missing)])[0]) is str
    assert len(expand([str(tmp_path), missing])) == 5


def test_what_is_skipped_is_counted_and_named(tmp_path):
    for i in range(7):
        (tmp_path / f'{i}.txt').touch()
    (tmp_path / 'a.jpg').touch()
    with pytest.warns(UserWarning, match='are skipped') as found:
        assert len(expand(tmp_path)) == 1
    message = str(found[0].message)
    assert '0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more' in message


def test_a_list_with_an_empty_folder(tmp_path, reader):
    [_, item] = expand([FRAME, tmp_path])
    assert 'no images or videos' in item.error
    assert list(read([item], reader)) == [item]


def test_what_cannot_be_expanded(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file or folder /nowhere'):
        expand('/nowhere')
    with pytest.raises(ValueError, match='no images or videos'):
        expand(tmp_path)
    for value in (None, 1.5, True, [True], b'x.png', {}):
        with pytest.raises(TypeError, match='expected a path'):
            expand(value)


def test_arrays(reader):
    grey = np.full((4, 5), 7, np.uint8)
    alpha = np.dstack([FRAME, np.full(FRAME.shape[:2], 9, np.uint8)])
    images = list(read([FRAME, grey, grey[..., None], alpha], reader))
    assert [image.img.shape for image in images
            ] == [FRAME.shape, (4, 5, 3), (4, 5, 3), FRAME.shape]
    assert all(image.error is None for image in images)
    turned = np.zeros((3, 8, 8), np.uint8)
    for wrong in FRAME / 255, FRAME[0, 0], FRAME[:0], FRAME[None], turned:
        [image] = read([wrong], reader)
        assert image.img is None and 'expected uint8' in image.error


def test_the_order_of_files_and_arrays(tmp_path, reader):
    path = str(tmp_path / 'a.png')
    cv2.imwrite(path, FRAME)
    images = list(read([path, path, FRAME, path], reader))
    assert [image.path for image in images] == [path, path, None, path]


def test_cameras_that_are_not_there(reader):
    for number in 77, 10**20, -1:
        [item] = read([number], reader)
        assert item.img is None and 'Found no camera' in item.error


class Camera:
    """A camera with so many frames."""
    frames = 0

    def __init__(self, number):
        assert number == 3

    def isOpened(self):
        return True

    def read(self):
        self.frames -= 1
        return self.frames >= 0, FRAME.copy()

    def release(self):
        self.frames = None


def test_a_camera(reader, monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    [item] = read([3], reader)
    assert item.path == 'camera 3' and 'gave no image' in item.error
    monkeypatch.setattr(Camera, 'frames', 3)
    items = list(read([3], reader))
    assert [item.frame for item in items] == [0, 1, 2]
    assert items[0].time <= items[1].time < 5


def test_batches():
    small, large = np.zeros((8, 8, 3), 'u1'), np.zeros((4000, 5000, 3), 'u1')
    images = [InputImage(img) for img in [small] * 5 + [large] * 3]
    images.insert(1, InputImage(None, error='broken'))
    sizes = [len(batch) for batch in batches(iter(images), 4)]
    assert sizes == [4, 4, 1]
