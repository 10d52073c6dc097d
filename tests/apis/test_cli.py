# Copyright (c) dan_mm contributors. All rights reserved.
"""The command dan-mm."""
import csv
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import pytest
import torch
from conftest import ROOT, is_crop

import dan_mm
from dan_mm import apis, cli


@pytest.fixture
def predict(work_dir, detector, monkeypatch, capfd):
    """Run `dan-mm predict` with a stub of the detector."""
    monkeypatch.setattr(apis, 'FaceDetector', lambda *_, **__: detector)

    def run(*arguments):
        code = cli.main([
            'predict', *map(str, arguments), '--model',
            str(work_dir), '--device', 'cpu'
        ])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def tree(tmp_path, image_of, write_video):
    """Images, a video and what is neither."""
    src = tmp_path / 'src'
    (src / 'sub').mkdir(parents=True)
    for name, number in (('a.png', 1), ('sub/grüße.png', 2), ('none.png', 0)):
        cv2.imwrite(str(src / name), image_of(number))
    frames = [image_of(1, i) for i in range(5)]
    for frame in frames:
        frame[:8, :8, 0] = 1
    write_video(src / 'film.avi', frames, 'HFYU', rate=10)
    (src / 'notes.txt').write_text('x')
    return src


def test_all_outputs(predict, tree, tmp_path):
    out, lines, table = (tmp_path / name for name in ('out', 'l', 't.csv'))
    code, output, error = predict(tree, '--out', out, '--json', lines, '--csv',
                                  table)
    assert code == 0 and output == '', error
    assert 'extensions are skipped: notes.txt.' in error
    assert '3 images, 5 frames, 8 faces: ' in error
    found = sorted(
        os.path.relpath(path, out) for path in out.rglob('*')
        if path.is_file())
    assert found == ['a.png', 'film.mp4', 'none.png', 'sub/grüße.png']
    video = cv2.VideoCapture(str(out / 'film.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.get(cv2.CAP_PROP_FPS) == 10
    source = cv2.imread(str(tree / 'none.png'))
    assert (cv2.imread(str(out / 'none.png')) == source).all()
    source = cv2.imread(str(tree / 'a.png'))
    assert (cv2.imread(str(out / 'a.png')) != source).any()

    results = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [len(item['faces']) for item in results] == [1] * 6 + [0, 2]
    assert [item.get('frame')
            for item in results] == [None, 0, 1, 2, 3, 4, None, None]
    with open(table, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    for row in rows:
        if row['expression']:
            scores = [float(row[name]) for name in list(row)[10:18]]
            assert sum(scores) == pytest.approx(1, abs=1e-3)
            assert float(row[row['expression']]) == max(scores)
    assert [row['path'][-8:] for row in rows
            if not row['expression']] == ['none.png']
    assert rows[-1]['path'] == str(tree / 'sub' / 'grüße.png')


def test_the_output_is_for_the_results(predict, tree):
    code, output, _ = predict(tree, '--smoothing', 0.5)
    lines = output.splitlines()
    assert code == 0 and len(lines) == 9
    assert lines[0].startswith(f'{tree}/a.png: face 1: ')
    assert lines[3].startswith(f'{tree}/film.avi, frame 2 (0.20 s): face 1: ')
    assert f'{tree}/none.png: no face' in lines
    code, output, _ = predict(tree / 'a.png', '--json', '-', '--embeddings')
    [result] = map(json.loads, output.splitlines())
    assert len(result['faces'][0]['embedding']) == 64


def test_one_bad_file(predict, tree):
    (tree / 'b.png').write_bytes(b'x')
    (tree / 'c.mp4').write_bytes(b'x')
    code, output, error = predict(tree)
    assert code == 1
    assert len(output.splitlines()) == 9
    assert 'b.png cannot be decoded' in error
    assert 'c.mp4 cannot be opened' in error
    # Missing ones, too
    code, output, error = predict(tree / 'a.png', tree / 'missing.png')
    assert code == 1 and len(output.splitlines()) == 1
    assert f'Found no image {tree}/missing.png' in error


def test_one_bad_face(predict, tree, tmp_path, detector, monkeypatch):
    """The other one of the image is printed, and written."""
    find = type(detector).__call__

    def spoil(self, images):
        found = find(self, images)
        for faces in found:
            if len(faces) == 2:
                faces[0].keypoints[:] = 7
        return found

    monkeypatch.setattr(type(detector), '__call__', spoil)
    code, output, error = predict(tree / 'sub', '--csv', tmp_path / 'table')
    assert code == 1 and 'cannot be aligned' in error
    assert '1 image, 1 face: ' in error
    with open(tmp_path / 'table', newline='', encoding='utf-8') as file:
        [row] = csv.DictReader(file)
    assert row['left'] == '60.00' and 'cannot be aligned' in row['error']
    code, output, _ = predict(tree / 'sub')
    assert code == 1 and len(output.splitlines()) == 1


def test_implausible_landmarks(predict, tree, tmp_path, detector, monkeypatch):
    """Every output says so."""
    find = type(detector).__call__

    def shrink(self, images):
        if is_crop(images[0]):
            return [[] for _ in images]  # nor in another orientation
        found = find(self, images)
        for face in (face for faces in found for face in faces):
            face.keypoints[:] = face.keypoints[2] + 0.3 * (
                face.keypoints - face.keypoints[2])
        return found

    assert '(implausible' not in predict(tree / 'a.png')[1]
    monkeypatch.setattr(type(detector), '__call__', shrink)
    lines, table = tmp_path / 'lines', tmp_path / 'table'
    code, output, _ = predict(tree / 'a.png')
    assert code == 0 and '(implausible landmarks' in output
    predict(tree / 'a.png', '--csv', table, '--json', lines)
    with open(table, newline='', encoding='utf-8') as file:
        [row] = csv.DictReader(file)
    assert row['landmarks_plausible'] == 'false' and row['error'] == ''
    [face] = json.loads(lines.read_text())['faces']
    assert face['landmarks_plausible'] is False


def test_aligned(predict, tree, detector):
    code, output, _ = predict(tree / 'a.png', '--aligned')
    assert code == 0 and detector.batches == []
    assert output.startswith(f'{tree}/a.png: face 1: ')


def test_a_name_that_is_no_text(predict, tree, tmp_path):
    raw = os.fsencode(tree) + b'/\xff.png'
    Path(os.fsdecode(raw)).write_bytes((tree / 'a.png').read_bytes())
    lines, table = tmp_path / 'lines', tmp_path / 'table'
    code, output, _ = predict(tree, '--json', lines, '--csv', table, '--out',
                              tmp_path / 'out')
    assert code == 0
    last = json.loads(lines.read_text().splitlines()[-1])
    assert os.fsencode(last['path']) == raw
    assert raw in table.read_bytes()
    assert os.path.exists(os.fsencode(tmp_path) + b'/out/\xff.png')
    assert predict(tree)[0] == 0


def test_two_files_of_one_name(predict, tree, tmp_path, image_of):
    """Neither overwrites the other, nor the source."""
    other = tmp_path / 'a.png'
    cv2.imwrite(str(other), image_of(0))
    before = other.read_bytes()
    code, *_ = predict(tree / 'a.png', other, '--out', tmp_path / 'out')
    assert code == 0
    assert sorted(os.listdir(tmp_path / 'out')) == ['a-2.png', 'a.png']
    assert other.read_bytes() == before


def test_refusals(predict, tree, tmp_path, image_of):
    other = tmp_path / 'a.png'
    cv2.imwrite(str(other), image_of(2))
    before = (tree / 'a.png').read_bytes()
    for arguments, sentence in (
        ([tmp_path / 'nowhere'], 'Found no file or folder'),
        ([tree, '--out', tree / 'out'], 'leads to the input'),
        ([other, tree / 'a.png', '--out', tree], 'leads to the input'),
        ([tree, '--smoothing', 3], 'expected the weight of the past'),
        ([tree, '--batch-size', 0], 'batch_size=0'),
        (['77'], 'Found no camera 77'),
    ):
        code, output, error = predict(*arguments)
        assert code == (1 if arguments == ['77'] else 2), arguments
        assert sentence in error and 'Traceback' not in error
        assert output == ''
    assert not (tree / 'out').exists()
    assert (tree / 'a.png').read_bytes() == before


def test_long_names_lose_no_other(predict, tmp_path, image_of):
    """A name that fits for the input alone"""
    src = tmp_path / 'src'
    src.mkdir()
    for name in f'{"a" * 250}.bmp', 'b.png':
        cv2.imwrite(str(tmp_path / 'x.png'), image_of(1))
        os.replace(tmp_path / 'x.png', src / name)
    os.rename(src / f'{"a" * 250}.bmp', src / f'{"a" * 251}.bmp')
    code, _, error = predict(src, src, '--out', tmp_path / 'out')
    assert code == 1 and 'File name too long' in error
    assert sorted(map(len, os.listdir(tmp_path / 'out'))) == [5, 7, 255]


def test_a_video_twice(predict, tree, tmp_path):
    film = tree / 'film.avi'
    assert predict(film, film, '--out', tmp_path / 'out')[0] == 0
    for name in 'film.mp4', 'film-2.mp4':
        video = cv2.VideoCapture(str(tmp_path / 'out' / name))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert len(os.listdir(tmp_path / 'out')) == 2


def test_what_is_printed_is_harmless(predict, tree):
    os.rename(tree / 'a.png', tree / 'x: face 1: joy\n\x1b[2J.png')
    code, output, _ = predict(tree)
    assert code == 0 and len(output.splitlines()) == 9
    assert '\x1b' not in output
    assert '/x: face 1: joy\\n\\x1b[2J.png: face 1: ' in output


def test_a_process_prints_nothing_but_results(work_dir, tree):
    command = [
        sys.executable, '-m', 'dan_mm', 'predict', tree / 'a.png', '--aligned',
        '--model', work_dir, '--device', 'cpu', '--json', '-'
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert process.returncode == 0, process.stderr
    expression = json.loads(process.stdout)['faces'][0]['expression']
    assert process.stderr.decode() == f'1 image, 1 face: {expression} 1\n'


def test_without_an_output(predict, tree, monkeypatch):
    """As `>&-` does."""
    monkeypatch.setattr(sys, 'stdout', None)
    assert predict(tree / 'a.png')[0] == 0


def test_the_shipped_model(astronaut, face_detector, capsys):
    """With no model named, the answer alone on the output."""
    assert cli.main(['predict', astronaut]) == 0
    output, error = capsys.readouterr()
    assert re.fullmatch(r'\S+astronaut.png: face 1: happiness \d+%, .*\n',
                        output)
    assert error.splitlines()[-1] == '1 image, 1 face: happiness 1'


def test_a_full_disk_for_images(predict, tree, tmp_path, monkeypatch):
    """What was written stays, and nothing is half there."""
    out = tmp_path / 'out'
    lines = tmp_path / 'lines'
    replace = os.replace

    def full(source, target):
        if str(target).endswith('none.png'):
            raise OSError(28, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', full)
    code, _, error = predict(tree, '--out', out, '--json', lines)
    assert code == 2 and 'disk is full' in error
    assert sorted(os.listdir(out)) == ['a.png', 'film.mp4']
    assert not lines.exists()
    partial = (tmp_path / 'lines.partial').read_text()
    assert len(partial.splitlines()) >= 6


def test_a_warning_is_a_line(tree, work_dir, monkeypatch, capfd):
    """Those of this package, without a place in the code."""
    checkpoint = torch.load(work_dir / 'epoch_5.pth', weights_only=False)
    checkpoint['meta']['dataset_meta'].pop('alignment')
    torch.save(checkpoint, tree / 'model.pth')
    with warnings.catch_warnings(record=True) as caught:
        assert cli.main([
            'predict', f'{tree}/a.png', '--aligned', '--model',
            f'{tree}/model.pth', '--device', 'cpu'
        ]) == 0
    assert not caught
    warning, summary = capfd.readouterr().err.splitlines()
    assert warning.startswith('Warning: The checkpoint does not say how')
    assert summary.startswith('1 image, 1 face: ')


def test_what_needs_nothing_imports_nothing():
    """0.2 s, where importing PyTorch and MMPretrain takes 5."""
    for arguments, word in ((['--help'], 'doctor'), (['--version'],
                                                     dan_mm.__version__),
                            (['pedict'], "invalid choice: 'pedict'"),
                            *(([command, '--help'], '--help')
                              for command in cli.COMMANDS)):
        process = subprocess.run(
            [sys.executable, '-X', 'importtime', '-m', 'dan_mm', *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True)
        assert word in process.stdout + process.stderr
        assert process.returncode == (2 if word.startswith('inv') else 0)
        imported = {
            line.split('|')[-1].strip().split('.')[0]
            for line in process.stderr.splitlines() if '|' in line
        }
        assert 'dan_mm' in imported
        assert not imported & {'cv2', 'mmengine', 'numpy', 'rich', 'torch'}


def test_commands_and_their_errors(capsys):
    for command, word in (('align', '--margin'), ('doctor', 'fix')):
        with pytest.raises(SystemExit) as error:
            cli.main([command, '--help'])
        assert error.value.code == 0
        assert word in capsys.readouterr().out
    assert cli.main(['align', '/nowhere', '/else']) == 2
    assert 'Found no folder /nowhere' in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        cli.main(['align', '/nowhere', '/else', '--verbose'])


def test_configs_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = cli.config.find_config
    assert find('dan_rafdb') == f'{ROOT}/configs/dan_rafdb.py'
    assert find('dan-h2_rafdb') == f'{ROOT}/configs/ablation/dan-h2_rafdb.py'
    (tmp_path / 'dan_rafdb').write_text('')
    assert find('dan_rafdb') == 'dan_rafdb'
    for name in 'dan_rafbd', 'configs/dan_rafbd.py':
        with pytest.raises(SystemExit, match='such as dan_rafdb or'):
            find(name)
    with pytest.raises(SystemExit, match='Found no config ferplus,'):
        find('ferplus')
