# Copyright (c) dan_mm contributors. All rights reserved.
import io
import os
import re
import warnings

import cv2
import numpy as np
import pytest
from conftest import draw_face
from mmpretrain.registry import TRANSFORMS
from PIL import EpsImagePlugin, Image


@pytest.fixture
def load():
    transform = TRANSFORMS.build(dict(type='LoadCheckedImage'))
    return lambda path: transform(dict(img_path=str(path)))['img']


def colour(size=64):
    return np.stack([draw_face(i, size) for i in range(3)], 2)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp', 'ä ö 漢.png'])
def test_loads_what_opencv_loads(load, tmp_path, name):
    content = cv2.imencode(name[-4:], colour())[1].tobytes()
    (tmp_path / name).write_bytes(content)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), 1)
    loaded = load(tmp_path / name).astype(int)
    assert abs(loaded - expected).max() <= (2 if 'jpg' in name else 0)


def test_grey_alpha_palette_and_16_bit_become_8_bit_colour(load, tmp_path):
    grey = draw_face(0, 64)
    expected = np.repeat(grey[..., None], 3, 2)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    Image.fromarray(np.dstack([expected,
                               255 - grey])).save(tmp_path / 'rgba.png')
    Image.fromarray(np.dstack([grey, 255 - grey])).save(tmp_path / 'la.png')
    cv2.imwrite(str(tmp_path / 'deep.png'), grey.astype(np.uint16) * 257)
    cv2.imwrite(
        str(tmp_path / 'deep_colour.png'),
        expected.astype(np.uint16) * 257)
    Image.fromarray(grey // 16).convert('P').save(tmp_path / 'palette.png')
    for name in 'grey', 'rgba', 'la', 'deep', 'deep_colour':
        loaded = load(tmp_path / f'{name}.png')
        assert loaded.dtype == np.uint8
        assert abs(loaded.astype(int) - expected).max() <= 1, name
    assert np.array_equal(load(tmp_path / 'palette.png'), expected // 16)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.95])
def test_truncated_images_are_refused(load, tmp_path, suffix, share):
    content = cv2.imencode(suffix, colour(256))[1].tobytes()
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match='cut.* cannot be decoded'):
        load(path)


def test_other_bad_files_are_refused(load, tmp_path):
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(ValueError, match='empty.jpg is an empty file'):
        load(tmp_path / 'empty.jpg')
    (tmp_path / 'text.jpg').write_text('no image')
    with pytest.raises(ValueError, match='text.jpg cannot be decoded'):
        load(tmp_path / 'text.jpg')
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / 'f.tiff')
    with pytest.raises(ValueError, match='f.tiff cannot .*32 bits'):
        load(tmp_path / 'f.tiff')
    Image.fromarray(np.zeros((8, 8), np.int32)).save(tmp_path / 'i.tiff')
    with pytest.raises(ValueError, match='i.tiff cannot be decoded'):
        load(tmp_path / 'i.tiff')
    (tmp_path / 'folder.jpg').mkdir()
    with pytest.raises(ValueError, match='folder.jpg is not a regular'):
        load(tmp_path / 'folder.jpg')
    with pytest.raises(FileNotFoundError, match='no image .*nowhere.jpg'):
        load(tmp_path / 'nowhere.jpg')


def test_exif_orientation_can_be_ignored(tmp_path):
    image = Image.fromarray(colour()[:32])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / 'turned.png', exif=exif)
    load = TRANSFORMS.build(
        dict(type='LoadCheckedImage', color_type='color_ignore_orientation'))
    img = load(dict(img_path=str(tmp_path / 'turned.png')))['img']
    assert np.array_equal(img, colour()[:32, :, ::-1])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('side', [11000, 20000])
def test_decompression_bombs_are_refused(load, tmp_path, side):
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Image.new('1', (side, side)).save(content, 'png')
    (tmp_path / 'bomb.png').write_bytes(content.getvalue())
    with pytest.raises(ValueError, match='bomb.png cannot be decoded'):
        load(tmp_path / 'bomb.png')


@pytest.mark.parametrize('kind', ['png', 'jpeg', 'webp', 'gif', 'avif'])
def test_the_content_decides_not_the_extension(load, tmp_path, kind):
    Image.fromarray(colour()).save(tmp_path / 'a.bmp', kind)
    assert load(tmp_path / 'a.bmp').shape == (64, 64, 3)


@pytest.mark.parametrize('content', [
    b'\0\0\0\x18ftypmp42' + bytes(64), b'%PDF-1.7\n', b'<html></html>',
    b'\xff\xd8\xff\xe0', b'\x89PNG\r\n\x1a\n', b'GIF89a', b'II*\0' + bytes(8)
])
def test_what_is_no_image_is_one_sentence_about_the_file(
        load, tmp_path, content):
    path = tmp_path / 'portrait.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(path)
    message = str(error.value)
    assert str(path) in message and '\n' not in message
    # It may be a photograph of a user, who has no annotations.
    assert 'annotation' not in message and 'dataset' not in message
    assert not re.search(r'0x[0-9a-f]{6}|_io\.', message)


def test_grey_images_have_one_channel_on_request(tmp_path):
    grey = draw_face(0, 64)
    cv2.imwrite(str(tmp_path / 'grey.png'), grey)
    cv2.imwrite(str(tmp_path / 'colour.png'), colour())
    transform = TRANSFORMS.build(
        dict(type='LoadCheckedImage', color_type='grayscale'))
    for name in 'grey', 'colour':
        path = str(tmp_path / f'{name}.png')
        results = transform(dict(img_path=path))
        assert results['img_shape'] == results['img'].shape == (64, 64)
        expected = cv2.imread(path, cv2.IMREAD_GRAYSCALE).astype(int)
        assert abs(results['img'] - expected).max() <= (name == 'colour')
    with pytest.raises(ValueError, match="color_type='unchanged', expected"):
        TRANSFORMS.build(dict(type='LoadCheckedImage', color_type='unchanged'))


@pytest.mark.parametrize('name', ['a.eps', 'a.png'])
def test_postscript_is_never_run(load, tmp_path, monkeypatch, name):
    """Pillow hands it to Ghostscript, whatever the extension."""
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    # Pillow remembers where it is.
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    content = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments'
    (tmp_path / name).write_bytes(content + b'\n%%EOF\n')
    with pytest.raises(ValueError, match=name):
        load(tmp_path / name)
    assert not (tmp_path / 'ran').exists()
