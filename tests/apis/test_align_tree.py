# Copyright (c) dan_mm contributors. All rights reserved.
"""A tree of images to a tree of aligned faces."""
import csv
import hashlib
import json
import os

import cv2
import numpy as np
import pytest
from conftest import draw_face, is_crop

from dan_mm import cli
from dan_mm.apis import align_tree
from dan_mm.apis.faces import Face
from dan_mm.apis.orientation import UPRIGHT
from dan_mm.datasets import FERPlus
from dan_mm.imaging import align_face

SIZE = 64


class Stub:
    """A detector that finds as many faces as an image's corner says, one
    beside the other, and loses heart after some images."""

    def __init__(self, patience=None):
        self.patience = patience
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        if self.patience is not None:
            self.patience -= len(images)
            if self.patience < 0:
                raise KeyboardInterrupt
        return [self.find(image) for image in images]

    def find(self, image):
        faces = []
        for i in range(int(image[0, 0, 0])):
            # The second is the largest, the third in the middle.
            side = 30 + 10 * (i == 1)
            left = (20, 100, 85)[i]
            keypoints = side * (UPRIGHT + (0.5, 0.6)) + (left, 60)
            bbox = np.array([left, 60, left + side, 60 + side], np.float32)
            faces.append(Face(bbox, 0.99 - i / 1000, keypoints))
        return faces


def image(number, faces):
    img = cv2.resize(draw_face(number, 120), (200, 160))
    img = cv2.cvtColor(img, cv2.COLOR_GRAY2BGR)
    img[0, 0] = faces
    return img


@pytest.fixture
def tool(monkeypatch):

    def run(*arguments, detector=None):
        detector = detector or Stub()
        monkeypatch.setattr(align_tree, 'build_detector', lambda _: detector)
        args = cli.parse_args(
            ['align', *map(str, arguments), '--size',
             str(SIZE)])
        return cli.align.run(args), detector

    return run


@pytest.fixture
def tree(tmp_path):
    """In the layout of SFEW, with what people have beside images."""
    src = tmp_path / 'src'
    for i, name in enumerate(('Train/Angry/a.png', 'Train/Angry/b.png',
                              'Train/Happy/ünï cödé.png', 'Val/Happy/d.png')):
        path = src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            cv2.imencode('.png', image(i, (1, 3, 2, 0)[i]))[1].tobytes())
    whole = (src / 'Train/Angry/a.png').read_bytes()
    (src / 'Val/Happy/broken.png').write_bytes(whole[:len(whole) // 2])
    (src / 'Val/Happy/empty.jpg').write_bytes(b'')
    (src / 'notes.txt').write_text('x')
    return src


def files(folder):
    return {
        os.path.relpath(path, folder):
        hashlib.md5(path.read_bytes()).hexdigest()
        for path in folder.rglob('*') if path.is_file()
    }


def rows(dst):
    with open(dst / 'faces.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_a_tree(tool, tree, tmp_path, capsys):
    before, dst = files(tree), tmp_path / 'dst'
    code, detector = tool(tree, dst, '--batch-size', 2)
    assert code == 1  # two are broken
    assert files(tree) == before
    assert set(files(dst)) == {
        'Train/Angry/a.png', 'Train/Angry/b.png', 'Train/Happy/ünï cödé.png',
        'faces.csv', 'alignment.json'
    }
    output = capsys.readouterr().out
    assert '3 images aligned (3 faces), 1 without a face, 2 broken' in output
    assert "no face: 'Val/Happy/d.png'" in output
    assert "'Val/Happy/broken.png', 'Val/Happy/empty.jpg'" in output
    assert 'notes.txt' in output
    assert json.loads((dst / 'alignment.json').read_text()) == dict(
        size=SIZE, margin=0.1, interpolation='bilinear')

    found = {row['path']: row for row in rows(dst)}
    assert found['Val/Happy/d.png']['status'] == 'no face'
    assert found['Val/Happy/broken.png']['status'] == 'broken'
    assert 'cannot be decoded' in found['Val/Happy/broken.png']['detail']
    assert 'empty file' in found['Val/Happy/empty.jpg']['detail']
    row = found['Train/Angry/b.png']  # its largest face
    assert row['status'] == 'aligned' and row['crop'] == row['path']
    assert [row[key] for key in ('left', 'top', 'right', 'bottom', 'score')
            ] == ['100.00', '60.00', '140.00', '100.00', '0.9890']
    keypoints = 40 * (UPRIGHT + (0.5, 0.6)) + (100, 60)
    assert float(row['nose_tip_x']) == pytest.approx(
        keypoints[2, 0], abs=0.006)
    expected = align_face(
        cv2.imread(str(tree / 'Train/Angry/b.png')),
        keypoints,
        size=SIZE,
        margin=0.1)
    crop = cv2.imread(str(dst / 'Train/Angry/b.png'))
    assert np.array_equal(crop, expected)


@pytest.mark.parametrize('rule, left', [('largest', 100), ('central', 85),
                                        ('confident', 20)])
def test_one_face(tool, tree, tmp_path, rule, left):
    tool(tree, tmp_path / 'dst', '--faces', rule)
    found = {row['path']: row for row in rows(tmp_path / 'dst')}
    assert float(found['Train/Angry/b.png']['left']) == left


def test_all_faces(tool, tree, tmp_path):
    dst = tmp_path / 'dst'
    tool(tree, dst, '--faces', 'all')
    found = [row for row in rows(dst) if row['path'] == 'Train/Angry/b.png']
    assert [row['crop'] for row in found
            ] == [f'Train/Angry/b-face{i}.png' for i in (1, 2, 3)]
    assert [float(row['left']) for row in found] == [20, 100, 85]
    for row in found:
        assert (dst / row['crop']).is_file()


def test_a_rerun_goes_on(tool, tree, tmp_path):
    whole, dst = tmp_path / 'whole', tmp_path / 'dst'
    arguments = '--faces', 'all', '--batch-size', 1
    tool(tree, whole, *arguments)
    with pytest.raises(KeyboardInterrupt):
        tool(tree, dst, *arguments, detector=Stub(patience=2))
    report = (dst / 'faces.csv').read_text(encoding='utf-8')
    assert len(report.splitlines()) == 5  # of one and of three faces
    # Killed while it wrote.
    (dst / 'faces.csv').write_text(report[:-20], encoding='utf-8')
    (dst / 'Train/Angry/a-face1.png').unlink()
    _, detector = tool(tree, dst, *arguments)
    assert sum(detector.sizes) == 4
    key = sorted(map(str, rows(whole)))
    assert key == sorted(map(str, rows(dst)))
    one, other = files(whole), files(dst)
    # The order of its rows may differ.
    del one['faces.csv'], other['faces.csv']
    assert one == other
    # The last one and broken ones are tried again, the others not.
    _, detector = tool(tree, dst, *arguments)
    assert sum(detector.sizes) <= 1


def test_other_settings_are_refused(tool, tree, tmp_path):
    tool(tree, tmp_path / 'dst')
    with pytest.raises(ValueError, match="'margin': 0.1.*'margin': 0.3"):
        tool(tree, tmp_path / 'dst', '--margin', 0.3)


def test_refusals(tool, tree, tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*/nowhere'):
        tool(tmp_path / 'nowhere', tmp_path / 'dst')
    with pytest.raises(ValueError, match='neither to be in the other'):
        tool(tree, tree / 'faces')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no image by its extension'):
        tool(tmp_path / 'empty', tmp_path / 'dst')


def test_formats(tool, tmp_path):
    """JPEG stays JPEG, others become PNG, also where names are the same."""
    src = tmp_path / 'src'
    src.mkdir()
    for name in 'a.JPG', 'a.bmp', 'a.webp':
        # In the corner, compression changes the number of faces by little.
        img = image(0, 1)
        img[:16, :16] = 1
        cv2.imwrite(str(src / name), img)
    tool(src, tmp_path / 'dst')
    found = {row['path']: row['crop'] for row in rows(tmp_path / 'dst')}
    assert found['a.bmp'] == 'a.bmp.png'
    for path, crop in found.items():
        assert crop == (path if path == 'a.JPG' else f'{path}.png')
        assert cv2.imread(str(tmp_path / 'dst' / crop)).shape == (SIZE, SIZE,
                                                                  3)


def test_crops_that_would_overwrite_each_other(tool, tmp_path):
    src = tmp_path / 'src'
    src.mkdir()
    for name in 'a.bmp', 'a.bmp.png':
        cv2.imwrite(str(src / name), image(0, 1))
    with pytest.raises(ValueError, match="both be 'a.bmp.png', expected"):
        tool(src, tmp_path / 'dst')
    assert not list(tmp_path.glob('dst/*.png'))
    (src / 'a.bmp').rename(src / 'b.bmp')
    tool(src, tmp_path / 'dst')
    assert {path.name
            for path in tmp_path.glob('dst/*.png')
            } == {'a.bmp.png', 'b.bmp.png'}


def test_like_a_model(tool, tree, work_dir, tmp_path):
    """As the faces that it was trained on, whatever the other options."""
    tool(tree, tmp_path / 'dst', '--like', work_dir)
    expected = FERPlus.METAINFO['alignment']
    found = json.loads((tmp_path / 'dst' / 'alignment.json').read_text())
    assert found == expected
    crop = cv2.imread(str(tmp_path / 'dst' / 'Train' / 'Angry' / 'a.png'))
    assert crop.shape == (48, 48, 3)


def test_a_face_that_cannot_be_aligned(tool, tree, tmp_path):
    """Stops no other image, and leaves no crop of its own."""

    detector = Stub()
    call = Stub.__call__
    spoilt = []

    def find(images):
        if is_crop(images[0]):
            return [[] for _ in images]  # nor in another orientation
        found = call(detector, images)
        if not spoilt:
            spoilt.append(found[0])
            found[0][-1] = found[0][-1]._replace(
                keypoints=found[0][-1].keypoints * 0)
        return found

    code, _ = tool(tree, tmp_path / 'dst', '--faces', 'all', detector=find)
    assert code == 1
    with open(tmp_path / 'dst' / 'faces.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    broken = [row for row in rows if row['status'] == 'broken']
    [row] = [row for row in broken if 'cannot be aligned' in row['detail']]
    stem = row['path'].split('.')[0]
    assert not list((tmp_path / 'dst').glob(f'{stem}*'))
    assert any(row['status'] == 'aligned' for row in rows)
