# Copyright (c) dan_mm contributors. All rights reserved.
"""Pictures and frames from all that people have."""
import os
import random
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shared
from PIL import Image

from dan_mm.apis import media
from dan_mm.apis.media import count, expand, read

FRAME = np.zeros((48, 64, 3), np.uint8)


def moving(number):
    """Frames that differ, and are no single colour."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (120, 160, 3), np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 3)
    return [np.roll(frame, 3 * i, 1) for i in range(number)]


def test_expand(tmp_path):
    for name in ('b.png', 'sub/a.JPG', 'film.mp4', 'notes.txt', '.hidden.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    names = [os.path.relpath(path, tmp_path) for path in expand(tmp_path)]
    assert names == ['b.png', 'film.mp4', 'sub/a.JPG']
    assert expand(0) == [0]
    assert expand(FRAME)[0] is FRAME
    missing = str(tmp_path / 'missing.png')
    assert expand([missing, 1, FRAME])[:2] == [missing, 1]
    assert len(expand([str(tmp_path), missing])) == 4
    # Of a list, a folder without pictures stops nothing.
    (tmp_path / 'empty').mkdir()
    [_, item] = expand([FRAME, tmp_path / 'empty'])
    assert 'no pictures or videos' in item.error
    assert list(read([item])) == [item]


def test_what_can_not_be_expanded(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file or folder /nowhere'):
        expand('/nowhere')
    with pytest.raises(ValueError, match='no pictures or videos'):
        expand(tmp_path)
    for value in (None, 1.5, True, [True], b'x.png', {}):
        with pytest.raises(TypeError, match='expected a path'):
            expand(value)


def test_arrays():
    grey = np.full((4, 5), 7, np.uint8)
    alpha = np.dstack([FRAME, np.full(FRAME.shape[:2], 9, np.uint8)])
    pictures = list(read([FRAME, grey, grey[..., None], alpha]))
    assert [picture.img.shape for picture in pictures
            ] == [FRAME.shape, (4, 5, 3), (4, 5, 3), FRAME.shape]
    assert all(picture.error is None for picture in pictures)
    turned = np.zeros((3, 8, 8), np.uint8)
    for wrong in FRAME / 255, FRAME[0, 0], FRAME[:0], FRAME[None], turned:
        [picture] = read([wrong])
        assert picture.img is None and 'expected a picture' in picture.error


def test_broken_files_stop_no_other(tmp_path):
    Image.effect_noise((20, 30), 50).save(tmp_path / 'whole.png')
    content = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(content[:len(content) // 2])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'film.avi').write_text('no film')
    (tmp_path / 'empty.mp4').write_bytes(b'')
    Image.new('L', (12000, 9000)).save(tmp_path / 'vast.png')
    long = str(tmp_path / f'{"x" * 300}.png')
    pictures = list(read([*expand(tmp_path), long, str(tmp_path / 'no.mp4')]))
    found = {os.path.basename(item.path): item for item in pictures}
    assert found.pop('whole.png').img.shape == (30, 20, 3)
    assert len(found) == 8
    for name, item in found.items():
        assert item.img is None, name
        for word in 'xpected', 'Check the path', 'empty file of 0 bytes':
            if word in item.error:
                break
        else:
            raise AssertionError(item.error)
    assert '12000x9000 pixels' in found['vast.png'].error
    assert 'can not be opened' in found['film.avi'].error
    assert '0 bytes' in found['empty.mp4'].error


def test_addresses_are_not_opened():
    for address in 'http://127.0.0.1:9/a.png', 's3://b/a.png', 'rtsp://c/x':
        [item] = read([address])
        assert f'Got the address {address}' in item.error


def test_a_vast_file_is_not_read(tmp_path):
    with open(tmp_path / 'a.png', 'wb') as file:
        file.truncate(2**40)  # sparse
    [item] = read([str(tmp_path / 'a.png')])
    assert '1099511627776 bytes, expected at most' in item.error


def test_names(tmp_path):
    folder = tmp_path / 'ünï' / '写真'
    folder.mkdir(parents=True)
    deep = folder.joinpath(*['d' * 200] * 15)
    os.makedirs(deep)
    for path in (folder / 'grüße 1.png', deep / 'a.png'):
        Image.new('RGB', (8, 8)).save(path)
    assert len(str(deep)) > 3000
    raw = os.fsencode(folder) + b'/\xff.png'
    Path(os.fsdecode(raw)).write_bytes((folder / 'grüße 1.png').read_bytes())
    assert [item.error for item in read(expand(tmp_path))] == [None] * 3


@pytest.mark.parametrize('name, code', [('a.mp4', 'mp4v'), ('a.avi', 'MJPG')])
def test_a_video(tmp_path, write_video, name, code):
    frames = moving(30)
    path = write_video(tmp_path / name, frames, code, rate=10)
    assert count([path, FRAME]) == 31
    pictures = list(read([path]))
    assert [item.frame for item in pictures] == list(range(30))
    assert np.allclose([item.time for item in pictures], np.arange(30) / 10)
    for frame, item in zip(frames, pictures):
        assert item.path == path
        assert np.abs(item.img.astype(int) - frame).mean() < 12


def test_a_video_with_broken_frames(tmp_path, write_video):
    """The others keep their numbers and times."""
    path = write_video(tmp_path / 'a.mp4', moving(50))
    content = bytearray(open(path, 'rb').read())
    random.seed(0)
    third = len(content) // 3
    for i in range(third, third + len(content) // 10):
        content[i] = random.randrange(256)
    open(path, 'wb').write(content)
    pictures = list(read([path]))
    broken = [item for item in pictures if item.img is None]
    assert 0 < len(broken) < 25
    assert [item.frame for item in pictures] == list(range(50))
    for item in pictures:
        if item.img is None:
            assert item.error.endswith('is broken.')
        else:
            assert item.time == pytest.approx(item.frame / 25)


def test_a_video_that_is_cut_off(tmp_path, write_video):
    path = write_video(tmp_path / 'a.avi', moving(50), 'MJPG')
    content = open(path, 'rb').read()
    open(path, 'wb').write(content[:len(content) // 2])
    *whole, last = read([path])
    assert 10 < len(whole) < 40
    assert all(item.error is None for item in whole)
    assert f'of which {len(whole)} could be read' in last.error
    assert 'has 50 frames' in last.error
    # Of an mp4 the table at the end is missing, and with it all.
    path = write_video(tmp_path / 'a.mp4', moving(50))
    content = open(path, 'rb').read()
    open(path, 'wb').write(content[:len(content) // 2])
    [item] = read([path])
    assert 'can not be opened' in item.error


class Capture:
    """A video without frames, or with vast ones."""
    values = {}
    opened = True

    def __init__(self, source):
        pass

    def get(self, key):
        return self.values.get(key, 0)

    def isOpened(self):
        return self.opened

    def read(self):
        return False, None

    def release(self):
        pass


def test_no_frames_and_no_camera(tmp_path, monkeypatch):
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'x')
    monkeypatch.setattr(cv2, 'VideoCapture', Capture)
    [item] = read([str(path)])
    assert 'has no frame that can be read' in item.error
    [item] = read([3])
    assert item.path == 'camera 3' and 'gave no picture' in item.error
    assert count([3, FRAME]) is None
    monkeypatch.setattr(Capture, 'opened', False)
    [item] = read([3])
    assert 'Found no camera 3' in item.error
    monkeypatch.setattr(Capture, 'opened', True)
    size = {cv2.CAP_PROP_FRAME_WIDTH: 20000., cv2.CAP_PROP_FRAME_HEIGHT: 9000.}
    monkeypatch.setattr(Capture, 'values', size)
    [item] = read([str(path)])
    assert '20000x9000 pixels' in item.error


def test_a_real_camera_that_is_not_there():
    for number in 77, 10**20, -1:
        [item] = read([number])
        assert item.img is None and 'Found no camera' in item.error


def test_a_video_of_nothing_but_broken_frames(tmp_path, monkeypatch):
    """It ends."""
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'x')
    monkeypatch.setattr(cv2, 'VideoCapture', Capture)
    total = {cv2.CAP_PROP_FRAME_COUNT: 1e9}
    monkeypatch.setattr(Capture, 'values', total)
    assert media.MAX_BROKEN < 1000
    [item] = read([str(path)])
    assert 'no frame' in item.error


def test_formats_of_phones_and_browsers(tmp_path):
    """Alone and in a folder; HEIC of a real phone's kind, where it is."""
    image = Image.fromarray(moving(1)[0])
    image.save(tmp_path / 'a.avif', quality=90)
    image.save(tmp_path / 'b.jfif', 'jpeg', quality=95)
    names = ['a.avif', 'b.jfif']
    assert [os.path.basename(path) for path in expand(tmp_path)] == names
    for item in read(expand(tmp_path)):
        assert item.error is None
        expected = np.asarray(image)[..., ::-1].astype(int)
        assert np.abs(item.img - expected).mean() < 8, item.path


def test_heic(tmp_path):
    expected = cv2.imread(shared('field', 'photo.jfif')).astype(int)
    shutil.copy(shared('field', 'photo.heic'), tmp_path / 'A.HEIC')
    [item] = read(expand(tmp_path))
    assert item.error is None and item.path.endswith('A.HEIC')
    assert np.abs(item.img - expected).mean() < 8


def rational_exif(orientation):
    """EXIF with an exposure bias of -1/0, which Pillow reads, and can not
    write."""
    entry = struct.Struct('<HHII')
    return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 2) + entry.pack(
        0x0112, 3, 1, orientation) + entry.pack(
            0x9204, 10, 1, 38) + struct.pack('<Iii', 0, -1, 0)


def test_odd_exif(tmp_path):
    """A whole image is turned upright as far as its EXIF can be read."""
    img = np.zeros((32, 48, 3), np.uint8)
    img[:16, :16] = 255
    image, path = Image.fromarray(img), tmp_path / 'a.jpg'
    turned = dict(
        zip(
            range(1, 9),
            (img, img[:, ::-1], img[::-1, ::-1], img[::-1],
             img.transpose(1, 0, 2), np.rot90(
                 img, -1), img[::-1, ::-1].transpose(1, 0, 2), np.rot90(img))))
    cases = [(rational_exif(key), turned[key]) for key in turned]
    cases += [(rational_exif(9), img), (b'Exif\0\0nonsense', img)]
    for exif, expected in cases:
        image.save(path, quality=100, exif=exif)
        [item] = read([str(path)])
        assert item.error is None and item.img.shape == expected.shape
        assert np.abs(item.img.astype(int) - expected).max() < 40
    path = shared('field', 'odd_exif_exposure_bias.jpg')
    [item] = read([path])
    assert item.error is None and item.img.shape == (640, 640, 3)


def write_lines(path, width, height):
    """A PNG of few bytes and any size, with a line of nothing."""
    Image.new('1', (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    path.write_bytes(content)


@pytest.mark.parametrize('size', [(1000001, 1), (1, 89000000), (65501, 2)])
def test_lengthy_images_are_refused_unread(tmp_path, size):
    write_lines(tmp_path / 'a.png', *size)
    tracemalloc.start()
    [item] = read([str(tmp_path / 'a.png')])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f'{size[0]}x{size[1]} pixels' in item.error
    assert peak < 1e6


@pytest.mark.parametrize('name', ['a.jpg', 'a.mp4', 'a.heic'])
def test_pipes_and_devices_are_not_opened(tmp_path, name):
    """Opening a pipe would wait for somebody to write."""
    os.mkfifo(tmp_path / name)
    Image.new('RGB', (8, 8)).save(tmp_path / 'b.png')
    path = str(tmp_path / name)
    assert path in expand(tmp_path) or not name.endswith('.mp4')
    assert count([path, '/dev/zero']) == 2
    first, second, third = read([path, '/dev/zero', str(tmp_path / 'b.png')])
    assert first.error and 'no regular file' in second.error
    assert third.error is None


def test_any_exception_is_the_error_of_its_input(tmp_path, monkeypatch):
    for name in 'a.png', 'b.png':
        Image.new('RGB', (8, 8)).save(tmp_path / name)
    load = media.read_image

    def fail(path):
        if path.endswith('a.png'):
            raise MemoryError('too much')
        return load(path)

    monkeypatch.setattr(media, 'read_image', fail)
    first, second = read(expand(tmp_path))
    assert 'MemoryError: too much' in first.error
    assert second.img.shape == (8, 8, 3)
