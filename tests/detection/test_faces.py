# Copyright (c) dan_mm contributors. All rights reserved.
"""The faces of photographs, with a detector of MMDet."""
import csv
from glob import glob

import cv2
import numpy as np
import pytest
from conftest import ROOT, shared
from mmengine.registry import DefaultScope
from PIL import Image

from dan_mm import cli
from dan_mm.apis import FaceDetector

CONFIG = f'{ROOT}/configs/retinaface/retinaface_mobilenet0.25_widerface.py'


def photograph(name='001_neutral'):
    return cv2.imread(shared('data', 'faces_london', f'{name}.jpg'))


def test_leaves_the_default_scope_alone(checkpoint):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        FaceDetector(CONFIG, checkpoint)
        scope = DefaultScope.get_current_instance().scope_name
        assert scope == 'mmpretrain'


@pytest.mark.slow
def test_the_default_detector_finds_the_same(checkpoint, detector_weights):
    """All that is above the threshold of the config, in the same order, in
    batches, in images to shrink, and where two scores are equal."""
    settings = dict(score_thr=0.02, device='cpu')
    ours = FaceDetector(**settings)
    mmdet = FaceDetector(CONFIG, checkpoint, **settings)
    group = cv2.imread(shared('data', 'group_photo', 'solvay_1927.jpg'))
    portraits = sorted(glob(shared('data', 'faces_london') + '/*.jpg'))
    portraits = [cv2.imread(path) for path in portraits]
    batches = [[group], [cv2.resize(group, None, fx=1.2, fy=1.3)],
               [portraits[0][:, 300:], group[100:401, 200:511]], portraits[:4],
               *([portrait] for portrait in portraits[4:])]
    count = 0
    for batch in batches:
        for found, expected in zip(ours(batch), mmdet(batch)):
            assert len(found) == len(expected)
            count += len(found)
            for face, other in zip(found, expected):
                assert abs(face.score - other.score) < 1e-5
                assert np.abs(face.bbox - other.bbox).max() < 1e-3
                assert np.abs(face.keypoints - other.keypoints).max() < 1e-3
    assert count > 200


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
    Image.new('L', (12000, 9200)).save(src / 'vast.png')
    whole = (src / 'plain.png').read_bytes()
    (src / 'truncated.png').write_bytes(whole[:-20000])
    (src / 'empty.jpg').write_bytes(b'')

    code = cli.main([
        'align',
        str(src),
        str(dst), '--detector-config', CONFIG, '--detector-checkpoint',
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
    assert '12000x9200 pixels' in rows['vast.png']['detail']
    expected = cv2.imread(str(dst / 'plain.png')).astype(float)
    for name in 'rgba.png', 'turned.jpg', 'moving.gif.png':
        crop = cv2.imread(str(dst / name)).astype(float)
        assert np.abs(crop - expected).mean() < 8, name
    assert capsys.readouterr().out.count('broken') >= 2
