# Copyright (c) dan_mm contributors. All rights reserved.
import io
import warnings

import cv2
import numpy as np
import pytest
from conftest import draw_face
from mmpretrain.registry import TRANSFORMS
from PIL import Image


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


def test_exif_orientation_is_applied(load, tmp_path):
    picture = Image.fromarray(colour()[:32])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / 'turned.jpg', exif=exif)
    assert load(tmp_path / 'turned.jpg').shape == (64, 32, 3)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.95])
def test_truncated_pictures_are_refused(load, tmp_path, suffix, share):
    content = cv2.imencode(suffix, colour(256))[1].tobytes()
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match='cut.* can not be decoded .*Restore'):
        load(path)


def test_other_bad_files_are_refused(load, tmp_path):
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(ValueError, match='empty.jpg is an empty file'):
        load(tmp_path / 'empty.jpg')
    (tmp_path / 'text.jpg').write_text('no picture')
    with pytest.raises(ValueError, match='text.jpg can not be decoded'):
        load(tmp_path / 'text.jpg')
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / 'f.tiff')
    with pytest.raises(ValueError, match='f.tiff can not .*floating-point'):
        load(tmp_path / 'f.tiff')
    Image.fromarray(np.zeros((8, 8), np.int32)).save(tmp_path / 'i.tiff')
    with pytest.raises(ValueError, match='i.tiff can not be decoded'):
        load(tmp_path / 'i.tiff')
    (tmp_path / 'folder.jpg').mkdir()
    with pytest.raises(OSError, match='folder.jpg can not be read'):
        load(tmp_path / 'folder.jpg')
    with pytest.raises(FileNotFoundError, match='no picture .*nowhere.jpg'):
        load(tmp_path / 'nowhere.jpg')


def test_exif_orientation_can_be_ignored(tmp_path):
    picture = Image.fromarray(colour()[:32])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / 'turned.png', exif=exif)
    load = TRANSFORMS.build(
        dict(type='LoadCheckedImage', color_type='color_ignore_orientation'))
    img = load(dict(img_path=str(tmp_path / 'turned.png')))['img']
    assert np.array_equal(img, colour()[:32, :, ::-1])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('side', [10000, 20000])
def test_decompression_bombs_are_refused(load, tmp_path, side):
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Image.new('1', (side, side)).save(content, 'png')
    (tmp_path / 'bomb.png').write_bytes(content.getvalue())
    with pytest.raises(ValueError, match='bomb.png can not be decoded'):
        load(tmp_path / 'bomb.png')
