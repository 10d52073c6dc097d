# Copyright (c) dan_mm contributors. All rights reserved.
"""The converters of datasets, each source form built of a few images."""
import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_face
from PIL import Image

from dan_mm import files
from dan_mm.datasets import FER2013, SFEW, AffectNet, FERFolder

pytestmark = pytest.mark.filterwarnings('ignore:.*official split')

AFFECTNET = AffectNet.METAINFO['classes']
SFEW_FOLDERS = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad',
                'Surprise')
HEADER = ('subDirectory_filePath,face_x,face_y,face_width,face_height,'
          'facial_landmarks,expression,valence,arousal').split(',')
GREY = ' '.join(['7'] * 48 * 48)


@pytest.fixture(autouse=True)
def converters(monkeypatch):
    """The converters import each other as scripts do."""
    monkeypatch.syspath_prepend(f'{ROOT}/tools/dataset_converters')


@pytest.fixture
def src(tmp_path):
    return tmp_path / 'src'


@pytest.fixture
def dst(tmp_path):
    return tmp_path / 'dst'


def run(tool, *arguments):
    """Run a converter in this process and get its exit status."""
    return import_module(tool).main([str(item) for item in arguments])


def start(tool, *arguments):
    """Start a converter as a user does."""
    return subprocess.Popen([
        sys.executable, f'{ROOT}/tools/dataset_converters/{tool}.py',
        *map(str, arguments)
    ],
                            cwd=ROOT,
                            text=True,
                            stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def tree(root, times=False):
    """The content of all files but that which names the source, and when they
    were written."""
    return {
        str(path.relative_to(root)):
        (sha256(path.read_bytes()), path.stat().st_mtime_ns * times)
        for path in Path(root).rglob('*')
        if path.is_file() and path.name != '.source'
    }


def left_out(dst):
    """The rows of the list of what is left out, without the details."""
    with open(f'{dst}/left_out.csv', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    assert header == ['path', 'reason', 'detail']
    return [tuple(row[:2]) for row in rows]


def draw(seed, height=60, width=80):
    """A colour image, uint8 (height, width, 3)."""
    face = cv2.resize(draw_face(seed), (width, height))
    return np.stack([face, face // 2 + seed, 255 - face], 2).astype(np.uint8)


def write(path, img):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, img)[1].tobytes())


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def faces(ferplus_root):
    """The files of real faces, or of drawn ones."""
    paths = sorted(Path(ferplus_root).glob('FER2013Train/*.png'))
    return [path.read_bytes() for path in paths]


def fill(root, classes, faces, number=2, suffix='.png'):
    """Make a folder of faces for each class."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(number):
            path = root / name / f'{name}{j}{suffix}'
            path.write_bytes(faces[(i * number + j) % len(faces)])


def affectnet_csv(root, rows=(), images=()):
    """Make AffectNet's CSV files and images: one face of each expression for
    each split, and more rows (path, box, expression) and images for
    training."""
    folder = root / 'Manually_Annotated_compressed/Manually_Annotated_Images'
    lists = root / 'Manually_Annotated_file_lists'
    lists.mkdir(parents=True)
    for i, name in enumerate(images):
        write(folder / name, draw(i + 1))
    for i, (name, lines) in enumerate(
            dict(training=list(rows), validation=[]).items()):
        for expression in range(8):
            path = f'{expression % 3}/{name}{expression}.jpg'
            write(folder / path, draw(expression + i))
            lines.append((path, (10, 5, 40, 50), expression))
        with open(lists / f'{name}.csv', 'w', newline='') as file:
            writer = csv.writer(file)
            if name == 'training':  # as released
                writer.writerow(HEADER)
            writer.writerows([path, *box, '1;2', expression, .1, .2]
                             for path, box, expression in lines)
    return folder


def line(number, name, file='training.csv'):
    return f'{file}, line {number}: {name}'


@pytest.mark.slow
def test_affectnet_csv_as_a_user_runs_it(tmp_path):
    src, dst = tmp_path / 'ä [src]', tmp_path / 'dst 漢'
    images = affectnet_csv(src, [
        ('1/same.png', (10, 20, 30, 15), 1),
        ('2/same.png', (0, 0, 30, 30), 1),
        ('1/same.png', (40, 20, 30, 15), 1),
        ('2/large.bmp', (100, 50, 300, 400), 6),
        ('2/partly.png', (-10, 50, 30, 30), 3),
        ('2/ö 漢.JPG', (0, 0, 80, 60), 7),
        ('2/turned.png', (0, 0, 20, 60), 0),
        ('3/none.jpg', ('NULL', ) * 4, 8),
        ('3/uncertain.jpg', (1, 1, 9, 9), 9),
        ('3/no.jpg', (-1, -1, -1, -1), 10),
        ('1/same.png', (80, 0, 20, 20), 2),
        ('1/same.png', (5, 5, -4, 20), 2),
        ('3/missing.jpg', (0, 0, 9, 9), 4),
        ('3/cut.jpg', (0, 0, 9, 9), 4),
        ('../../secret.png', (0, 0, 9, 9), 5),
        ('1/../../../secret.png', (0, 0, 7, 9), 5),
        ('..\\..\\secret.png', (0, 0, 8, 9), 5),
        (f'{tmp_path}/secret.png', (0, 0, 9, 9), 5),
        ('1/a\0b.png', (0, 0, 9, 9), 5),
        ('1/same.png', (0, 0, 'x', 9), 5),
        ('1/same.png', (0, 0, 9, 9), 11),
    ], ['1/same.png', '2/same.png', '2/partly.png', '2/ö 漢.JPG'])
    big = cv2.resize(draw(9), (640, 480))
    write(images / '2/large.bmp', big)
    write(tmp_path / 'secret.png', draw(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw(7)[..., ::-1]).save(
        images / '2/turned.png', exif=exif)
    (images / '3').mkdir()
    content = cv2.imencode('.jpg', draw(0))[1].tobytes()
    (images / '3/cut.jpg').write_bytes(content[:-200])
    before = tree(tmp_path, times=True)

    process = start('affectnet', src, dst)
    output = process.communicate()[0]
    # Images are missing and broken, which stops no other.
    assert process.returncode == 1, output
    unchanged = tree(tmp_path, times=True)
    assert {key: unchanged[key] for key in before} == before
    others = {
        f'{split}/{AFFECTNET[i]}/{i % 3}/{name}{i}.jpg'
        for split, name in (('train', 'training'), ('val', 'validation'))
        for i in range(8)
    }
    extra = {
        'train/happiness/1/same.png', 'train/happiness/2/same.png',
        'train/happiness/1/same-2.png', 'train/anger/2/large.png',
        'train/surprise/2/partly.png', 'train/contempt/2/ö 漢.JPG',
        'train/neutral/2/turned.png'
    }
    assert set(tree(dst)) == others | extra | {'left_out.csv'}
    assert set(os.listdir(dst)) == {'train', 'val', 'left_out.csv', '.source'}

    train = dst / 'train'
    for name, expected in (('happiness/1/same.png', draw(1)[20:35, 10:40]),
                           ('happiness/1/same-2.png', draw(1)[20:35, 40:70]),
                           ('happiness/2/same.png',
                            draw(2)[:30, :30]), ('surprise/2/partly.png',
                                                 draw(3)[50:, :20]),
                           ('neutral/2/turned.png', draw(7)[:, :20]),
                           ('anger/2/large.png',
                            cv2.resize(
                                big[50:450, 100:400], (224, 299),
                                interpolation=cv2.INTER_AREA))):
        assert np.array_equal(read(train / name), expected), name
    jpeg, expected = (
        cv2.cvtColor(img, cv2.COLOR_BGR2GRAY).astype(int)
        for img in (read(dst / 'val/fear/1/validation4.jpg'),
                    read(images / '1/validation4.jpg')[5:55, 10:50]))
    assert jpeg.shape == (50, 40) and abs(jpeg - expected).mean() < 2

    outside = 'path outside of the image folder'
    assert sorted(left_out(dst)) == sorted([
        (line(9, '3/none.jpg'), 'expression 8 (none)'),
        (line(10, '3/uncertain.jpg'), 'expression 9 (uncertain)'),
        (line(11, '3/no.jpg'), 'expression 10 (no face)'),
        (line(12, '1/same.png'), 'unusable'),
        (line(13, '1/same.png'), 'unusable'),
        (line(14, '3/missing.jpg'), 'missing'),
        (line(15, '3/cut.jpg'), 'unusable'),
        (line(16, '../../secret.png'), outside),
        (line(17, '1/../../../secret.png'), outside),
        (line(18, '../../secret.png'), outside),
        (line(19, f'{tmp_path}/secret.png'), outside),
        (line(20, '1/a\0b.png'), 'unusable'),
        (line(21, '1/same.png'), 'unreadable line'),
        (line(22, '1/same.png'), 'unknown expression'),
    ])
    assert '23 images, 23 of them new' in output
    assert 'train: 15 images; anger: 2, contempt: 2' in output
    assert 'expected 287651 or 287568' in output
    # Again: only what was missing is written.
    once = tree(dst, times=True)
    write(images / '3/missing.jpg', draw(1))
    assert run('affectnet', src, dst) == 1
    again = tree(dst, times=True)
    assert set(again) - set(once) == {'train/fear/3/missing.jpg'}
    del once['left_out.csv']
    assert {key: again[key] for key in once} == once
    assert len(left_out(dst)) == 13


@pytest.mark.slow
def test_a_killed_conversion_resumes(src, dst, tmp_path, capsys):
    src.mkdir()
    rng = np.random.default_rng(0)
    texts = [' '.join(map(str, rng.integers(0, 256, 48**2))) for _ in range(8)]
    with open(src / 'fer2013.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['emotion', 'pixels', 'Usage'],
                                    *([i % 7, texts[i % 8], 'Training']
                                      for i in range(2000))])
    process = start('fer2013', src, dst)
    while not list(dst.glob('train/anger/0*')):
        assert process.poll() is None, process.stdout.read()
        time.sleep(.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # As of a process that was killed while it wrote
    (dst / 'train/anger/.123-456.partial.png').write_bytes(b'x')
    done = {
        name: found
        for name, found in tree(dst, times=True).items()
        if not Path(name).name.startswith('.')
    }
    assert 1 <= len(done) < 2000
    for name in done:
        assert read(dst / name).shape == (48, 48), name

    assert run('fer2013', src, dst) == 0
    finished = tree(dst, times=True)
    assert f'2000 images, {2000 - len(done)} of them new' in (
        capsys.readouterr().out)
    assert {name: finished[name] for name in done} == done
    assert run('fer2013', src, tmp_path / 'fresh') == 0
    assert tree(dst) == tree(tmp_path / 'fresh')
    pixels = np.array(texts[12 % 8].split(), np.uint8).reshape(48, 48)
    assert np.array_equal(read(dst / 'train/surprise/00012.png'), pixels)


def test_affectnet_folders(src, dst, faces, tmp_path, capsys):
    fill(src / 'train', '0123456789', faces)
    fill(src / 'valid', [*AFFECTNET[:-1], 'Contempt'], faces, suffix='.PNG')
    (src / 'train/3/sub').mkdir()
    (src / 'train/3/sub/30.png').write_bytes(faces[0])
    (src / 'train/3/notes.txt').touch()
    (src / 'train/stray.png').write_bytes(faces[0])
    before = tree(src, times=True)
    assert run('affectnet', src, dst) == 0
    assert tree(src, times=True) == before
    labels = AffectNet(str(dst)).get_gt_labels()
    assert np.bincount(labels).tolist() == [2, 2, 2, 3, 2, 2, 2, 2]
    found = tree(dst)
    for name, i in (('train/surprise/sub/30.png', 0),
                    ('train/sadness/20.png', 4), ('val/contempt/Contempt1.PNG',
                                                  15)):
        assert found[name][0] == sha256(faces[i])
    assert left_out(dst) == [
        *[(f'train/{i}/{i}{j}.png', f'expression {i} ({name})')
          for i, name in ((8, 'none'), (9, 'uncertain')) for j in range(2)],
        ('train/stray.png', 'in no folder of a class'),
        ('train/3/notes.txt', 'no image by its extension'),
    ]
    assert "2 expression 8 (none), the first is 'train/8/80.png'" in (
        capsys.readouterr().out)

    # Without contempt it is the one of 7 classes.
    fill(tmp_path / 'seven' / 'train', '0123456', faces)
    with pytest.warns(UserWarning, match='expected 283901'):
        assert run('affectnet', tmp_path / 'seven', tmp_path / 'dst7') == 0


def test_affectnet_label_files(src, dst, faces):
    labels = {f'p{i}': np.array(str(i)) for i in range(8)}
    labels.update(
        number=np.array(3),
        one=np.array([4]),
        bytes=np.array(b'5'),
        uint=np.array([6], np.uint8),
        float=np.array(1.),
        decimal=np.array('2.0'),
        dropped=np.array('9'),
        eleven=np.array(11),
        half=np.array(1.5),
        nan=np.array(np.nan),
        underscore=np.array('0_1'),
        several=np.array([1, 2]),
        word=np.array('happy'),
        object=np.array([{}], object),
        gone=np.array(1))
    headers = dict(
        huge="{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" %
        10**12,
        header="{'descr': (")
    for split in 'train_set', 'val_set':
        images, annotations = (
            src / split / name for name in ('images', 'annotations'))
        images.mkdir(parents=True)
        annotations.mkdir()
        for name, label in labels.items():
            np.save(annotations / f'{name}_exp.npy', label, allow_pickle=True)
            np.save(annotations / f'{name}_val.npy', .5)
        for name in {*labels, *headers, 'nolabel', 'cut'} - {'gone'}:
            (images / f'{name}.png').write_bytes(faces[0])
        (annotations / 'cut_exp.npy').write_bytes(b'\x93NUMPY')
        for name, header in headers.items():
            (annotations /
             f'{name}_exp.npy').write_bytes(b'\x93NUMPY\x01\x00v\x00' +
                                            header.ljust(117).encode() +
                                            b'\n' + bytes(8))
    before = tree(src, times=True)
    assert run('affectnet', src, dst) == 1
    assert tree(src, times=True) == before
    expected = {f'{AFFECTNET[i]}/p{i}.png'
                for i in range(8)} | {
                    'surprise/number.png', 'fear/one.png', 'disgust/bytes.png',
                    'anger/uint.png', 'happiness/float.png',
                    'sadness/decimal.png'
                }
    assert set(tree(dst)) == {
        f'{split}/{name}'
        for split in ('train', 'val')
        for name in expected
    } | {'left_out.csv'}
    reasons = {
        'annotations/gone_exp.npy': 'missing',
        'images/dropped.png': 'expression 9 (uncertain)',
        'images/eleven.png': 'unknown expression'
    }
    for name in ('half', 'nan', 'underscore', 'several', 'word', 'object',
                 'nolabel', 'cut', 'huge', 'header'):
        reasons[f'images/{name}.png'] = 'unreadable label'
    assert dict(left_out(dst)) == {
        f'{split}_set/{name}': reason
        for split in ('train', 'val')
        for name, reason in reasons.items()
    }


def test_sfew(src, dst, faces, capsys):
    fill(src / 'Train' / 'Train_Aligned_Faces', SFEW_FOLDERS, faces)
    fill(src / 'Val_Aligned_Faces_new', SFEW_FOLDERS, faces, number=1)
    (src / 'Test').mkdir()
    (src / 'Test' / 'x.png').write_bytes(faces[0])
    with pytest.warns(UserWarning) as caught:
        assert run('sfew', src, dst) == 0
    messages = ' '.join(str(warning.message) for warning in caught)
    assert 'expected 958' in messages and 'expected 436' in messages
    assert SFEW(str(dst)).get_gt_labels().tolist() == sum(
        ([i] * 2 for i in range(7)), [])
    assert tree(dst)['val/sadness/Sad0.png'][0] == sha256(faces[5])
    assert left_out(dst) == [('Test/x.png', 'in no folder of a class')]
    # There are two commands for this folder.
    with pytest.raises(SystemExit):
        run('sfew', '--help')
    assert 'dan-mm align' in capsys.readouterr().out


def test_fer2013_csv(src, dst, faces, monkeypatch, capsys):
    images = [
        cv2.imdecode(np.frombuffer(face, np.uint8), cv2.IMREAD_GRAYSCALE)
        for face in faces[:16]
    ]
    splits = ['train'] * 14 + ['val', 'test']
    usages = dict(train='Training', val='PublicTest', test='PrivateTest')
    path = src / 'fer2013' / 'icml_face_data.csv'
    path.parent.mkdir(parents=True)
    rows = [[i % 7, usages[split], ' '.join(map(str, img.flat))]
            for i, (split, img) in enumerate(zip(splits, images))]
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([['emotion', ' Usage', ' pixels'], *rows,
                                    [1, 'Training', '1 2 3'],
                                    [1, 'Training',
                                     GREY.replace('7', '256')],
                                    [7, 'Training', GREY], [1, 'Test', GREY],
                                    [1], ['3.0', 'PublicTest', GREY]])
    assert run('fer2013', src, dst) == 1
    classes = FER2013.METAINFO['classes']
    for i, (split, img) in enumerate(zip(splits, images)):
        name = f'{split}/{classes[i % 7]}/{i:05d}.png'
        assert np.array_equal(read(dst / name), img)
    # A decimal point is of pandas.
    assert (dst / 'val/happiness/00021.png').exists()
    assert left_out(dst) == [(f'icml_face_data.csv, image {i}',
                              'unreadable line') for i in range(16, 21)]
    # The file itself is a source, too, and the target may be beside it.
    assert run('fer2013', path, path.with_name('beside')) == 1
    assert tree(path.with_name('beside')) == tree(dst)
    capsys.readouterr()
    monkeypatch.setattr(FER2013, 'OFFICIAL_COUNTS',
                        dict(train=14, val=2, test=2))
    monkeypatch.setattr(FER2013, 'CLASS_COUNTS', dict(train=[(2, ) * 7]))
    assert run('fer2013', path) == 1
    output = capsys.readouterr().out
    assert "split 'train'" not in output and "split 'val'" not in output
    assert "found 1 images in the official split 'test'" in output


def test_fer2013_folders(src, dst, faces):
    fill(src / 'train', [name.lower() for name in SFEW_FOLDERS], faces)
    fill(src / 'test', '0123456', faces, number=1)
    assert run('fer2013', src, dst) == 0
    test = FER2013(str(dst), 'test')
    assert test.get_gt_labels().tolist() == list(range(7))
    assert (dst / 'test/happiness/30.png').read_bytes() == faces[3]


def test_any_folder(tmp_path, src, dst, faces, capsys):
    fill(tmp_path / 'flat', ['Happy', 'Glad', 'sad'], faces)
    assert run('folder', tmp_path / 'flat', tmp_path / 'a') == 0
    assert set(tree(tmp_path / 'a')) == {
        'left_out.csv',
        *(f'train/{name}{i}.png' for i in range(2)
          for name in ('happiness/Happy', 'Glad/Glad', 'sadness/sad'))
    }
    fill(src / 'Train', ['Happy', 'Glad'], faces)
    fill(src / 'Validation', ['Glad'], faces)
    assert run('folder', src, dst) == 0
    val = FERFolder(str(dst), 'val')
    assert val.metainfo['classes'] == ('Glad', 'happiness')
    assert val.get_gt_labels().tolist() == [0, 0]
    # Without a target, images are counted.
    before = tree(tmp_path, times=True)
    capsys.readouterr()
    assert run('folder', src) == 0
    assert 'val: 2 images; Glad: 2' in capsys.readouterr().out
    assert tree(tmp_path, times=True) == before


def test_broken_images_stop_no_other(src, dst, faces, tmp_path, capsys):
    fill(src, ['happy', 'sad'], faces, number=3)
    (src / 'happy/happy1.png').write_bytes(faces[1][:-200])
    (src / 'sad/=sad.png').write_bytes(b'')
    (src / 'sad/sad1.png').unlink()
    (src / 'sad/sad1.png').symlink_to(tmp_path / 'gone')
    (src / 'sad/sad3.png').mkdir()
    assert run('folder', src, dst) == 1
    assert set(tree(dst)) == {
        'left_out.csv', 'train/happiness/happy0.png',
        'train/happiness/happy2.png', 'train/sadness/sad0.png',
        'train/sadness/sad2.png'
    }
    assert left_out(dst) == [('sad/sad1.png', 'broken link'),
                             ('happy/happy1.png', 'unusable'),
                             ('sad/=sad.png', 'unusable')]
    assert "2 unusable, the first is 'happy/happy1.png'" in (
        capsys.readouterr().out)


def test_other_files_in_the_target_are_noted(src, dst, faces, capsys):
    fill(src, ['happy', 'sad'], faces)
    assert run('folder', src, dst) == 0
    assert 'Warning' not in capsys.readouterr().out
    (dst / 'train/sadness/old.png').write_bytes(faces[0])
    assert run('folder', src, dst) == 0
    assert (dst / 'train/sadness/old.png').exists()
    output = capsys.readouterr().out
    assert 'Warning' in output and f'5 images in {dst}/train' in output


def test_a_full_disk(src, dst, faces, monkeypatch):
    fill(src, ['happy', 'sad'], faces)
    replace = os.replace

    def full(source, target):
        if target.endswith('sad1.png'):
            raise OSError(28, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(files.os, 'replace', full)
    with pytest.raises(SystemExit, match='dst .*No space left'):
        run('folder', src, dst)
    found = tree(dst)
    assert len(found) == 3 and not any('partial' in name for name in found)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(f'{ROOT}/tools/dataset_converters')
    assert run('folder', src, dst) == 0
    assert len(tree(dst)) == 5


@pytest.mark.parametrize('tool', ['affectnet', 'sfew', 'fer2013', 'folder'])
def test_unknown_forms_are_refused(tmp_path, src, dst, tool):
    (src / 'stuff').mkdir(parents=True)
    for path, found in (src, r"\['stuff'\]"), (tmp_path / 'nowhere', ''):
        with pytest.raises(SystemExit, match=f'{found}.*{path.name}'):
            run(tool, path, dst)
    assert not dst.exists()


def test_the_source_is_never_written_to(tmp_path, src, dst, faces):
    fill(src, ['happy', 'sad'], faces)
    before = tree(tmp_path, times=True)
    (tmp_path / 'link').symlink_to(src)
    dst.mkdir()
    (dst / 'train').symlink_to(src)
    (tmp_path / 'dst2' / 'train').mkdir(parents=True)
    (tmp_path / 'dst2' / 'train' / 'happiness').symlink_to(src / 'happy')
    for path in (src, src / 'new', tmp_path, tmp_path / 'link', dst,
                 tmp_path / 'dst2'):
        with pytest.raises(SystemExit, match='expected neither to be in the '):
            run('folder', src, path)
    assert tree(tmp_path, times=True) == before
    assert run('folder', src, tmp_path / 'src2') == 0


def test_another_process_is_kept_out(src, dst, faces):
    fill(src, ['happy', 'sad'], faces)
    with files.lock_folder(str(dst)):
        with pytest.raises(SystemExit, match='[Aa]nother process'):
            run('folder', src, dst)


def test_another_source_is_refused(tmp_path, dst, faces):
    for i, name in enumerate(('a', 'b')):
        fill(tmp_path / name, ['happy', 'sad'], faces[i:])
    assert run('folder', tmp_path / 'a', dst) == 0
    before = tree(tmp_path, times=True)
    with pytest.raises(SystemExit, match='dst .*/a, expected .*/b'):
        run('folder', tmp_path / 'b', dst)
    (dst / '.source').unlink()
    with pytest.raises(SystemExit, match='unknown source'):
        run('folder', tmp_path / 'a', dst)
    assert tree(tmp_path, times=True) == before
    # Links to the source are the source.
    assert run('folder', tmp_path / 'a', tmp_path / 'new') == 0
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    assert run('folder', tmp_path / 'link', tmp_path / 'new') == 0


def test_refusals_of_affectnet(tmp_path, src, dst, faces):
    images = affectnet_csv(src)
    path = src / 'Manually_Annotated_file_lists' / 'training.csv'
    lines = path.read_text()
    path.write_text(lines.replace('face_width', 'w'))
    with pytest.raises(SystemExit, match="training.csv .*'face_width'"):
        run('affectnet', src, dst)
    path.write_text(lines)
    copy = images.with_name('Manually_Annotated_Images_Align')
    images.rename(copy)
    assert run('affectnet', src) == 0
    os.symlink(copy, src / 'more')
    with pytest.raises(SystemExit, match='training.csv .*_Align/'):
        run('affectnet', src, dst)
    # The official name is preferred.
    os.remove(src / 'more')
    os.symlink(copy, images)
    assert run('affectnet', src) == 0
    os.remove(images)
    (src / 'train' / 'awe').mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"\['awe'\], expected only"):
        run('affectnet', src, dst)
    fill(tmp_path / 'two' / 'train', ['1', 'Happy'], faces)
    with pytest.raises(SystemExit, match="both of which are 'happiness'"):
        run('affectnet', tmp_path / 'two', dst)
    fill(tmp_path / 'none' / 'train', '89', faces)
    with pytest.raises(SystemExit, match='none has no usable image'):
        run('affectnet', tmp_path / 'none', dst)
    assert not dst.exists()


def test_fer2013_without_usage_is_refused(tmp_path):
    (tmp_path / 'train.csv').write_text('emotion,pixels\n0,1 2\n')
    with pytest.raises(SystemExit, match="'emotion', 'pixels'.*'usage'"):
        run('fer2013', tmp_path)


def test_columns_may_be_in_any_order(src, dst):
    affectnet_csv(src)
    for name in 'training', 'validation':
        path = src / 'Manually_Annotated_file_lists' / f'{name}.csv'
        rows = list(csv.reader(path.read_text().splitlines()))
        rows = [row for row in rows if row[0] != HEADER[0]]
        order = [6, 4, 3, 2, 1, 0]
        with open(path, 'w', newline='', encoding='utf-8-sig') as file:
            csv.writer(file).writerows([row[i] for i in order]
                                       for row in [HEADER, *rows])
    # Paths of Windows
    path.write_text(path.read_text().replace('1/', '1\\'), 'utf-8')
    assert run('affectnet', src, dst) == 0
    face = read(dst / 'train/sadness/2/training2.jpg')
    assert face.shape == (50, 40, 3)
    assert (dst / 'val/happiness/1/validation1.jpg').exists()


def test_numbers_of_affectnet(src, dst):
    affectnet_csv(src, [
        ('./1/a.png', ('10.0', '5.4', '30.6', '2e1'), '3.0'),
        ('1/a.png', (10, 5, 30, 21), '3.5'),
        ('1/a.png', (10, 5, 30, 22), 'nan'),
        ('1/a.png', (10, 5, 30, 23), '0_1'),
        ('1/a.png', (10, 5, 30, 'inf'), 1),
        ('1//a.png', ('NULL', ) * 4, 1),
        ('.c/d.png', (0, 0, 9, 9), 0),
    ], ['1/a.png', '.c/d.png'])  # yapf: disable
    assert run('affectnet', src, dst) == 1
    face = read(dst / 'train/surprise/1/a.png')
    assert np.array_equal(face, draw(1)[5:25, 10:41])
    assert left_out(dst) == [
        *((line(i, '1/a.png'), 'unreadable line') for i in range(3, 7)),
        (line(7, '1//a.png'), 'unreadable line'),
        # Datasets do not read hidden files.
        (line(8, '.c/d.png'), 'path outside of the image folder')
    ]


def test_faces_are_listed_once(src, dst, tmp_path):
    rows = [
        ('1/a.png', (0, 0, 9, 9), 1),
        ('./1/a.png', (0, 0, 9, '9.0'), 1),
        ('1/b.png', (0, 0, 9, 9), 1),
        ('1/b.png', (0, 0, 9, 9), 2),
        ('1/b.png', (0, 0, 8, 9), 2),
        ('1/c.png', (0, 0, 9, 9), 3),
        ('1/c.png', (0, 0, 9, 9), 9),
        ('1/d.png', ('NULL', ) * 4, 8),
        ('1/d.png', ('NULL', ) * 4, 9),
    ]
    images = ['1/a.png', '1/b.png', '1/c.png']
    affectnet_csv(src, rows, images)
    assert run('affectnet', src, dst) == 1
    names = [name for name in tree(dst / 'train') if name.endswith('.png')]
    assert sorted(names) == ['happiness/1/a.png', 'sadness/1/b.png']
    several = 'face with several expressions'
    assert left_out(dst) == [
        (line(3, './1/a.png'), 'same face as in an earlier line'),
        (line(4, '1/b.png'), several),
        (line(5, '1/b.png'), several),
        (line(7, '1/c.png'), several),
        (line(8, '1/c.png'), several),
        (line(9, '1/d.png'), 'expression 8 (none)'),
        (line(10, '1/d.png'), 'expression 9 (uncertain)'),
    ]
    # One that is listed twice is not lost.
    affectnet_csv(tmp_path / 'twice', rows[:2], images)
    assert run('affectnet', tmp_path / 'twice', tmp_path / 'dst2') == 0


def test_a_stray_quote_costs_one_line(src, dst, tmp_path):
    affectnet_csv(src)
    path = src / 'Manually_Annotated_file_lists' / 'validation.csv'
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('1;2', '"1;2')
    path.write_text('\n'.join(lines))
    assert run('affectnet', src, dst) == 1
    assert left_out(dst) == [(line(2, lines[1],
                                   'validation.csv'), 'unreadable line')]
    assert [name for name in AFFECTNET
            if not (dst / 'val' / name).exists()] == ['happiness']
    # The first may have the order of the columns.
    path.write_text('\n'.join(['"' + lines[0], *lines[1:]]))
    with pytest.raises(SystemExit, match='validation.csv'):
        run('affectnet', src, dst)

    (src / 'fer2013.csv').write_text('\n'.join([
        'emotion,pixels,Usage', f'0,"{GREY},PublicTest',
        f'1,{GREY},PublicTest', f'2,{GREY}",PublicTest', f'3,{GREY},PublicTest'
    ]))
    assert run('fer2013', src, tmp_path / 'fer') == 1
    assert set(tree(tmp_path / 'fer')) == {
        'left_out.csv', 'val/disgust/00001.png', 'val/happiness/00003.png'
    }


def test_hidden_files_are_no_data(src, dst, faces):
    fill(src, ['happy', 'sad'], faces)
    hidden = ['.cache', 'happy/.ipynb_checkpoints', 'sad/._a.png']
    for name in (f'{hidden[0]}/b.png', f'{hidden[1]}/0.png', hidden[2]):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_bytes(faces[0])
    assert run('folder', src, dst) == 0
    assert left_out(dst) == [(name, 'hidden') for name in hidden]
    assert len(FERFolder(str(dst), val_split=0)) == 4


def test_links(src, dst, faces, tmp_path):
    fill(src, ['happy', 'sad'], faces)
    fill(tmp_path / 'more', ['a'], faces)
    (src / 'sad' / 'loop').symlink_to('.')
    (src / 'sad' / 'up').symlink_to('..')
    (src / 'sad' / 'itself.png').symlink_to('itself.png')
    (src / 'all').symlink_to('.')
    # A link to elsewhere is followed, but not back from there.
    (src / 'happy' / 'more').symlink_to(tmp_path / 'more')
    (tmp_path / 'more' / 'back').symlink_to(src / 'happy')
    assert run('folder', src, dst) == 1
    loop = 'link to a folder that it is in'
    assert left_out(dst) == [('all', loop), ('happy/more/back', loop),
                             ('sad/itself.png', 'broken link'),
                             ('sad/loop', loop), ('sad/up', loop)]
    assert set(tree(dst / 'train')) == {
        f'{name}{i}.png'
        for name in ('happiness/happy', 'happiness/more/a/a', 'sadness/sad')
        for i in range(2)
    }
    (src / 'glad').symlink_to(tmp_path / 'gone')
    with pytest.raises(SystemExit, match='src/glad is a broken link to .*gon'):
        run('folder', src, dst)
