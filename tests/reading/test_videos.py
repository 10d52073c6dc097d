# Copyright (c) dan_mm contributors. All rights reserved.
"""Videos keep their frames, times and sound."""
import random
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from dan_mm.reading import videos
from dan_mm.reading.videos import VideoWriter, add_sound, read_video

RATE = 44100  # of the sound


def moving(number):
    """Frames that differ, and are no single colour."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (120, 160, 3), np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 3)
    return [np.roll(frame, 3 * i, 1) for i in range(number)]


def write(path, times, codec='libx264', sound=None, seconds=2):
    """Write frames with times in seconds, and a tone."""
    with av.open(str(path), 'w') as container:
        video = container.add_stream(codec)
        video.width, video.height, video.pix_fmt = 160, 120, 'yuv420p'
        # AVI has an entry for each tick.
        tick = Fraction(1, 25 if str(path).endswith('.avi') else 1000)
        video.codec_context.time_base = tick
        if sound:
            audio = container.add_stream(sound, rate=RATE, layout='mono')
        for frame, time in zip(moving(len(times)), times):
            frame = av.VideoFrame.from_ndarray(frame, 'bgr24')
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            wave = np.sin(np.arange(seconds * RATE) * 2 * np.pi * 440 / RATE)
            for i in range(0, len(wave), 1024):
                part = (10000 * wave[None, i:i + 1024]).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(part, 's16', 'mono')
                frame.sample_rate, frame.pts = RATE, i
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return str(path)


def regular(number, rate=25):
    return [i / rate for i in range(number)]


@pytest.mark.parametrize('name, codec', [('a.mp4', 'libx264'),
                                         ('a.avi', 'mpeg4'),
                                         ('a.mkv', 'libx264'),
                                         ('a.webm', 'libvpx'),
                                         ('a.ts', 'libx264')])
def test_frames_and_times(tmp_path, name, codec):
    frames = moving(30)
    path = write(tmp_path / name, regular(30), codec)
    images = list(read_video(path))
    assert [item.frame for item in images] == list(range(30))
    assert np.allclose([item.time for item in images], regular(30), atol=1e-3)
    for frame, item in zip(frames, images):
        assert item.path == path and item.error is None
        assert np.abs(item.img.astype(int) - frame).mean() < 12
    assert images[0].frames == (30 if name in ('a.mp4', 'a.avi') else 0)


def test_a_video_that_is_turned(tmp_path):
    """As phones do it: by a matrix in the header."""
    path = tmp_path / 'a.mp4'
    write(path, regular(3))
    expected = moving(1)[0]
    content = bytearray(path.read_bytes())
    place = content.index(b'tkhd') + 44
    matrices = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
    for turns, (a, b, c, d) in enumerate(matrices):
        values = np.array([a, b, 0, c, d, 0, 0, 0, 0]) * 65536
        values[8] = 1 << 30
        content[place:place + 36] = values.astype('>i4').tobytes()
        path.write_bytes(content)
        img = next(read_video(str(path))).img
        difference = img.astype(int) - np.rot90(expected, -turns)
        assert np.abs(difference).mean() < 12
        reference = cv2.VideoCapture(str(path)).read()[1]
        assert np.abs(img.astype(int) - reference).mean() < 2


def test_broken_frames(tmp_path):
    """The others keep their numbers and times."""
    path = tmp_path / 'a.mp4'
    write(path, regular(50), 'mpeg4')
    content = bytearray(path.read_bytes())
    random.seed(0)
    third = len(content) // 3
    for i in range(third, third + len(content) // 10):
        content[i] = random.randrange(256)
    path.write_bytes(content)
    images = list(read_video(str(path)))
    broken = [item for item in images if item.img is None]
    assert 0 < len(broken) < 25
    assert [item.frame for item in images] == list(range(50))
    for item in images:
        if item.img is None:
            assert item.error.endswith('is broken.')
        else:
            assert item.time == pytest.approx(item.frame / 25)


@pytest.mark.parametrize('name', ['a.avi', 'a.mkv', 'a.webm', 'fast.mp4'])
@pytest.mark.parametrize('share', [0.5, 0.8])
def test_a_video_that_is_cut_off(tmp_path, name, share):
    path = tmp_path / name
    write(path, regular(100), 'libvpx' if name == 'a.webm' else 'mpeg4')
    if name == 'fast.mp4':
        # The table in front, as on the web
        fast = tmp_path / 'a.mp4'
        with av.open(str(path)) as source, av.open(
                str(fast), 'w', options=dict(movflags='faststart')) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = fast
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    *frames, last = read_video(str(path))
    whole = [item for item in frames if item.error is None]
    assert 10 < len(whole) < 99 and len(frames) - len(whole) <= 1
    assert 'ends early' in last.error and last.frame is None


def test_what_is_no_video(tmp_path):
    # Of this one the table at the end is missing, and with it all.
    path = tmp_path / 'cut.mp4'
    write(path, regular(50))
    path.write_bytes(path.read_bytes()[:-2000])
    (tmp_path / 'text.mp4').write_text('no video')
    (tmp_path /
     'list.mp4').write_text(f"ffconcat version 1.0\nfile '{path}'\n")
    (tmp_path / 'list.m3u8.mp4'
     ).write_text(f'#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n')
    for name in 'cut.mp4', 'text.mp4', 'list.mp4', 'list.m3u8.mp4':
        with pytest.raises(ValueError, match=f'{name} cannot be opened'):
            list(read_video(str(tmp_path / name)))
    with av.open(str(tmp_path / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=RATE)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ValueError, match='only sound'):
        list(read_video(str(tmp_path / 'sound.mp4')))


def test_vast_frames(tmp_path):
    with av.open(str(tmp_path / 'a.avi'), 'w') as container:
        stream = container.add_stream('mjpeg')
        stream.width, stream.height, stream.pix_fmt = 8000, 8000, 'yuvj420p'
        frame = np.zeros((8000, 8000, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(frame, 'bgr24')
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ValueError, match='frames of 8000x8000 pixels'):
        list(read_video(str(tmp_path / 'a.avi')))


def length(path):
    """Seconds of the frames and of the sound."""
    with av.open(path) as container:
        return [
            float(stream.duration * stream.time_base)
            for stream in container.streams
        ]


def copy(source, target, number=None):
    """Write the first frames of a video again."""
    writer = VideoWriter(target, 160, 120)
    for item in list(read_video(source))[:number]:
        writer.write(item.img, item.time, item.duration)
    writer.close()


@pytest.mark.parametrize('times', [
    regular(30), [0, 0.01, 0.03, 0.1, 0.5, 1, 2, 4.4],
    regular(200, 1000), [0]
])
def test_written_frames_keep_their_times(tmp_path, times):
    source = write(tmp_path / 'a.mkv', times)
    target = str(tmp_path / 'b.mp4')
    copy(source, target)
    images = list(read_video(target))
    assert np.allclose([item.time for item in images], times, atol=1e-4)
    for frame, item in zip(moving(len(times)), images):
        assert np.abs(item.img.astype(int) - frame).mean() < 12
    last = list(read_video(source))[-1]
    assert length(target)[0] == pytest.approx(
        last.time + last.duration, abs=1e-3)


def test_the_last_frame_is_shown_as_long_as_it_was(tmp_path):
    path = str(tmp_path / 'a.mp4')
    writer = VideoWriter(path, 160, 120)
    for i, frame in enumerate(moving(3)):
        writer.write(frame, i / 25, 1.5)
    writer.close()
    assert length(path) == [pytest.approx(2 / 25 + 1.5, abs=1e-3)]


def test_a_frame_of_another_failure_is_broken(tmp_path):
    """Whatever FFmpeg says of it, the frames before stay."""
    path = write(tmp_path / 'a.avi', regular(5), 'mpeg4')
    demux = av.container.InputContainer.demux

    class Packet:
        pts, duration, time_base = 3, 1, Fraction(1, 25)

        def decode(self):
            raise av.error.ArgumentError(22, 'Invalid argument')

    class Container:

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, stream):
            for number, packet in enumerate(demux(self.container, stream)):
                yield Packet() if number == 3 else packet

    with videos._open(path) as container:
        images = list(videos._read_frames(Container(container), path))
    assert [item.frame for item in images] == list(range(5))
    broken = [item for item in images if item.error]
    assert len(broken) == 1 and broken[0].error.endswith('is broken.')


def test_odd_sizes(tmp_path):
    frame = np.full((35, 51, 3), 200, np.uint8)
    path = str(tmp_path / 'a.mp4')
    writer = VideoWriter(path, 51, 35)
    for i in range(3):
        writer.write(frame, i / 25)
    writer.close()
    assert [item.img.shape for item in read_video(path)] == [(36, 52, 3)] * 3
    assert np.abs(next(read_video(path)).img.astype(int) - 200).max() < 5


def test_times_that_no_video_has(tmp_path):
    """MP4 has 32 bits for the time between two frames."""
    path = str(tmp_path / 'a.mp4')
    writer = VideoWriter(path, 32, 32)
    times = [0, 2**31, 2**40, 5, 2**40, 2**62]
    for time in times:
        writer.write(np.zeros((32, 32, 3), np.uint8), time, 2.**40)
    writer.close()
    found = [item.time for item in read_video(path)]
    assert len(found) == len(times)
    assert (np.diff(found) > 0).all() and np.diff(found).max() < 7 * 3600


@pytest.mark.parametrize('name, codec, sound, copied', [
    ('a.mp4', 'libx264', 'aac', 'aac'),
    ('a.mkv', 'libx264', 'flac', 'flac'),
    ('a.avi', 'mpeg4', 'pcm_s16le', 'aac'),
    ('a.ts', 'libx264', 'aac', 'aac'),
])
def test_sound_is_kept(tmp_path, name, codec, sound, copied):
    source = write(tmp_path / name, regular(50), codec, sound)
    video, target = str(tmp_path / 'b.mp4'), str(tmp_path / 'c.mp4')
    copy(source, video)
    assert list(add_sound(video, source, target))
    assert length(target) == pytest.approx([2, 2], abs=0.05)
    assert len(list(read_video(target))) == 50
    with av.open(target) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == copied
        resampler = av.AudioResampler('s16', 'mono', RATE)
        wave = np.concatenate([
            part.to_ndarray()[0] for frame in container.decode(stream)
            for part in resampler.resample(frame)
        ]).astype(float)
    spectrum = np.abs(np.fft.rfft(wave[RATE // 2:RATE]))
    assert spectrum.argmax() == 220  # 440 Hz in half a second
    assert wave.std() == pytest.approx(10000 / 2**0.5, rel=0.1)


def test_sound_of_a_part(tmp_path):
    source = write(tmp_path / 'a.mp4', regular(50), sound='aac')
    video, target = str(tmp_path / 'b.mp4'), str(tmp_path / 'c.mp4')
    copy(source, video, 20)
    list(add_sound(video, source, target))
    assert length(target) == pytest.approx([0.8, 0.8], abs=0.05)


def test_no_sound(tmp_path):
    source = write(tmp_path / 'a.mp4', regular(5))
    assert list(add_sound(source, source, str(tmp_path / 'b.mp4'))) == []
    assert not (tmp_path / 'b.mp4').exists()
