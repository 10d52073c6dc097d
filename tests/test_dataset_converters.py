# Copyright (c) dan_mm contributors. All rights reserved.
"""The converters of data sets, each source form built of a few pictures."""
import csv
import hashlib
import os
import os.path as osp
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_face
from PIL import Image

from dan_mm.datasets import FER2013, SFEW, AffectNet, FERFolder, conversion

pytestmark = pytest.mark.filterwarnings('ignore:.*official split')

AFFECTNET = AffectNet.METAINFO['classes']
HEADER = ('subDirectory_filePath,face_x,face_y,face_width,face_height,'
          'facial_landmarks,expression,valence,arousal').split(',')


def run(tool, *arguments):
    """Run a converter in this process and get its exit status."""
    path = f'{ROOT}/tools/dataset_converters/{tool}.py'
    return runpy.run_path(path)['main']([str(item) for item in arguments])


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


def tree(root, times=False):
    """The content of all files but that which names the source, and when they
    were written."""
    return {
        str(path.relative_to(root)):
        (hashlib.sha256(path.read_bytes()).hexdigest(),
         path.stat().st_mtime_ns if times else None)
        for path in Path(root).rglob('*')
        if path.is_file() and path.name != '.source'
    }


def left_out(dst):
    """The rows of the list of what is left out, without the details."""
    with open(f'{dst}/left_out.csv', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    assert header == ['path', 'reason', 'detail']
    return [tuple(row[:2]) for row in rows]


def picture(seed, height=60, width=80):
    """A colour picture, uint8 (height, width, 3)."""
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


def affectnet_csv(root,
                  rows,
                  images='Manually_Annotated_compressed/'
                  'Manually_Annotated_Images'):
    """Make AffectNet's csv files and pictures: one face of each expression
    for each split, and more rows (path, box, expression) for training."""
    images = root / images
    lists = root / 'Manually_Annotated_file_lists'
    lists.mkdir(parents=True)
    files = dict(training=list(rows), validation=[])
    for i, (name, lines) in enumerate(files.items()):
        for expression in range(8):
            path = f'{expression % 3}/{name}{expression}.jpg'
            write(images / path, picture(expression + i))
            lines.append((path, (10, 5, 40, 50), expression))
    for name, lines in files.items():
        with open(lists / f'{name}.csv', 'w', newline='') as file:
            writer = csv.writer(file)
            if name == 'training':  # as released
                writer.writerow(HEADER)
            writer.writerows([path, *box, '1;2', expression, .1, .2]
                             for path, box, expression in lines)
    return images


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
        ('1/same.png', (-30, 0, 20, 20), 2),
        ('1/same.png', (5, 5, -4, 20), 2),
        ('3/missing.jpg', (0, 0, 9, 9), 4),
        ('3/cut.jpg', (0, 0, 9, 9), 4),
        ('../../secret.png', (0, 0, 9, 9), 5),
        (f'{tmp_path}/secret.png', (0, 0, 9, 9), 5),
        ('1/same.png', (0, 0, 'x', 9), 5),
        ('1/same.png', (0, 0, 9, 9), 11),
    ])
    big = cv2.resize(picture(9), (640, 480))
    for name in '1/same.png', '2/same.png', '2/partly.png', '2/ö 漢.JPG':
        write(images / name, picture(len(name) + int(name[0])))
    write(images / '2/large.bmp', big)
    write(tmp_path / 'secret.png', picture(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(7)[..., ::-1]).save(
        images / '2/turned.png', exif=exif)
    (images / '3').mkdir()
    content = cv2.imencode('.jpg', picture(0))[1].tobytes()
    (images / '3/cut.jpg').write_bytes(content[:-200])
    before = tree(tmp_path, times=True)

    process = start('affectnet', src, dst)
    output = process.communicate()[0]
    # Pictures are missing and broken, which stops no other.
    assert process.returncode == 1, output
    unchanged = tree(tmp_path, times=True)
    assert {key: unchanged[key] for key in before} == before
    others = {
        f'{split}/{AFFECTNET[i]}/{i % 3}_{name}{i}.jpg'
        for split, name in (('train', 'training'), ('val', 'validation'))
        for i in range(8)
    }
    extra = {
        'train/happiness/1_same.png', 'train/happiness/2_same.png',
        'train/happiness/1_same-2.png', 'train/anger/2_large.png',
        'train/surprise/2_partly.png', 'train/contempt/2_ö 漢.JPG',
        'train/neutral/2_turned.png'
    }
    assert set(tree(dst)) == others | extra | {'left_out.csv'}
    assert set(os.listdir(dst)) == {'train', 'val', 'left_out.csv', '.source'}

    train = dst / 'train'
    one, two = picture(len('1/same.png') + 1), picture(len('2/same.png') + 2)
    for name, expected in (('happiness/1_same.png', one[20:35, 10:40]),
                           ('happiness/1_same-2.png', one[20:35, 40:70]),
                           ('happiness/2_same.png', two[:30, :30]),
                           ('surprise/2_partly.png',
                            picture(len('2/partly.png') + 2)[50:, :20]),
                           ('neutral/2_turned.png', picture(7)[:, :20])):
        assert np.array_equal(read(train / name), expected), name
    face = big[50:450, 100:400]
    shrunk = cv2.resize(face, (224, 299), interpolation=cv2.INTER_AREA)
    assert np.array_equal(read(train / 'anger/2_large.png'), shrunk)
    jpeg, expected = (
        cv2.cvtColor(img, cv2.COLOR_BGR2GRAY).astype(int)
        for img in (read(dst / 'val/fear/1_validation4.jpg'),
                    read(images / '1/validation4.jpg')[5:55, 10:50]))
    assert jpeg.shape == (50, 40) and abs(jpeg - expected).mean() < 2

    line = 'training.csv, line {}: {}'.format
    outside = 'face box outside of the picture'
    assert left_out(dst) == [
        (line(9, '3/none.jpg'), 'expression 8 (none)'),
        (line(10, '3/uncertain.jpg'), 'expression 9 (uncertain)'),
        (line(11, '3/no.jpg'), 'expression 10 (no face)'),
        (line(17,
              '../../secret.png'), 'path out of the folder of the pictures'),
        (line(18, f'{tmp_path}/secret.png'),
         'path out of the folder of the pictures'),
        (line(19, '1/same.png'), 'line that can not be read'),
        (line(20, '1/same.png'), 'unknown expression'),
        (line(12, '1/same.png'), outside),
        (line(13, '1/same.png'), outside),
        (line(14, '1/same.png'), outside),
        (line(15, '3/missing.jpg'), 'missing'),
        (line(16, '3/cut.jpg'), 'broken'),
    ]
    assert '23 pictures, 23 of them new' in output
    assert "3 face box outside of the picture, the first is 'trai" in output
    assert 'AffectNet loads 15 pictures of \'train\'.' in output
    assert 'expected 287651 or 287568' in output
    # Again: nothing is written anew but what was missing.
    once = tree(dst, times=True)
    write(images / '3/missing.jpg', picture(1))
    assert run('affectnet', src, dst) == 1
    again = tree(dst, times=True)
    assert set(again) - set(once) == {'train/fear/3_missing.jpg'}
    del once['left_out.csv']
    assert {key: again[key] for key in once} == once
    assert len(left_out(dst)) == 11


@pytest.mark.slow
def test_a_killed_conversion_goes_on(tmp_path, capsys):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    src.mkdir()
    rng = np.random.default_rng(0)
    with open(src / 'fer2013.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['emotion', 'pixels', 'Usage'])
        texts = [
            ' '.join(map(str, rng.integers(0, 256, 48 * 48))) for _ in range(8)
        ]
        for i in range(3000):
            writer.writerow([i % 7, texts[i % 8], 'Training'])
    process = start('fer2013', src, dst)
    while not (dst / 'train/anger').exists() or not os.listdir(
            dst / 'train/anger'):
        assert process.poll() is None, process.stdout.read()
        time.sleep(.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = tree(dst, times=True)
    done = [name for name in killed if not name.startswith('.')]
    assert 1 <= len(done) < 3000
    for name in done:
        assert read(dst / name).shape == (48, 48), name

    assert run('fer2013', src, dst) == 0
    finished = tree(dst, times=True)
    assert f'3000 pictures, {3000 - len(done)} of them new' in (
        capsys.readouterr().out)
    assert {
        name: finished[name]
        for name in done
    } == {
        name: killed[name]
        for name in done
    }
    assert run('fer2013', src, tmp_path / 'fresh') == 0
    assert tree(dst) == tree(tmp_path / 'fresh')
    pixels = np.array(texts[12 % 8].split(), np.uint8).reshape(48, 48)
    assert np.array_equal(read(dst / 'train/surprise/00012.png'), pixels)


def test_a_broken_result_is_written_again(tmp_path, faces, capsys):
    fill(tmp_path / 'src' / 'train', AFFECTNET, faces)
    assert run('affectnet', tmp_path / 'src', tmp_path / 'dst') == 0
    once = tree(tmp_path / 'dst')
    # As after a power failure.
    capsys.readouterr()
    (tmp_path / 'dst/train/fear/fear0.png').write_bytes(b'')
    (tmp_path / 'dst/train/fear/fear1.png').unlink()
    (tmp_path / 'dst/.unfinished').mkdir()
    (tmp_path / 'dst/.unfinished/1').write_bytes(b'x')
    assert run('affectnet', tmp_path / 'src', tmp_path / 'dst') == 0
    assert tree(tmp_path / 'dst') == once
    # Where the source is broken by now, too, the result is not trusted.
    for path in 'src/train/fear/fear0.png', 'dst/train/fear/fear0.png':
        (tmp_path / path).write_bytes(b'')
    assert run('affectnet', tmp_path / 'src', tmp_path / 'dst') == 1
    assert "make, the first is 'train/fear/fear0.png'" in (
        capsys.readouterr().out)
    assert len(AffectNet(str(tmp_path / 'dst'))) == 16


def test_affectnet_folders(tmp_path, faces, capsys):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    fill(src / 'train', '0123456789', faces)
    fill(src / 'valid', [*AFFECTNET[:-1], 'Contempt'], faces, suffix='.PNG')
    (src / 'train/3/sub').mkdir()
    (src / 'train/3/sub/30.png').write_bytes(faces[0])
    (src / 'train/3/notes.txt').touch()
    (src / 'train/stray.png').write_bytes(faces[0])
    before = tree(src, times=True)
    assert run('affectnet', src, dst) == 0
    assert tree(src, times=True) == before
    train = AffectNet(str(dst))
    assert np.bincount(
        train.get_gt_labels()).tolist() == [2, 2, 2, 3, 2, 2, 2, 2]
    found = tree(dst)
    assert found['train/surprise/sub_30.png'] == before_hash(faces[0])
    assert found['train/sadness/20.png'] == before_hash(faces[4])
    assert found['val/contempt/Contempt1.PNG'] == before_hash(faces[15])
    assert left_out(dst) == [
        *[(f'train/{i}/{i}{j}.png', f'expression {i} ({name})')
          for i, name in ((8, 'none'), (9, 'uncertain')) for j in range(2)],
        ('train/stray.png', 'in no folder of a class'),
        ('train/3/notes.txt', 'no image by its extension'),
    ]
    output = capsys.readouterr().out
    assert "2 expression 8 (none), the first is 'train/8/80.png'" in output
    assert 'surprise' in output and '!= 14,090' in output

    # Without contempt it is the one of 7 classes.
    fill(tmp_path / 'seven' / 'train', '0123456', faces)
    assert run('affectnet', tmp_path / 'seven', tmp_path / 'dst7') == 0
    output = capsys.readouterr().out
    assert 'expected 283901' in output and 'contempt' not in output


def before_hash(content):
    return hashlib.sha256(content).hexdigest(), None


def test_affectnet_label_files(tmp_path, faces):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    labels = {f'p{i}': np.array(str(i)) for i in range(8)}
    labels.update(
        number=np.array(3),
        one=np.array([4]),
        bytes=np.array(b'5'),
        uint=np.array([6], np.uint8),
        dropped=np.array('9'),
        eleven=np.array(11),
        float=np.array(1.),
        decimal=np.array('2.0'),
        half=np.array(1.5),
        nan=np.array(np.nan),
        underscore=np.array('0_1'),
        several=np.array([1, 2]),
        word=np.array('happy'),
        object=np.array([{}], object),
        gone=np.array(1))
    for split in 'train_set', 'val_set':
        (src / split / 'annotations').mkdir(parents=True)
        (src / split / 'images').mkdir()
        for i, (name, label) in enumerate(labels.items()):
            path = src / split / 'annotations' / f'{name}_exp.npy'
            np.save(path, label, allow_pickle=True)
            np.save(src / split / 'annotations' / f'{name}_val.npy', .5)
            if name != 'gone':
                (src / split / 'images' / f'{name}.jpg').write_bytes(
                    cv2.imencode('.jpg', picture(i))[1].tobytes())
        (src / split / 'images' / 'nolabel.jpg').write_bytes(faces[0])
        (src / split / 'annotations' / 'cut_exp.npy').write_bytes(b'\x93NUMPY')
        (src / split / 'images' / 'cut.jpg').write_bytes(faces[0])
        for name, header in (('huge', "{'descr': '<i8', 'fortran_order': "
                              "False, 'shape': (%d,), }" % 10**12),
                             ('header', "{'descr': (")):
            (src / split / 'images' / f'{name}.jpg').write_bytes(faces[0])
            (src / split / 'annotations' /
             f'{name}_exp.npy').write_bytes(b'\x93NUMPY\x01\x00v\x00' +
                                            header.ljust(117).encode() +
                                            b'\n' + bytes(8))
    before = tree(src, times=True)
    assert run('affectnet', src, dst) == 1
    assert tree(src, times=True) == before
    expected = {f'{AFFECTNET[i]}/p{i}.jpg'
                for i in range(8)} | {
                    'surprise/number.jpg', 'fear/one.jpg', 'disgust/bytes.jpg',
                    'anger/uint.jpg', 'happiness/float.jpg',
                    'sadness/decimal.jpg'
                }
    assert set(tree(dst)) == {
        f'{split}/{name}'
        for split in ('train', 'val')
        for name in expected
    } | {'left_out.csv'}
    rows = dict(left_out(dst))
    unreadable = 'label that can not be read'
    assert rows == {
        f'{split}_set/{name}': reason
        for split in ('train', 'val')
        for name, reason in {
            'annotations/gone_exp.npy': 'missing',
            'images/dropped.jpg': 'expression 9 (uncertain)',
            'images/eleven.jpg': 'unknown expression',
            'images/half.jpg': unreadable,
            'images/nan.jpg': unreadable,
            'images/underscore.jpg': unreadable,
            'images/several.jpg': unreadable,
            'images/word.jpg': unreadable,
            'images/object.jpg': unreadable,
            'images/nolabel.jpg': unreadable,
            'images/cut.jpg': unreadable,
            'images/huge.jpg': unreadable,
            'images/header.jpg': unreadable,
        }.items()
    }


def test_sfew(tmp_path, faces, capsys):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    emotions = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad',
                'Surprise')
    fill(src / 'Train' / 'Train_Aligned_Faces', emotions, faces)
    fill(src / 'Val_Aligned_Faces_new', emotions, faces, number=1)
    (src / 'Test').mkdir()
    (src / 'Test' / 'x.png').write_bytes(faces[0])
    before = tree(src, times=True)
    assert run('sfew', src, dst) == 0
    assert tree(src, times=True) == before
    assert SFEW(str(dst)).get_gt_labels().tolist() == sum(
        ([i] * 2 for i in range(7)), [])
    assert tree(dst)['val/sadness/Sad0.png'] == before_hash(faces[5])
    assert left_out(dst) == [('Test/x.png', 'in no folder of a class')]
    output = capsys.readouterr().out
    assert '!= 958' in output and '!= 436' in output and '372' not in output


def test_fer2013_csv(tmp_path, faces, monkeypatch, capsys):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    (src / 'fer2013').mkdir(parents=True)
    pictures = [
        cv2.imdecode(np.frombuffer(face, np.uint8), cv2.IMREAD_GRAYSCALE)
        for face in faces[:16]
    ]
    path = src / 'fer2013' / 'icml_face_data.csv'
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['emotion', ' Usage', ' pixels'])
        for i, img in enumerate(pictures):
            usage = ('Training', 'PublicTest', 'PrivateTest')[max(0, i - 13)]
            writer.writerow(
                [i % 7, usage, ' '.join(map(str,
                                            img.ravel().tolist()))])
        writer.writerow([1, 'Training', '1 2 3'])
        writer.writerow([1, 'Training', ' '.join(['256'] * 48 * 48)])
        writer.writerow([7, 'Training', ' '.join(['0'] * 48 * 48)])
        writer.writerow([1, 'Test', ' '.join(['0'] * 48 * 48)])
        writer.writerow([1])
    assert run('fer2013', src, dst) == 1
    classes = FER2013.METAINFO['classes']
    for i, img in enumerate(pictures):
        split = ('train', 'val', 'test')[max(0, i - 13)]
        name = f'{split}/{classes[i % 7]}/{i:05d}.png'
        assert np.array_equal(read(dst / name), img)
    assert left_out(dst) == [(f'icml_face_data.csv, picture {i}',
                              'line that can not be read')
                             for i in range(16, 21)]
    assert [
        len(FER2013(str(dst), split)) for split in ('train', 'val', 'test')
    ] == [14, 1, 1]
    # The file itself is a source, too, and as many as there should be.
    capsys.readouterr()
    monkeypatch.setattr(FER2013, 'OFFICIAL_COUNTS',
                        dict(train=14, val=1, test=2))
    monkeypatch.setattr(FER2013, 'CLASS_COUNTS', dict(train=[(2, ) * 7]))
    assert run('fer2013', path) == 1
    output = capsys.readouterr().out
    assert "split 'train'" not in output and "split 'val'" not in output
    assert "found 1 images in the official split 'test'" in output
    assert output.count('!=') == 1 and '!= 2' in output


def test_fer2013_folders(tmp_path, faces):
    classes = ('angry', 'disgust', 'fear', 'happy', 'sad', 'surprise',
               'neutral')
    fill(tmp_path / 'src' / 'train', classes, faces)
    fill(tmp_path / 'src' / 'test', '0123456', faces, number=1)
    assert run('fer2013', tmp_path / 'src', tmp_path / 'dst') == 0
    test = FER2013(str(tmp_path / 'dst'), 'test')
    assert test.get_gt_labels().tolist() == list(range(7))
    assert (tmp_path / 'dst/test/happiness/30.png').read_bytes() == faces[3]


def test_any_folder(tmp_path, faces, capsys):
    fill(tmp_path / 'flat', ['Happy', 'Glad', 'sad'], faces)
    assert run('folder', tmp_path / 'flat', tmp_path / 'a') == 0
    assert set(tree(tmp_path / 'a')) == {
        'left_out.csv',
        *(f'train/{name}'
          for name in ('happiness/Happy0.png', 'happiness/Happy1.png',
                       'Glad/Glad0.png', 'Glad/Glad1.png', 'sadness/sad0.png',
                       'sadness/sad1.png'))
    }
    fill(tmp_path / 'parted' / 'Train', ['Happy', 'Glad'], faces)
    fill(tmp_path / 'parted' / 'Validation', ['Glad'], faces)
    assert run('folder', tmp_path / 'parted', tmp_path / 'b') == 0
    assert "FERFolder loads 2 pictures of 'val'." in capsys.readouterr().out
    val = FERFolder(str(tmp_path / 'b'), 'val')
    assert val.metainfo['classes'] == ('Glad', 'happiness')
    assert val.get_gt_labels().tolist() == [0, 0]


def test_broken_pictures_stop_no_other(tmp_path, faces, capsys):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    fill(src, ['happy', 'sad'], faces, number=3)
    (src / 'happy/happy1.png').write_bytes(faces[1][:-200])
    (src / 'sad/sad0.png').write_bytes(b'')
    (src / 'sad/sad1.png').unlink()
    (src / 'sad/sad1.png').symlink_to(tmp_path / 'gone')
    (src / 'sad/sad3.png').mkdir()
    assert run('folder', src, dst) == 1
    assert set(tree(dst)) == {
        'left_out.csv', 'train/happiness/happy0.png',
        'train/happiness/happy2.png', 'train/sadness/sad2.png'
    }
    assert left_out(dst) == [('sad/sad1.png', 'broken link'),
                             ('happy/happy1.png', 'broken'),
                             ('sad/sad0.png', 'broken')]
    assert "2 broken, the first is 'happy/happy1.png' (The image" in (
        capsys.readouterr().out)


def test_counting_writes_nothing(tmp_path, faces, capsys):
    fill(tmp_path / 'src' / 'train', '01234567', faces)
    before = tree(tmp_path, times=True)
    assert run('affectnet', tmp_path / 'src') == 0
    assert tree(tmp_path, times=True) == before
    output = capsys.readouterr().out
    assert '!= 134,415' in output and '!= 287,651' in output
    assert 'Warning: AffectNet found 16 images in the offic' in output


def test_files_of_another_conversion_are_named(tmp_path, faces, capsys):
    fill(tmp_path / 'src', ['happy', 'sad'], faces)
    assert run('folder', tmp_path / 'src', tmp_path / 'dst') == 0
    (tmp_path / 'dst/train/sadness/old.png').write_bytes(faces[0])
    assert run('folder', tmp_path / 'src', tmp_path / 'dst') == 0
    assert (tmp_path / 'dst/train/sadness/old.png').exists()
    assert 'has 1 files that this conversion does not make, the first is ' in (
        capsys.readouterr().out)


def test_a_full_disk_is_said(tmp_path, faces, monkeypatch):
    fill(tmp_path / 'src', ['happy', 'sad'], faces)
    replace = os.replace

    def full(source, target):
        if target.endswith('sad1.png'):
            raise OSError(28, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(conversion.os, 'replace', full)
    with pytest.raises(
            SystemExit, match='Can not write to .*No space left.*run this ag'):
        run('folder', tmp_path / 'src', tmp_path / 'dst')
    found = tree(tmp_path / 'dst')
    assert len(
        found) == 3 and not [name for name in found if name.startswith('.')]
    monkeypatch.undo()
    assert run('folder', tmp_path / 'src', tmp_path / 'dst') == 0
    assert len(tree(tmp_path / 'dst')) == 5


@pytest.mark.parametrize('tool, form', [
    ('affectnet', 'train/<0 to 7>.*annotations/.*_exp.npy.*training.csv'),
    ('sfew', 'Train/<Emotion>.*Train_Aligned_Faces'),
    ('fer2013', 'fer2013.csv.*icml_face_data.csv.*train/<emotion>'),
    ('folder', 'a folder of pictures for each class'),
])
def test_unknown_forms_are_refused(tmp_path, tool, form):
    (tmp_path / 'src' / 'stuff').mkdir(parents=True)
    with pytest.raises(
            SystemExit, match=rf"Found \['stuff'\] in .*expected .*{form}"):
        run(tool, tmp_path / 'src', tmp_path / 'dst')
    with pytest.raises(SystemExit, match='Found no .*nowhere, expected a dat'):
        run(tool, tmp_path / 'nowhere', tmp_path / 'dst')
    assert not (tmp_path / 'dst').exists()


def test_the_source_is_never_written_to(tmp_path, faces):
    src = tmp_path / 'src'
    fill(src, ['happy', 'sad'], faces)
    before = tree(tmp_path, times=True)
    (tmp_path / 'link').symlink_to(src)
    (tmp_path / 'dst').mkdir()
    (tmp_path / 'dst' / 'train').symlink_to(src)
    (tmp_path / 'dst2' / 'train').mkdir(parents=True)
    (tmp_path / 'dst2' / 'train' / 'happiness').symlink_to(src / 'happy')
    for dst in (src, src / 'new', tmp_path, tmp_path / 'link',
                tmp_path / 'dst', tmp_path / 'dst2'):
        with pytest.raises(SystemExit, match='expected neither to be in the '):
            run('folder', src, dst)
    assert tree(tmp_path, times=True) == before
    assert run('folder', src, tmp_path / 'src2') == 0


def test_refusals_of_affectnet(tmp_path, faces):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    images = affectnet_csv(src, [])
    path = src / 'Manually_Annotated_file_lists' / 'training.csv'
    lines = path.read_text()
    path.write_text(lines.replace('face_width', 'w'))
    with pytest.raises(SystemExit, match="'face_width'. are not there"):
        run('affectnet', src, dst)
    path.write_text(lines)
    copy = images.with_name('Manually_Annotated_Images_Align')
    images.rename(copy)
    assert run('affectnet', src) == 0
    os.symlink(copy, src / 'more')
    with pytest.raises(SystemExit, match='expected one. Put `Manually_Ann'):
        run('affectnet', src, dst)
    # The official name is preferred.
    os.remove(src / 'more')
    os.symlink(copy, images)
    assert run('affectnet', src) == 0
    os.remove(images)
    (src / 'train' / 'awe').mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"folders \['awe'\], expected only"):
        run('affectnet', src, dst)
    fill(tmp_path / 'two' / 'train', ['1', 'Happy'], faces)
    with pytest.raises(SystemExit, match="both of which are 'happiness'"):
        run('affectnet', tmp_path / 'two', dst)
    fill(tmp_path / 'none' / 'train', '89', faces)
    with pytest.raises(SystemExit, match='no picture for this data set'):
        run('affectnet', tmp_path / 'none', dst)
    assert not dst.exists()


def test_fer2013_without_usage_is_refused(tmp_path):
    (tmp_path / 'train.csv').write_text('emotion,pixels\n0,1 2\n')
    with pytest.raises(
            SystemExit,
            match=r"columns .'emotion', 'pixels'..*'usage'. is not there.*get "
            '`icml_face_data.csv`'):
        run('fer2013', tmp_path)


def test_columns_may_be_in_any_order(tmp_path):
    images = affectnet_csv(tmp_path / 'src', [])
    for name in 'training', 'validation':
        path = tmp_path / 'src/Manually_Annotated_file_lists' / f'{name}.csv'
        rows = list(csv.reader(path.read_text().splitlines()))
        rows = [row for row in rows if row[0] != HEADER[0]]
        order = [6, 4, 3, 2, 1, 0]
        with open(path, 'w', newline='', encoding='utf-8-sig') as file:
            csv.writer(file).writerows([row[i] for i in order]
                                       for row in [HEADER, *rows])
    # Paths of Windows.
    path.write_text(path.read_text().replace('1/', '1\\'), 'utf-8')
    assert run('affectnet', tmp_path / 'src', tmp_path / 'dst') == 0
    face = read(tmp_path / 'dst/train/sadness/2_training2.jpg')
    assert face.shape == (50, 40, 3) and osp.isdir(images)
    assert (tmp_path / 'dst/val/happiness/1_validation1.jpg').exists()


def test_numbers_may_have_a_decimal_point(tmp_path):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    images = affectnet_csv(src, [
        ('1/a.png', ('10.0', '5.4', '30.6', '2e1'), '3.0'),
        ('1/a.png', (10, 5, 30, 21), '3.5'),
        ('1/a.png', (10, 5, 30, 22), 'nan'),
        ('1/a.png', (10, 5, 30, 23), '0_1'),
        ('1/a.png', (10, 5, 30, 'inf'), 1),
    ])
    write(images / '1/a.png', picture(1))
    assert run('affectnet', src, dst) == 1
    face = read(dst / 'train/surprise/1_a.png')
    assert np.array_equal(face, picture(1)[5:25, 10:41])
    unreadable = [(f'training.csv, line {i}: 1/a.png',
                   'line that can not be read') for i in range(3, 7)]
    assert left_out(dst) == unreadable

    pixels = ' '.join(['7'] * 48 * 48)
    (src / 'fer2013.csv').write_text('emotion,pixels,Usage\n'
                                     f'3.0,{pixels},PublicTest\n')
    assert run('fer2013', src, tmp_path / 'fer') == 0
    assert (tmp_path / 'fer/val/happiness/00000.png').exists()


def test_no_result_is_hidden(tmp_path):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    images = affectnet_csv(src, [('./1/a.png', (0, 0, 9, 9), 0),
                                 ('1//b.png', (0, 0, 9, 9), 0),
                                 ('.c/d.png', (0, 0, 9, 9), 0)])
    for name in '1/a.png', '1/b.png', '.c/d.png':
        write(images / name, picture(1))
    assert run('affectnet', src, dst) == 0
    assert set(os.listdir(dst / 'train/neutral')) == {
        '1_a.png', '1_b.png', '_.c_d.png', '0_training0.jpg'
    }


def test_hidden_pictures_are_no_data(tmp_path, faces):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    fill(src, ['happy', 'sad'], faces)
    for name in ('happy/.ipynb_checkpoints/0-checkpoint.png', 'sad/._a.png',
                 '.cache/b.png'):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_bytes(faces[0])
    assert run('folder', src, dst) == 0
    assert left_out(dst) == [(name, 'hidden')
                             for name in ('.cache', 'happy/.ipynb_checkpoints',
                                          'sad/._a.png')]
    assert len(FERFolder(str(dst), val_split=0)) == 4


@pytest.mark.parametrize('name', ['sad', 'train'])
def test_a_folder_that_is_a_link_to_nowhere_is_refused(tmp_path, faces, name):
    src = tmp_path / 'src'
    fill(src, ['happy', 'glad'], faces)
    (src / name).symlink_to(tmp_path / 'gone')
    with pytest.raises(
            SystemExit, match=f'src/{name} is a broken link to .*gone'):
        run('folder', src, tmp_path / 'dst')


def test_links_are_not_followed_in_circles(tmp_path, faces):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
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
    assert sorted(os.listdir(dst / 'train')) == ['happiness', 'sadness']
    assert sorted(os.listdir(dst / 'train/happiness')) == [
        'happy0.png', 'happy1.png', 'more_a_a0.png', 'more_a_a1.png'
    ]
    assert len(os.listdir(dst / 'train/sadness')) == 2


def test_a_quote_too_many_takes_no_other_line(tmp_path):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    affectnet_csv(src, [])
    path = src / 'Manually_Annotated_file_lists' / 'validation.csv'
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('1;2', '"1;2')
    path.write_text('\n'.join(lines))
    assert run('affectnet', src, dst) == 1
    assert left_out(dst) == [(f'validation.csv, line 2: {lines[1]}',
                              'line that can not be read')]
    assert [name for name in AFFECTNET
            if not (dst / 'val' / name).exists()] == ['happiness']
    assert (dst / 'val/sadness/2_validation2.jpg').exists()
    path.write_text('\n'.join(['"' + lines[0], *lines[1:]]))
    with pytest.raises(SystemExit, match='validation.csv has the line .*"0/'):
        run('affectnet', src, dst)

    pixels = ' '.join(['7'] * 48 * 48)
    (src / 'fer2013.csv').write_text('\n'.join([
        'emotion,pixels,Usage', f'0,"{pixels},PublicTest',
        f'1,{pixels},PublicTest', f'2,{pixels}",PublicTest',
        f'3,{pixels},PublicTest'
    ]))
    assert run('fer2013', src, tmp_path / 'fer') == 1
    assert set(tree(tmp_path / 'fer')) == {
        'left_out.csv', 'val/disgust/00001.png', 'val/happiness/00003.png'
    }


def test_faces_are_listed_once(tmp_path):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    images = affectnet_csv(src, [
        ('1/a.png', (0, 0, 9, 9), 1),
        ('./1/a.png', (0, 0, 9, '9.0'), 1),
        ('1/b.png', (0, 0, 9, 9), 1),
        ('1/b.png', (0, 0, 9, 9), 2),
        ('1/b.png', (0, 0, 8, 9), 2),
        ('1/c.png', (0, 0, 9, 9), 3),
        ('1/c.png', (0, 0, 9, 9), 9),
    ])
    for name in '1/a.png', '1/b.png', '1/c.png':
        write(images / name, picture(1))
    assert run('affectnet', src, dst) == 1
    names = [name for name in tree(dst / 'train') if name.endswith('.png')]
    assert sorted(names) == ['happiness/1_a.png', 'sadness/1_b.png']
    line = 'training.csv, line {}: {}'.format
    several = 'face with several expressions'
    assert left_out(dst) == [
        (line(3, './1/a.png'), 'same face as in a line before'),
        (line(4, '1/b.png'), several),
        (line(5, '1/b.png'), several),
        (line(7, '1/c.png'), several),
        (line(8, '1/c.png'), several),
    ]
    # One that is listed twice is not lost.
    lists = src / 'Manually_Annotated_file_lists' / 'training.csv'
    rows = lists.read_text().splitlines(True)
    lists.write_text(''.join(rows[:3] + rows[8:]))
    assert run('affectnet', src, tmp_path / 'dst2') == 0


def test_results_of_another_source_are_refused(tmp_path, faces):
    for i, name in enumerate(('a', 'b')):
        fill(tmp_path / name, ['happy', 'sad'], faces[i:])
    dst = tmp_path / 'dst'
    assert run('folder', tmp_path / 'a', dst) == 0
    before = tree(tmp_path, times=True)
    with pytest.raises(
            SystemExit,
            match='dst has pictures of .*/a, expected none but those of .*/b. '
            'Give an empty folder, or remove this one'):
        run('folder', tmp_path / 'b', dst)
    (dst / '.source').unlink()
    with pytest.raises(SystemExit, match='pictures of an unknown source'):
        run('folder', tmp_path / 'a', dst)
    assert tree(tmp_path, times=True) == before
    # Without pictures, a folder may have anything.
    (tmp_path / 'new' / 'train').mkdir(parents=True)
    (tmp_path / 'new' / '.source').write_text('/gone')
    assert run('folder', tmp_path / 'a', tmp_path / 'new') == 0
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    assert run('folder', tmp_path / 'link', tmp_path / 'new') == 0


def test_long_names_are_cut(tmp_path, faces):
    src, dst = tmp_path / 'src', tmp_path / 'dst'
    fill(src, ['happy', 'sad'], faces)
    folder = src / 'sad' / ('ä' * 120) / ('b' * 20)
    folder.mkdir(parents=True)
    for name in 'c.PNG', 'd.PNG':
        (folder / name).write_bytes(faces[0])
    assert run('folder', src, dst) == 0
    names = sorted(os.listdir(dst / 'train/sadness'))
    assert names[:2] == ['sad0.png', 'sad1.png'] and len(names) == 4
    for name in names[2:]:
        assert name.startswith('ä' * 120) and name.endswith('.PNG')
        assert 250 < len(os.fsencode(name)) <= 255
    before = tree(dst, times=True)
    del before['left_out.csv']
    assert run('folder', src, dst) == 0
    again = tree(dst, times=True)
    assert {key: again[key] for key in before} == before
    plan = conversion.Plan('')
    for _ in range(2):
        plan.add('train', 'sad', 'a' * 300 + '.jpg', '', bytes)
    one, two = [item.name for item in plan.items]
    assert len(one) == len(two) == 255 and two.endswith('-2.jpg')
