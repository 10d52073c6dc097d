# Copyright (c) dan_mm contributors. All rights reserved.
import csv
import os
import re
import signal
import sys

import cv2
import numpy as np
import pytest

from dan_mm import apis, cli
from dan_mm.apis import timeline
from dan_mm.apis.inferencer import FaceResult, ImageResult
from dan_mm.apis.timeline import TimelineWriter
from dan_mm.reading import InputImage

CLASSES = 'neutral', 'happiness', '=$x_', '喜'


def read_table(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def frame_of(number, time, faces, path='film.mp4', duration=None):
    """A frame and its faces: `faces` has the scores of each track."""
    img = np.full((90, 160, 3), number % 200, np.uint8)
    result = ImageResult(path, number, time, [
        FaceResult(
            dict(zip(CLASSES, scores)),
            np.array([10 * track, 10, 10 * track + 30, 50], np.float32),
            0.9,
            track=track) for track, scores in faces.items()
    ])
    return InputImage(img, path, number, time, duration=duration), result


@pytest.fixture
def write(tmp_path):
    """A function that writes the timeline of frames, and gives its folder."""

    def run(frames, out='out'):
        writer = TimelineWriter(str(tmp_path / out), [], ['film.mp4'])
        with writer.open(CLASSES) as add:
            for image, result in frames:
                add(image, result)
        return tmp_path / out

    return run


def test_shares_of_time(write):
    """Weighted by how long a frame is shown, at a variable frame rate."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.3, 60))
    scores = rng.dirichlet(np.ones(4), 60)
    seen = (np.arange(60) < 20) | (np.arange(60) >= 30)
    out = write([
        frame_of(i, times[i], {1: scores[i]} if seen[i] else {}, duration=0.5)
        for i in range(60)
    ])
    durations = np.append(np.diff(times), 0.5)
    [row] = read_table(out / 'summary.csv')
    assert float(row['first']) == pytest.approx(times[0], abs=1e-3)
    assert float(row['last']) == pytest.approx(times[-1] + 0.5, abs=1e-3)
    assert float(row['seconds']) == pytest.approx(
        durations[seen].sum(), abs=1e-3)
    for i, name in enumerate(("neutral", "happiness", "'=$x_", "喜")):
        share = durations[seen & (scores.argmax(1) == i)].sum()
        assert float(row[name]) == pytest.approx(
            share / durations[seen].sum(), abs=1e-3)
    rows = read_table(out / 'person_1.csv')
    assert [int(row['frame']) for row in rows] == np.flatnonzero(seen).tolist()
    found = np.array([[float(row[name]) for name in list(row)[9:13]]
                      for row in rows])
    assert np.allclose(found, scores[seen], atol=1e-4)
    assert np.allclose([float(row['duration']) for row in rows],
                       durations[seen],
                       atol=1e-6)
    assert rows[0]['left'] == '10.00' and rows[0]['score'] == '0.9000'
    figure = cv2.imread(str(out / 'timeline.png'))
    assert figure.shape[1] == 1200 and figure.std() > 10


def test_a_broken_frame_is_not_counted(write):
    broken = (InputImage(None, 'film.mp4', 2, error='broken'),
              ImageResult('film.mp4', 2, error='broken'))
    frames = [frame_of(i, i / 10, {1: (1, 0, 0, 0)}) for i in range(20)]
    frames[2] = broken
    [row] = read_table(write(frames) / 'summary.csv')
    assert float(row['seconds']) == pytest.approx(1.9)
    # The last item of a video that is cut off
    frames.append((InputImage(None, 'film.mp4', error='ends early'),
                   ImageResult('film.mp4', error='ends early')))
    assert read_table(write(frames) / 'summary.csv') == [row]


def test_persons_who_are_seen_for_a_moment(write):
    """Are in the summary alone; in a short video, nobody is."""
    look = {1: (1, 0, 0, 0)}
    frames = [
        frame_of(i, i / 10, {
            **look, 2: (0, 1, 0, 0)
        } if i < 5 else look) for i in range(30)
    ]
    out = write(frames)
    assert sorted(
        os.listdir(out)) == ['person_1.csv', 'summary.csv', 'timeline.png']
    assert [row['seconds']
            for row in read_table(out / 'summary.csv')] == ['3.000', '0.500']
    # An earlier person is removed, and nothing else.
    (out / 'mine.txt').write_text('x')
    write(frames[:6])
    assert sorted(os.listdir(out)) == [
        'mine.txt', 'person_1.csv', 'person_2.csv', 'summary.csv',
        'timeline.png'
    ]
    write([frame_of(0, 0, {})])
    assert sorted(os.listdir(out)) == ['mine.txt', 'summary.csv']


def test_memory_is_bounded(tmp_path):
    """In a long video with many persons, the figure is binned, and few faces
    are kept."""
    writer = TimelineWriter(str(tmp_path / 'out'), [], ['film.mp4'])
    rng = np.random.default_rng(0)
    total, seconds = np.zeros(4), 40
    with writer.open(CLASSES) as add:
        for i in range(3000):
            scores = rng.dirichlet(np.ones(4))
            total += seconds * scores
            add(*frame_of(i, seconds * i, {1: scores, 2 + i // 10: scores}))
        persons = writer.persons.values()
        assert sum(one.thumbnail is not None for one in persons) < 60
        assert len(writer.persons[1].bins) <= timeline.MAX_BINS
        assert sum(len(one.bins) for one in persons) < 2000
        found = sum(writer.persons[1].bins.values())
        assert np.allclose(found, total - seconds * scores)


def test_the_sharpest_face_is_kept(tmp_path):
    """Neither a small one nor one out of focus"""
    writer = TimelineWriter(str(tmp_path / 'out'), [], ['film.mp4'])
    noise = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    kept = []
    with writer.open(CLASSES) as add:
        faces = (60, 4), (60, 1), (9, 1), (80, 9), (0, 9)
        for i, (side, blur) in enumerate(faces):
            image, result = frame_of(i, i, {1: (1, 0, 0, 0)})
            result.faces[0].bbox = np.array([0, 0, side, side], np.float32)
            cv2.GaussianBlur(noise, (0, 0), blur, image.img)
            add(image, result)
            kept.append(writer.persons[1].thumbnail)
    assert kept[0] is not kept[1] and kept[1] is kept[2] is kept[3]


@pytest.mark.parametrize(
    'name',
    ['person_3.csv', 'summary.csv', 'timeline.png', 'person_1.csv.partial'])
def test_what_is_no_earlier_result_stays(tmp_path, name):
    (tmp_path / name).write_text('mine')
    with pytest.raises(FileExistsError, match='is no earlier result'):
        TimelineWriter(str(tmp_path), [], ['film.mp4'])
    os.remove(tmp_path / name)
    os.symlink('elsewhere', tmp_path / name)
    with pytest.raises(FileExistsError, match='is no earlier result'):
        TimelineWriter(str(tmp_path), [], ['film.mp4'])


def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match='images have no time'):
        TimelineWriter(str(tmp_path / 'out'), [], ['a.png'])
    folder = tmp_path / 'videos'
    folder.mkdir()
    (folder / 'a.mp4').write_bytes(b'')
    with pytest.raises(ValueError, match='expected neither to be in the'):
        TimelineWriter(
            str(folder / 'out'), [str(folder)], [str(folder / 'a.mp4')])
    # A folder that leads back to the input
    (folder / 'b.mp4').write_bytes(b'')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a').symlink_to(folder)
    with pytest.raises(ValueError, match='leads to the input'):
        TimelineWriter(
            str(tmp_path / 'out'), [str(folder)],
            [str(folder / 'a.mp4'),
             str(folder / 'b.mp4')])
    (tmp_path / 'out' / 'a').unlink()
    writers = [
        TimelineWriter(str(tmp_path / 'out'), [], ['a.mp4']) for _ in range(2)
    ]
    with writers[0].open(CLASSES):
        with pytest.raises(BlockingIOError, match='Another process writes'):
            with writers[1].open(CLASSES):
                pass


@pytest.mark.parametrize('module', ['matplotlib.figure', 'anyascii'])
def test_a_missing_package(monkeypatch, capsys, tmp_path, module):
    """Said before a model is loaded."""
    monkeypatch.setitem(sys.modules, module, None)
    for name in 'drawing', 'timeline':
        monkeypatch.delitem(sys.modules, f'dan_mm.apis.{name}', False)
    (tmp_path / 'a.mp4').write_bytes(b'')
    assert cli.main([
        'predict',
        str(tmp_path / 'a.mp4'), '--timeline',
        str(tmp_path / 'out'), '--model', 'absent'
    ]) == 2
    error = capsys.readouterr().err
    assert re.search('Run `pip install .*matplotlib', error)
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def film(image_of, write_video):
    """A function that writes a video of a face, of 30 frames."""

    def draw(path):
        frames = [image_of(1, i // 6) for i in range(30)]
        for frame in frames:
            frame[:8, :8, 0] = 1  # survives the compression
        return write_video(path, frames, 'HFYU', rate=10)

    return draw


@pytest.fixture
def predict(work_dir, detector, monkeypatch, capfd):
    monkeypatch.setattr(apis, 'FaceDetector', lambda *_, **__: detector)

    def run(*arguments):
        code = cli.main([
            'predict', *map(str, arguments), '--model',
            str(work_dir), '--device', 'cpu'
        ])
        return code, *capfd.readouterr()

    return run


def test_the_command(predict, film, tmp_path, detector):
    """Tables, with a search in every 5th frame; beside other outputs"""
    path = film(tmp_path / 'film.avi')
    out = tmp_path / 'out'
    code, output, error = predict(path, '--timeline', out, '--every', 5,
                                  '--csv', tmp_path / 'all.csv')
    assert code == 0 and output == '' and '30 frames, 30 faces' in error
    rows, every = (
        read_table(name)
        for name in (out / 'person_1.csv', tmp_path / 'all.csv'))
    assert len(rows) == 30 and {row['track'] for row in every} == {'1'}
    assert [row['expression']
            for row in rows] == [row['expression'] for row in every]
    assert sum(detector.batches) < 20
    [row] = read_table(out / 'summary.csv')
    assert float(row['seconds']) == pytest.approx(3, abs=0.01)
    assert sorted(
        os.listdir(out)) == ['person_1.csv', 'summary.csv', 'timeline.png']
    for options, match in ((('--csv', out / 'x.csv'),
                            'in a folder of --timeline'),
                           (('--out', out), 'expected two folders'),
                           (('--every', 0), 'every=0')):
        code, _, error = predict(path, '--timeline', out, *options)
        assert code == 2 and match in error
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((9, 9, 3), np.uint8))
    code, _, error = predict(tmp_path / 'a.png', '--timeline', out)
    assert code == 2 and 'images have no time' in error


def test_several_videos(predict, film, tmp_path):
    """A folder each, in the tree of the input; a broken one stops no other."""
    src = tmp_path / 'src'
    (src / 'sub').mkdir(parents=True)
    for name in ('a.avi', 'sub/a.avi', 'x$..$.avi'):
        film(src / name)
    (src / 'a.mp4').write_bytes(b'x')
    code, _, error = predict(src, '--timeline', tmp_path / 'out')
    assert code == 1 and 'a.mp4 cannot be opened' in error
    found = {
        os.path.relpath(path.parent, tmp_path / 'out')
        for path in (tmp_path / 'out').rglob('timeline.png')
    }
    assert found == {'a', 'sub/a', 'x$..$'}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted(predict, film, tmp_path, monkeypatch, number):
    """What there is becomes whole: so ends a camera."""
    before = signal.getsignal(signal.SIGTERM)
    write = TimelineWriter.write

    def interrupt(self, image, result):
        write(self, image, result)
        if image.frame == 19:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TimelineWriter, 'write', interrupt)
    code, _, error = predict(
        film(tmp_path / 'film.avi'), '--timeline', tmp_path / 'out')
    assert code == 130 and 'what was written stays' in error
    rows = read_table(tmp_path / 'out' / 'person_1.csv')
    assert len(rows) >= 19
    assert sorted(os.listdir(
        tmp_path / 'out')) == ['person_1.csv', 'summary.csv', 'timeline.png']
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_camera_and_a_video(tmp_path):
    writer = TimelineWriter(str(tmp_path), [0, 'film.mp4'], [0, 'film.mp4'])
    with pytest.raises(KeyboardInterrupt), writer.open(CLASSES) as add:
        for path in 'camera 0', 'film.mp4':
            add(*frame_of(0, 0, {1: (1, 0, 0, 0)}, path, 0.1))
        raise KeyboardInterrupt
    assert len(list(tmp_path.glob('*/timeline.png'))) == 2


def test_a_failure_leaves_the_tables(tmp_path):
    writer = TimelineWriter(str(tmp_path / 'out'), [], ['film.mp4'])
    with pytest.raises(OSError), writer.open(CLASSES) as add:
        for i in range(5):
            add(*frame_of(i, i, {1: (1, 0, 0, 0)}))
        raise OSError('the disk is full')
    assert os.listdir(tmp_path / 'out') == ['person_1.csv.partial']
    assert len(read_table(tmp_path / 'out' / 'person_1.csv.partial')) == 4
    # The next run starts over.
    writer = TimelineWriter(str(tmp_path / 'out'), [], ['film.mp4'])
    with writer.open(CLASSES) as add:
        add(*frame_of(0, 0, {1: (1, 0, 0, 0)}))
    assert len(read_table(tmp_path / 'out' / 'person_1.csv')) == 1
