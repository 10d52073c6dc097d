# Copyright (c) dan_mm contributors. All rights reserved.
"""The faces of photographs, with the public weights."""
import csv
import runpy

import cv2
import numpy as np
import pytest
from conftest import ROOT, shared
from mmengine.registry import DefaultScope
from PIL import Image

from dan_mm.apis.faces import CONFIG, FaceDetector


@pytest.fixture(scope='module')
def faces(checkpoint):
    return FaceDetector(f'{ROOT}/configs/{CONFIG}', checkpoint)


def photograph(name='001_neutral'):
    return cv2.imread(shared('data', 'faces_london', f'{name}.jpg'))


def test_leaves_the_default_scope_alone(checkpoint):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        FaceDetector(f'{ROOT}/configs/{CONFIG}', checkpoint)
        scope = DefaultScope.get_current_instance().scope_name
        assert scope == 'mmpretrain'


def test_landmarks_of_photographs(faces):
    """Near those that were marked by hand."""
    folder = shared('data', 'faces_london')
    with open(f'{folder}/index.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['nose_x']][:8]
    found = faces([cv2.imread(f'{folder}/{row["file"]}') for row in rows])
    for row, (face, ) in zip(rows, found):
        assert face.score > 0.9
        expected = np.array(list(row.values())[3:], float).reshape(5, 2)
        eyes = np.linalg.norm(expected[0] - expected[1])
        errors = np.linalg.norm(face.keypoints - expected, axis=1)
        assert errors.mean() < 0.12 * eyes, row['file']
        left, top, right, bottom = face.bbox
        assert ((expected > (left, top)) & (expected < (right, bottom))).all()


def test_a_batch_of_several_sizes(faces):
    group = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    pictures = [photograph(), group, photograph('011_neutral')]
    together = faces(pictures)
    assert [len(found) for found in together] == [1, 29, 1]
    for picture, found in zip(pictures, together):
        for one, other in zip(found, faces([picture])[0]):
            assert np.allclose(one.bbox, other.bbox, atol=0.02)
            assert np.allclose(one.keypoints, other.keypoints, atol=0.02)
    assert faces([]) == []


def test_a_large_picture_is_shrunk(checkpoint, faces):
    """To what it was, so that the face is where it was, twice as large."""
    small = FaceDetector(f'{ROOT}/configs/{CONFIG}', checkpoint, max_side=640)
    picture = photograph()
    large = cv2.resize(picture, (1280, 1280), interpolation=cv2.INTER_NEAREST)
    one, other = faces([picture])[0][0], small([large])[0][0]
    assert np.allclose(2 * one.bbox, other.bbox, atol=0.1)
    assert np.allclose(2 * one.keypoints, other.keypoints, atol=0.1)


def test_half_of_a_detector(checkpoint):
    for arguments in (f'{ROOT}/configs/{CONFIG}', None), (None, checkpoint):
        with pytest.raises(ValueError, match='expected both or none'):
            FaceDetector(*arguments)


def test_align_faces(checkpoint, tmp_path, capsys):
    """All that people have in a folder."""
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    src.mkdir()
    face = Image.fromarray(photograph()[..., ::-1])
    face.save(src / 'plain.png')
    face.convert('L').save(src / 'grey.png')
    face.convert('RGBA').save(src / 'rgba.png')
    other = Image.fromarray(photograph('011_neutral')[..., ::-1])
    face.save(src / 'moving.gif', save_all=True, append_images=[other])
    # On its side in the file, upright by its EXIF
    exif = Image.Exif()
    exif[0x0112] = 6
    face.rotate(90).save(src / 'turned.jpg', exif=exif, quality=98)
    # Half a face, at the border
    face.crop((320, 0, 640, 640)).save(src / 'cut.png')
    Image.new('RGB', (300, 200), (9, 90, 200)).save(src / 'one_colour.png')
    Image.new('RGB', (1, 1)).save(src / 'pixel.png')
    Image.new('L', (12000, 9000)).save(src / 'vast.png')
    whole = (src / 'plain.png').read_bytes()
    (src / 'truncated.png').write_bytes(whole[:-20000])
    (src / 'empty.jpg').write_bytes(b'')

    main = runpy.run_path(
        f'{ROOT}/tools/dataset_converters/align_faces.py')['main']
    code = main([
        str(src),
        str(dst), '--config', f'{ROOT}/configs/{CONFIG}', '--checkpoint',
        checkpoint, '--size', '96'
    ])
    assert code == 1
    with open(dst / 'faces.csv', encoding='utf-8') as file:
        rows = {row['path']: row for row in csv.DictReader(file)}
    status = {path: row['status'] for path, row in rows.items()}
    cut = status.pop('cut.png')
    assert cut in ('aligned', 'no face')
    expected = dict(plain='aligned', grey='aligned', rgba='aligned')
    expected.update(moving='aligned', turned='aligned')
    expected.update(one_colour='no face', pixel='no face')
    expected.update(vast='broken', truncated='broken', empty='broken')
    assert {
        path.split('.')[0]: value
        for path, value in status.items()
    } == expected
    assert '12000x9000 pixels' in rows['vast.png']['detail']
    expected = cv2.imread(str(dst / 'plain.png')).astype(float)
    for name in 'rgba.png', 'turned.jpg', 'moving.gif.png':
        crop = cv2.imread(str(dst / name)).astype(float)
        assert np.abs(crop - expected).mean() < 8, name
    assert capsys.readouterr().out.count('broken') >= 2
