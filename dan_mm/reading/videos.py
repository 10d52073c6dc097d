# Copyright (c) dan_mm contributors. All rights reserved.
import heapq
import math
import re
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Iterator, List, Optional

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.video.reformatter import VideoReformatter

from .images import InputImage, check_regular

# What FFmpeg may take a file for, whatever its extension. Other formats are
# lists of files and URLs, which it would open.
OPTIONS = dict(
    format_whitelist='mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,'
    'mpegvideo,mpegts,asf,flv,ogg',
    protocol_whitelist='none')
MAX_PIXELS = 2**25  # of a frame: 8K has 33 million
MAX_BROKEN = 100  # frames in a row
TOLERANCE = Fraction(1, 4)  # of the length, in seconds
THREADS = 2  # each has frames of its own
# The first that FFmpeg was built with
CODECS = 'libx264', 'mpeg4'
# Sound that players take in MP4
SOUND = 'aac', 'ac3', 'alac', 'eac3', 'flac', 'mp3', 'opus'
TIME_BASE = Fraction(1, 90000)  # of MPEG
MAX_GAP = 2**31 - 1  # of these between frames of an MP4: 6 hours
NOT_OPENED = ('The video {} cannot be opened, expected a complete file in a '
              'common format. Convert it, for example with `ffmpeg -i {} '
              'new.mp4`.')


@contextmanager
def _open(path: str) -> Iterator[InputContainer]:
    # A file object has no name that FFmpeg could take for something else.
    with open(path, 'rb') as file:
        with av.open(file, options=OPTIONS, metadata_errors='replace') as it:
            yield it


def read_video(path: str) -> Iterator[InputImage]:
    """Read the frames of a video, upright and with their exact times.

    Args:
        path (str): The file.

    Yields:
        InputImage: The frames. A broken one has an error; so has the last
        item of a video that is broken or cut off.

    Raises:
        OSError: If it is missing or can't be read.
        ValueError: If it is no video.
    """
    check_regular(path, 'video')
    try:
        with _open(path) as container:
            if not container.streams.video:
                raise ValueError(f'The video {path} has no frames, only '
                                 'sound. Check the file.')
            yield from _read_frames(container, path)
    except av.error.FFmpegError as error:
        if isinstance(error, (MemoryError, PermissionError)):
            raise
        raise ValueError(NOT_OPENED.format(path, path)) from error


def _read_frames(container: InputContainer, path: str) -> Iterator[InputImage]:
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise ValueError(
            f'The video {path} has frames of {codec.width}x{codec.height} '
            f'pixels, expected at most {MAX_PIXELS}. Shrink it.')
    # A frame in the middle may be larger.
    codec.options = dict(max_pixels=str(MAX_PIXELS))
    codec.thread_type, codec.thread_count = 'AUTO', THREADS
    convert = VideoReformatter()
    start = stream.start_time or 0
    frame = broken = end = 0
    complete = True
    packets = container.demux(stream)
    while broken <= MAX_BROKEN:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            complete = False
            break
        if packet is None:
            break
        if packet.pts is not None:
            length = (packet.duration or 0) * packet.time_base
            end = max(end, (packet.pts - start) * packet.time_base + length)
        try:
            images = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            images = [None]
        for image in images:
            if image is None or image.is_corrupt:
                broken += 1
                yield InputImage(
                    None,
                    path,
                    frame,
                    error=f'The frame {frame} of the video {path} is broken.',
                    frames=stream.frames)
            else:
                broken = 0
                yield InputImage(
                    _to_bgr(image, convert),
                    path,
                    frame,
                    _time(image, start, frame, stream),
                    duration=float((image.duration or 0) * image.time_base),
                    frames=stream.frames)
            frame += 1
    if frame == broken:
        raise ValueError(f'The video {path} has no frame that can be read. '
                         'Check the file.')
    length = _length(stream, container)
    cut = length is not None and length - end > TOLERANCE
    if broken > MAX_BROKEN or not complete or cut:
        yield InputImage(
            None,
            path,
            error=f'The video {path} ends early, after {float(end):.2f} s: '
            'it is broken or cut off.')


def _to_bgr(image: av.VideoFrame, convert: VideoReformatter) -> np.ndarray:
    img = convert.reformat(image, format='bgr24').to_ndarray()
    return np.ascontiguousarray(np.rot90(img, round(image.rotation / 90)))


def _time(image: av.VideoFrame, start: int, frame: int, stream) -> float:
    if image.pts is None:
        rate = stream.average_rate or 25
        return float(frame / rate)
    return float((image.pts - start) * image.time_base)


def _length(stream: Stream, container: InputContainer) -> Optional[Fraction]:
    """What a video says of the length of its frames, in seconds."""
    if (container.format.name == 'avi' and stream.frames
            and stream.average_rate):
        # Its duration is that of what there is.
        return stream.frames / stream.average_rate
    if stream.duration:
        return stream.duration * stream.time_base
    # Matroska has a tag, such as 00:01:02.345000000.
    match = re.match(r'(\d+):(\d+):(\d+(?:\.\d+)?)$',
                     stream.metadata.get('DURATION', ''))
    if match:
        hours, minutes, seconds = map(Fraction, match.groups())
        return 3600 * hours + 60 * minutes + seconds
    # The sound may be longer.
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


class VideoWriter:
    """Write frames with their times to an MP4 file.

    Args:
        path (str): The file.
        width (int): Of a frame, in pixels.
        height (int): Of a frame, in pixels.

    Raises:
        OSError: If it can't be written.
    """

    def __init__(self, path: str, width: int, height: int) -> None:
        self.size = width, height
        # A file object, since FFmpeg reads more than a name in a name.
        self.file = open(path, 'wb')
        self.container = av.open(self.file, 'w', format='mp4')
        name = next(name for name in CODECS if name in av.codecs_available)
        self.stream = self.container.add_stream(name)
        # Two pixels share a colour.
        self.stream.width = width + width % 2
        self.stream.height = height + height % 2
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.time_base = TIME_BASE
        if name == 'libx264':
            # Without looking ahead, it keeps few frames in memory.
            self.stream.options = dict(
                preset='veryfast', tune='zerolatency', crf='20', bf='0')
        self.pts, self.duration = -1, None
        self.last: List[av.Packet] = []

    def write(self,
              img: np.ndarray,
              time: float,
              duration: Optional[float] = None) -> None:
        """Write a frame.

        Args:
            img (ndarray): BGR, uint8 of shape ``(height, width, 3)``.
            time (float): Its time in seconds, later than that of the one
                before, by at most 6 hours; others are changed to that.
            duration (float, optional): How long it is shown if it is the last
                one, in seconds. Defaults to None, as long as the one before.
        """
        width, height = self.size
        img = np.pad(img, ((0, height % 2), (0, width % 2), (0, 0)), 'edge')
        frame = av.VideoFrame.from_ndarray(img, 'bgr24')
        self.pts = min(
            max(round(time / TIME_BASE), self.pts + 1), self.pts + MAX_GAP)
        frame.pts, frame.time_base = self.pts, TIME_BASE
        self.duration = duration
        self._mux(self.stream.encode(frame))

    def _mux(self, packets: List[av.Packet]) -> None:
        """Write all packets but the last one, whose duration may change."""
        packets = [*self.last, *packets]
        self.container.mux(packets[:-1])
        self.last = packets[-1:]

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            self._mux(self.stream.encode(None))
            for packet in self.last:
                if self.duration:
                    packet.duration = min(
                        round(self.duration / packet.time_base), MAX_GAP)
                self.container.mux(packet)
            self.container.close()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the file as it is."""
        self.file.close()


def add_sound(path: str, source: str, target: str) -> Iterator[None]:
    """Write a video with the sound of another one, if it has some: as it is,
    or as AAC where MP4 does not take it.

    Args:
        path (str): The video, which begins at 0 s.
        source (str): That with the sound.
        target (str): The MP4 file to write.

    Yields:
        None: Now and then, while it works.
    """
    check_regular(source, 'video')
    with ExitStack() as stack:
        video, sound = (
            stack.enter_context(_open(name)) for name in (path, source))
        if not sound.streams.audio:
            return
        file = stack.enter_context(open(target, 'wb'))
        output = stack.enter_context(av.open(file, 'w', format='mp4'))
        frames = video.streams.video[0]
        copy = output.add_stream_from_template(frames)
        packets = heapq.merge(
            _packets(video, frames, copy),
            _sound_packets(sound, output, Fraction(video.duration,
                                                   av.time_base)),
            key=lambda packet: packet.dts * packet.time_base)
        for number, packet in enumerate(packets):
            output.mux(packet)
            if number % 100 == 0:
                yield


def _packets(container: InputContainer, stream: Stream,
             target: Stream) -> Iterator[av.Packet]:
    for packet in container.demux(stream):
        if packet.dts is not None:  # the end has none
            packet.stream = target
            yield packet


def _sound_packets(sound: InputContainer, output: OutputContainer,
                   length: Fraction) -> Iterator[av.Packet]:
    """The sound, with times from the start of the frames; only a part if
    there are frames of a part."""
    frames, stream = sound.streams.video[0], sound.streams.audio[0]
    start = (frames.start_time or 0) * frames.time_base
    if length + TOLERANCE > (_length(frames, sound) or 0):
        length = math.inf
    encode = stream.codec_context.name not in SOUND
    if encode:
        # More channels are mixed into two.
        layout = 'mono' if stream.layout.nb_channels == 1 else 'stereo'
        target = output.add_stream('aac', rate=stream.rate, layout=layout)
    else:
        target = output.add_stream_from_template(stream)
    for packet in sound.demux(stream):
        if packet.pts is not None:
            packet.pts -= round(start / packet.time_base)
            packet.dts = packet.pts
            if packet.pts * packet.time_base >= length:
                break
            if packet.pts < 0:
                continue
        if encode:
            for frame in packet.decode():
                yield from target.encode(frame)
        elif packet.pts is not None:
            packet.stream = target
            yield packet
    if encode:
        yield from target.encode(None)
