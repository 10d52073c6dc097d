# Copyright (c) dan_mm contributors. All rights reserved.
"""Images in files, whatever they are."""
import os
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

from dan_mm.apis.media import expand, is_video
from dan_mm.reading import MediaReader, images
from dan_mm.reading.images import read_image


@pytest.fixture(scope='module')
def read():
    reader = MediaReader()
    return lambda paths: list(
        reader.read([(str(path), is_video(path)) for path in paths]))


def test_broken_files_stop_no_other(read, tmp_path):
    Image.effect_noise((20, 30), 50).save(tmp_path / 'whole.png')
    content = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(content[:len(content) // 2])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'film.avi').write_text('no film')
    (tmp_path / 'empty.mp4').write_bytes(b'')
    Image.new('L', (12000, 9200)).save(tmp_path / 'vast.png')
    long = tmp_path / f'{"x" * 300}.png'
    images = read([*expand(tmp_path), long, tmp_path / 'no.mp4'])
    found = {os.path.basename(item.path): item for item in images}
    assert found.pop('whole.png').img.shape == (30, 20, 3)
    assert len(found) == 8
    for name, item in found.items():
        assert item.img is None and name in item.error
    assert '12000x9200 pixels' in found['vast.png'].error
    assert 'cannot be opened' in found['film.avi'].error
    assert '0 bytes' in found['empty.mp4'].error


def test_urls_are_not_opened(read):
    for url in 'http://127.0.0.1:9/a.png', 's3://b/a.png', 'rtsp://c/x':
        [item] = read([url])
        assert f'Got the URL {url}' in item.error


def test_a_vast_file_is_not_read(read, tmp_path):
    with open(tmp_path / 'a.png', 'wb') as file:
        file.truncate(2**40)  # sparse
    [item] = read([str(tmp_path / 'a.png')])
    assert '1099511627776 bytes, expected at most' in item.error


def test_names(read, tmp_path):
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


def test_formats_of_phones_and_browsers(read, tmp_path):
    """Alone and in a folder; HEIC of a real phone's kind, where it is."""
    image = Image.effect_noise((160, 120), 50).convert('RGB')
    image.save(tmp_path / 'a.avif', quality=90)
    image.save(tmp_path / 'b.jfif', 'jpeg', quality=95)
    names = ['a.avif', 'b.jfif']
    assert [os.path.basename(path) for path in expand(tmp_path)] == names
    for item in read(expand(tmp_path)):
        assert item.error is None
        expected = np.asarray(image)[..., ::-1].astype(int)
        assert np.abs(item.img - expected).mean() < 16, item.path


def test_heic(read, tmp_path):
    expected = cv2.imread(shared('field', 'photo.jfif')).astype(int)
    shutil.copy(shared('field', 'photo.heic'), tmp_path / 'A.HEIC')
    [item] = read(expand(tmp_path))
    assert item.error is None and item.path.endswith('A.HEIC')
    assert np.abs(item.img - expected).mean() < 8


def rational_exif(orientation):
    """EXIF with an exposure bias of -1/0, which Pillow reads, and cannot
    write."""
    entry = struct.Struct('<HHII')
    return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 2) + entry.pack(
        0x0112, 3, 1, orientation) + entry.pack(
            0x9204, 10, 1, 38) + struct.pack('<Iii', 0, -1, 0)


def test_odd_exif(read, tmp_path):
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
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} pixels'):
        read_image(str(tmp_path / 'a.png'))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize('name', ['a.jpg', 'a.mp4', 'a.heic'])
@pytest.mark.filterwarnings('ignore:Files in')
def test_pipes_and_devices_are_not_opened(read, tmp_path, name):
    """Opening a pipe would wait for somebody to write."""
    os.mkfifo(tmp_path / name)
    Image.new('RGB', (8, 8)).save(tmp_path / 'b.png')
    path = str(tmp_path / name)
    assert path in expand(tmp_path) or not name.endswith('.mp4')
    first, second, third = read([path, '/dev/zero', str(tmp_path / 'b.png')])
    assert 'not a regular file' in first.error
    assert 'not a regular file' in second.error
    assert third.error is None


def test_large_exif_is_ignored(tmp_path):
    """Each entry may claim all of it, so that it takes gigabytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new('RGB', (8, 4))
    image.save(tmp_path / 'a.png', exif=exif)
    assert read_image(str(tmp_path / 'a.png')).shape == (8, 4, 3)
    exif[0x010e] = 'x' * 2**17
    image.save(tmp_path / 'b.png', exif=exif)
    assert read_image(str(tmp_path / 'b.png')).shape == (4, 8, 3)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_strips(tmp_path, monkeypatch, mode):
    """Images are converted in parts, and are the same."""
    rng = np.random.default_rng(0)
    if mode == 'I;16':
        image = Image.fromarray(rng.integers(0, 65535, (37, 23), np.uint16))
        expected = (np.asarray(image) // 256)[..., None].repeat(3, 2)
    else:
        image = Image.fromarray(rng.integers(0, 255, (37, 23, 3), np.uint8))
        image = image.convert(mode)
        expected = np.asarray(image.convert('RGB'))[..., ::-1]
    image.save(tmp_path / 'a.tiff')
    monkeypatch.setattr(images, 'STRIP', 100)
    assert np.array_equal(read_image(str(tmp_path / 'a.tiff')), expected)


def images_of_all_kinds():
    """Files that OpenCV should read as Pillow does."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (113, 91))
    color = Image.fromarray(smooth)
    yield 'grey.png', color.convert('L'), {}
    yield 'palette.png', color.convert('P'), {}
    yield 'alpha.png', color.convert('RGBA'), {}
    yield 'sixteen.png', Image.fromarray(
        (smooth[..., 0].astype(np.uint16) << 8) + 77), {}
    yield 'a.bmp', color, {}
    yield 'a.tif', color, dict(compression='tiff_lzw')
    yield 'a.webp', color, {}
    yield 'grey.jpg', color.convert('L'), {}
    yield 'progressive.jpg', color, dict(progressive=True, subsampling=2)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f'{orientation}.jpg', color, dict(exif=exif)


@pytest.mark.parametrize(
    'name, image, options',
    images_of_all_kinds(),
    ids=[name for name, *_ in images_of_all_kinds()])
def test_without_pillow(name, image, options, tmp_path, monkeypatch):
    """OpenCV gives the same pixels, and refuses what is cut off."""
    path = str(tmp_path / name)
    image.save(path, **options)
    with open(path, 'rb') as file:
        content = file.read()
    expected = [images.decode_image(content, path, use)
                for use in (True, False)]  # yapf: disable
    monkeypatch.setattr(images, 'Image', None)
    for use, img in zip((True, False), expected):
        found = images.decode_image(content, path, use)
        assert found.shape == img.shape
        assert (found == img).all()
    assert images.read_size(path) == expected[0].shape[1::-1]
    for length in len(content) // 2, len(content) * 9 // 10:
        with pytest.raises(ValueError, match='broken|truncated'):
            images.decode_image(content[:length], path)


def test_what_needs_pillow(tmp_path, monkeypatch):
    path = str(tmp_path / 'a.gif')
    Image.new('RGB', (9, 9)).save(path)
    monkeypatch.setattr(images, 'Image', None)
    with pytest.raises(ValueError, match='pip install pillow pi-heif'):
        images.read_image(path)
