# Copyright (c) dan_mm contributors. All rights reserved.
"""Nothing that was read or is a model is written to, and no output is half."""
import csv
import json
import os
import pickle
import random
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, draw_face, shared
from processes import start, wait

from dan_mm import cli
from dan_mm.apis import align_tree
from dan_mm.apis.faces import Face
from dan_mm.apis.orientation import UPRIGHT
from dan_mm.cli import test as test_cli
from dan_mm.evaluation import AtomicDumpResults
from dan_mm.files import (atomic_write, from_cell, lock_folder, open_result,
                          to_cell)
from dan_mm.reading import MediaReader
from dan_mm.reading.videos import VideoWriter


def stub(images):
    """A detector that finds a face in the middle of each image."""
    points = (40 * (UPRIGHT + 0.5) + 20).astype('f4')
    return [[Face(np.array([20, 20, 60, 60], 'f4'), 0.99, points)]
            for _ in images]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for i in range(4):
        name = f'{"sub/" if i % 2 else ""}{i}.png'
        cv2.imwrite(str(folder / name), draw_face(i, 80))
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """Run `dan-mm` with a stub of the detector."""
    monkeypatch.setattr(align_tree, 'build_detector', lambda _: stub)

    def run(*arguments):
        status = cli.main(list(map(str, arguments)))
        _, error = capfd.readouterr()
        assert 'Traceback' not in error
        return status, error

    return run


def contents(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob('*') if path.is_file()
    }


def refuse_predict(run, images, *options, match):
    """What is refused changes and makes nothing, and loads no model."""
    before = contents(images.parent)
    folders = set(images.parent.rglob('*'))
    status, error = run('predict', images, '--aligned', '--model', 'absent',
                        *options)
    assert status == 2 and match in error, error
    assert contents(images.parent) == before
    assert set(images.parent.rglob('*')) == folders


@pytest.mark.parametrize('kind', ['json', 'csv'])
@pytest.mark.parametrize('name', [
    'epoch_2.pth', 'config.py', 'images/0.png', 'notes.txt', 'labels.csv',
    'package.json', 'text.json', 'empty.pth', 'empty.py'
])
def test_what_is_no_earlier_result_stays(run, images, name, kind):
    path = images.parent / name
    if not path.exists():
        path.write_text({
            'package.json': '{"name": 1}',
            'text.json': '"faces"',
            'empty.pth': '',
            'empty.py': ''
        }.get(name, 'a,b'))
    refuse_predict(
        run, images, f'--{kind}', path, match='is no earlier result')
    link, hard = images.parent / 'link', images.parent / 'hard'
    link.symlink_to(path)
    os.link(path, hard)
    # Another name of an empty file would be replaced, and the file stay.
    others = [link, f'{images.parent}/images/../{name}']
    for other in others + [hard] * (path.stat().st_size > 0):
        refuse_predict(
            run, images, f'--{kind}', other, match='is no earlier result')


def test_two_outputs_are_two_files(run, images, tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'x')
    for other in './x', tmp_path / 'link', 'x':
        refuse_predict(
            run,
            images,
            '--json',
            os.path.relpath(tmp_path / 'x'),
            '--csv',
            tmp_path / other,
            match='expected two files')
    refuse_predict(
        run, images, '--json', '-', '--csv', '-', match='expected two files')


def test_folders_that_can_not_be_written_to(run, images, tmp_path):
    refuse_predict(
        run, images, '--csv', tmp_path / 'no/x.csv', match='a folder that')
    refuse_predict(run, images, '--csv', images, match='a folder that exists')
    (tmp_path / 'file').write_text('x')
    for out in 'file', 'file/sub':
        refuse_predict(
            run, images, '--out', tmp_path / out, match='is no folder')
    status, error = run('align', images, tmp_path / 'file/sub')
    assert status == 2 and 'is no folder' in error


def test_linked_folders_lead_to_no_input(run, images, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'sub').symlink_to(images / 'sub')
    refuse_predict(run, images, '--out', out, match='leads to the input')
    before = contents(images)
    status, error = run('align', images, out)
    assert status == 2 and 'expected' in error
    (out / 'sub').unlink()
    (images / 'deep/er/still').mkdir(parents=True)
    shutil.copy(images / '0.png', images / 'deep/er/still/4.png')
    (out / 'deep/er').mkdir(parents=True)
    (out / 'deep/er/still').symlink_to(images / 'sub')
    before = contents(images)
    refuse_predict(run, images, '--out', out, match='leads to the input')
    status, error = run('align', images, out)
    assert status == 2 and 'leads to the input' in error
    assert contents(images) == before


def test_hard_links_lead_to_no_input(run, images, tmp_path):
    out = tmp_path / 'out'
    (out / 'sub').mkdir(parents=True)
    for name in '0.png', 'sub/1.png':
        os.link(images / name, out / name)
    before = contents(images)
    assert run('predict', images, '--aligned', '--out', out)[0] == 0
    assert contents(images) == before
    assert (out / '0.png').read_bytes() != before[images / '0.png']
    # What another command made is not replaced.
    status, error = run('align', images, out)
    assert status == 2 and 'was not written by this command' in error
    (out / 'alignment.json'
     ).write_text('{"size": 224, "margin": 0.1, "interpolation": "bilinear"}')
    os.link(images / '2.png', tmp_path / 'more')
    os.replace(tmp_path / 'more', out / '2.png')
    assert run('align', images, out)[0] == 0
    assert contents(images) == before


def test_results_replace_earlier_ones_only_when_they_are_whole(
        run, images, tmp_path, monkeypatch):
    table, lines = tmp_path / 'x.csv', tmp_path / 'x.json'
    options = ('--aligned', '--csv', table, '--json', lines)
    assert run('predict', images, *options)[0] == 0
    first = table.read_bytes(), lines.read_bytes()
    assert len(lines.read_text().splitlines()) == 4
    # An interrupted run leaves them, and what it has beside them.
    add = cli.predict.Summary.add

    def interrupt(summary, result):
        add(summary, result)
        if summary.images == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli.predict.Summary, 'add', interrupt)
        assert run('predict', images, *options)[0] == 130
    assert (table.read_bytes(), lines.read_bytes()) == first
    partial = (tmp_path / 'x.json.partial').read_text().splitlines()
    assert [json.loads(line)['path'] for line in partial
            ] == [json.loads(line)['path'] for line in lines.open()][:2]
    assert run('predict', images, *options)[0] == 0
    assert (table.read_bytes(), lines.read_bytes()) == first
    assert not list(tmp_path.glob('*.partial'))


@pytest.mark.parametrize('option', ['--csv', '--json'])
def test_a_full_disk_is_an_error(run, images, option):
    status, error = run('predict', images, '--aligned', option, '/dev/full')
    assert status == 2 and 'disk is full' in error, error


def test_a_full_standard_output_is_an_error(images):
    process = subprocess.run(
        f'{sys.executable} -m dan_mm predict {images} --aligned --csv - '
        '> /dev/full',
        shell=True,
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE)
    assert process.returncode == 2, process.stderr
    assert 'disk is full' in process.stderr
    assert 'Traceback' not in process.stderr
    assert 'Exception ignored' not in process.stderr


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)]
    if shutil.which('mount') is None or subprocess.run(
            mount, capture_output=True).returncode:
        pytest.skip('may not mount a small disk')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)


def test_a_full_disk_leaves_what_was_there(run, images, small_disk):
    table = small_disk / 'x.csv'
    assert run('predict', images, '--aligned', '--csv', table)[0] == 0
    before = table.read_bytes()
    (small_disk / 'fill').write_bytes(b'x' * (60 << 10))
    for options in (['--csv', table], ['--json', small_disk / 'x.json'],
                    ['--out', small_disk / 'out']):
        many = [images / '0.png'] * 60
        status, error = run('predict', *many, '--aligned', *options)
        assert status == 2 and 'disk is full' in error, (options, error)
        assert table.read_bytes() == before
    status, error = run('align', images, small_disk / 'faces', '--size', 300)
    assert status == 2 and 'disk is full' in error, error


def test_a_full_disk_for_converters(small_disk, tmp_path, capfd):
    """And a folder that is no folder, and a file that is one."""
    torch.save(
        dict(state_dict=torchvision.models.resnet18().state_dict()),
        tmp_path / 'x.pth')
    tools = {
        f'{ROOT}/tools/model_converters/dan_to_mmpretrain.py':
        tmp_path / 'x.pth',
        f'{ROOT}/tools/model_converters/retinaface_to_mmdet.py':
        shared('weights', 'retinaface_mobilenet0.25.pth')
    }
    for tool, src in tools.items():
        main = runpy.run_path(tool)['main']
        for dst in small_disk / 'y.pth', tmp_path / 'x.pth/y.pth', small_disk:
            with pytest.raises(SystemExit) as error:
                main([str(src), str(dst)])
            output = capfd.readouterr().err
            assert error.value.code == 2 and str(dst) in output, output
            assert 'Traceback' not in output and not os.listdir(small_disk)


def test_predictions_of_a_test_are_atomic(small_disk, tmp_path):
    path, other = small_disk / 'x.pkl', tmp_path / 'other.pkl'
    other.write_bytes(b'x')
    path.symlink_to(other)
    dump = AtomicDumpResults(str(path))
    assert dump.compute_metrics([dict(pred_label=1)]) == {}
    assert pickle.loads(path.read_bytes()) == [dict(pred_label=1)]
    assert other.read_bytes() == b'x'
    with pytest.raises(OSError, match='No space'):
        dump.compute_metrics([dict(pred_label=i) for i in range(10**5)])
    assert pickle.loads(path.read_bytes()) == [dict(pred_label=1)]
    assert os.listdir(small_disk) == ['x.pkl']


@pytest.mark.parametrize(
    'out', ['x.pth', 'folder.json', 'x.json/y.json', 'config.json'])
def test_where_a_test_may_not_write(tmp_path, out):
    """It is said before anything is loaded."""
    (tmp_path / 'folder.json').mkdir()
    (tmp_path / 'x.json').touch()
    config = tmp_path / 'config.json'
    config.write_text('{}')
    with pytest.raises(SystemExit, match='--out.*expected|input|no folder'):
        test_cli.main([
            str(config), 'absent.pth', '--out-item', 'metrics', '--out',
            str(tmp_path / out)
        ])


def test_an_interrupt_while_arguments_are_parsed(run, monkeypatch):

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.argparse.ArgumentParser, 'parse_args', interrupt)
    status, error = run('predict', 'x.png')
    assert status == 130 and 'Interrupted' in error


def rows_of(path):
    with open(path, newline='') as file:
        return sorted(map(tuple, csv.reader(file)))


def test_a_name_that_is_too_long_stops_no_other(run, images, tmp_path):
    """255 bytes with its extension, but not with another one."""
    cv2.imwrite(str(tmp_path / 'x.bmp'), draw_face(0, 80))
    os.rename(tmp_path / 'x.bmp', images / ('a' * 251 + '.bmp'))
    for options in [], ['--faces', 'all']:
        out = tmp_path / f'out{len(options)}'
        status, error = run('align', images, out, *options)
        assert status == 1, error
        found = [row[1] for row in rows_of(out / 'faces.csv')]
        assert sorted(found) == [*['aligned'] * 4, 'broken', 'status']


def write_frames(path, width, height, scale=1, rate=25):
    """Write a raw video, each frame of `scale / rate` seconds."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('rawvideo', rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = 'bgr24'
        for i in range(4):
            img = np.full((height, width, 3), 60 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(img, 'bgr24')
            container.mux(stream.encode(frame))
    content = bytearray(path.read_bytes())
    place = content.index(b'strh') + 28
    content[place:place + 8] = struct.pack('<2I', scale, rate)
    path.write_bytes(content)


@pytest.mark.parametrize('video', [
    dict(width=20000, height=4),
    dict(width=4, height=20000),
    dict(width=1, height=1),
    dict(width=32, height=32, scale=2**32 - 1, rate=1),
])
def test_odd_videos_are_annotated(run, tmp_path, video):
    write_frames(tmp_path / 'a.avi', **video)
    out = tmp_path / 'out'
    status, error = run('predict', tmp_path / 'a.avi', '--aligned', '--out',
                        out)
    # Such a strip is no face, which is another error.
    assert (status, 'ratio' in error) in ((0, False), (1, True)), error
    with av.open(str(out / 'a.mp4')) as container:
        [stream] = container.streams
        assert len(list(container.decode(stream))) == 4


@pytest.mark.parametrize(
    'fault', ['VideoWriter.write', 'VideoWriter.close', 'long name'])
def test_a_video_that_cannot_be_annotated_stops_no_other(
        run, images, tmp_path, monkeypatch, fault):
    write_frames(tmp_path / 'a.avi', 32, 32)
    name = 'a' * (252 if fault == 'long name' else 1) + '.ts'
    os.rename(tmp_path / 'a.avi', images / name)
    if fault.startswith('VideoWriter'):

        def fail(*_):
            raise av.error.ExternalError(1, 'no such frame')

        monkeypatch.setattr(VideoWriter, fault.split('.')[1], fail)
    table, out = tmp_path / 'x.csv', tmp_path / 'out'
    status, error = run('predict', images / name, images, '--aligned', '--out',
                        out, '--csv', table)
    assert status == 1 and 'cannot be annotated' in error
    assert sorted(path.name for path in out.rglob('*.*')) == [
        f'{i}.png' for i in range(4)
    ]
    assert len(rows_of(table)) == 1 + 2 * 4 + 4


def test_sound_that_cannot_be_copied_is_an_error(run, tmp_path, monkeypatch):
    write_frames(tmp_path / 'a.avi', 32, 32)

    def fail(*_):
        raise OSError('no space')

    monkeypatch.setattr(MediaReader, 'add_sound', fail)
    out = tmp_path / 'out'
    status, error = run('predict', tmp_path / 'a.avi', '--aligned', '--out',
                        out)
    assert status == 1 and 'has no sound' in error and 'no space' in error
    assert os.listdir(out) == ['a.mp4']


def test_two_aligns_into_one_folder(run, images, tmp_path):
    out = tmp_path / 'out'
    with lock_folder(str(out)):
        code = 'import sys; from dan_mm import cli; sys.exit(cli.main())'
        process = subprocess.run(
            [sys.executable, '-c', code, 'align', images, out],
            cwd=ROOT,
            text=True,
            stderr=subprocess.PIPE)
        assert process.returncode == 2
        assert 'Another process writes to' in process.stderr
        assert os.listdir(out) == ['.lock']
    assert run('align', images, out)[0] == 0
    assert len(rows_of(out / 'faces.csv')) == 5
    assert run('align', images, out)[0] == 0
    assert len(rows_of(out / 'faces.csv')) == 5


def align(src, dst):

    def slow(images):
        time.sleep(0.02)
        return stub(images)

    align_tree.build_detector = lambda _: slow
    print('ready', flush=True)
    return cli.main(['align', src, dst, '--batch-size', '1'])


@pytest.mark.slow
def test_killed_aligns_resume(images, tmp_path):
    """Killed at any moment and run again, each image has one row."""
    for i in range(4, 40):
        shutil.copy(images / '0.png', images / f'{i}.png')
    rng = random.Random(0)

    def run(name):
        log = tmp_path / 'log'
        log.write_text('')
        process = start(align, str(images), str(tmp_path / name), log=log)
        while 'ready' not in log.read_text():
            assert process.is_alive()
            time.sleep(0.01)
        return process

    assert wait(run('whole')) == 0
    killed = 0
    for kind in signal.SIGKILL, signal.SIGTERM, signal.SIGINT:
        for _ in range(2):
            process = run('killed')
            time.sleep(rng.uniform(0, 0.5))
            os.kill(process.pid, kind)
            killed += wait(process) != 0
    assert killed >= 3
    assert wait(run('killed')) == 0
    assert rows_of(tmp_path / 'killed/faces.csv') == rows_of(tmp_path /
                                                             'whole/faces.csv')
    for name in '0.png', 'sub/1.png', '39.png':
        assert (tmp_path / 'killed' /
                name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


@pytest.mark.parametrize(
    'name',
    ['=1+1.png', '+1.png', '-1.png', '@a.png', "'a.png", '\t1.png', '\r1.png'])
def test_no_cell_is_a_formula(run, tmp_path, monkeypatch, name):
    folder = tmp_path / 'in'
    folder.mkdir()
    cv2.imwrite(str(folder / 'a.png'), draw_face(0, 80))
    (folder / 'a.png').rename(folder / name)
    (folder / name.replace('.', '2.')).write_bytes(b'broken')
    monkeypatch.chdir(folder)
    run('predict', './' + name, '--aligned', '--csv', tmp_path / 'x.csv')
    run('align', folder, tmp_path / 'out')
    for _ in range(2):
        run('align', folder, tmp_path / 'out')
        with open(tmp_path / 'out/faces.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        assert sorted(from_cell(row['path']) for row in rows) == sorted(
            [name, name.replace('.', '2.')])
        for row in rows:
            assert row['path'][0] == "'" and row['crop'][:1] in ("'", '')


def test_cells():
    for text in ('=1', '+1', '-1', '@x', '\tx', '\rx', '\nx', '＝1', "'x",
                 "''="):
        assert to_cell(text) == f"'{text}" and from_cell(to_cell(text)) == text
    for text in '', 'a=1', 'ü':
        assert to_cell(text) == text == from_cell(text)


def test_atomic_writes(tmp_path):
    path = tmp_path / 'sub/x'
    with atomic_write(str(path)) as temporary:
        assert not path.exists()
        open(temporary, 'w').write('new')
    assert path.read_text() == 'new'
    with pytest.raises(ZeroDivisionError):
        with atomic_write(str(path)) as temporary:
            open(temporary, 'w').write('half')
            1 / 0
    assert path.read_text() == 'new'
    assert [file.name for file in path.parent.iterdir()] == ['x']
    # A planted link is not followed.
    victim = tmp_path / 'victim'
    victim.write_text('whole')
    (path.parent / 'x.partial').symlink_to(victim)
    with atomic_write(str(path), keep_partial=True) as temporary:
        open(temporary, 'w').write('newer')
    assert victim.read_text() == 'whole' and path.read_text() == 'newer'


def test_results_are_not_in_the_annotated_tree(run, images, tmp_path):
    for options in (['--json', 'x', '--out',
                     'x'], ['--csv', 'x', '--out',
                            'x/y'], ['--csv', 'there/0.png', '--out',
                                     'there']):
        (tmp_path / 'there').mkdir(exist_ok=True)
        paths = [
            item if item.startswith('--') else tmp_path / item
            for item in options
        ]
        refuse_predict(run, images, *paths, match='which --out')


def test_a_refused_option_changes_nothing(run, images, tmp_path, monkeypatch):
    """Not even what an interrupted run has left"""
    (tmp_path / 'x.csv.partial').write_text('path,frame,time,\nprecious')
    before = set(tmp_path.rglob('*')), contents(tmp_path)
    status, _ = run('predict', images, '--aligned', '--smoothing', 3, '--csv',
                    tmp_path / 'x.csv', '--json', tmp_path / 'x.json')
    assert status == 2
    assert before == (set(tmp_path.rglob('*')), contents(tmp_path))

    def fail(_):
        raise ValueError('no such detector')

    monkeypatch.setattr(align_tree, 'build_detector', fail)
    for dst in 'new/folder', 'there':
        (tmp_path / 'there').mkdir(exist_ok=True)
        before = set(tmp_path.rglob('*')), contents(tmp_path)
        assert run('align', images, tmp_path / dst)[0] == 2
        assert before == (set(tmp_path.rglob('*')), contents(tmp_path))


def test_the_report_of_something_else_stays(run, images, tmp_path):
    """Such as the table of `dan-mm predict` in that folder"""
    for content in b'path,frame\nx,1\n', b'path,status\n\0', b'\x89PNG\0':
        (tmp_path / 'out').mkdir(exist_ok=True)
        (tmp_path / 'out/faces.csv').write_bytes(content)
        before = contents(tmp_path)
        status, error = run('align', images, tmp_path / 'out')
        assert status == 2 and 'faces.csv' in error, error
        assert contents(tmp_path) == before


@pytest.mark.parametrize('tool, options', [
    ('dan_to_mmpretrain', ['{0}', '{1}']),
    ('retinaface_to_mmdet', ['{0}', '{1}']),
    ('publish_model', ['config.py', '{0}', '{1}']),
    ('publish_model', ['{0}', 'epoch_1.pth', '{1}']),
    ('dlib_to_mmpretrain', ['images', '{1}', '--src', '{0}']),
])
@pytest.mark.parametrize('target', ['./x', 'linked', 'hard'])
def test_converters_write_to_no_input(images, tmp_path, monkeypatch, tool,
                                      options, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x').write_text('model = None')
    (tmp_path / 'linked').symlink_to('x')
    os.link('x', 'hard')
    before = contents(tmp_path)
    main = runpy.run_path(f'{ROOT}/tools/model_converters/{tool}.py')['main']
    with pytest.raises(SystemExit, match='is an input'):
        main([option.format('x', target) for option in options])
    assert contents(tmp_path) == before


def test_two_runs_into_one_file(tmp_path):
    """The second is refused, and the first ends with all of its results."""
    path = str(tmp_path / 'x')
    with open_result(path) as file:
        file.write('1')
        file.flush()
        with pytest.raises(BlockingIOError, match='Another process'):
            with open_result(path):
                pass
        file.write('2')
    assert (tmp_path / 'x').read_text() == '12'


def test_a_file_stays_as_private_as_it_was(tmp_path):
    path = tmp_path / 'x'
    path.touch(0o600)
    with open_result(str(path)) as file:
        file.write('new')
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_report_with_a_broken_end(run, images, tmp_path):
    """As a power failure leaves it"""
    assert run('align', images, tmp_path / 'out')[0] == 0
    report = tmp_path / 'out/faces.csv'
    whole = rows_of(report)
    for end in bytes(9000), b'"' + b'x' * 200_000:
        lines = report.read_bytes().splitlines(True)
        report.write_bytes(b''.join(lines[:3]) + end)
        assert run('align', images, tmp_path / 'out')[0] == 0
        assert rows_of(report) == whole


def test_what_a_killed_align_leaves_is_removed(run, images, tmp_path):
    (tmp_path / 'out/sub').mkdir(parents=True)
    (tmp_path / 'out/sub/.12-345.partial.png').touch()
    assert run('align', images, tmp_path / 'out')[0] == 0
    assert not list((tmp_path / 'out').rglob('*.partial*'))


def test_mounts_lead_to_no_input(run, images, tmp_path, monkeypatch):
    """A folder that is there twice, which no link shows"""
    mount = tmp_path / 'mount'
    mount.mkdir()
    real, twin = os.stat, os.stat(images)
    monkeypatch.setattr(
        os, 'stat', lambda path, **options: twin
        if str(path) == str(mount) else real(path, **options))
    assert run('align', images, mount / 'new')[0] == 2
    assert run('predict', images, '--aligned', '--out', mount)[0] == 2
    assert not list(mount.iterdir())
