# Copyright (c) dan_mm contributors. All rights reserved.
"""What strangers send is decoded in another process, which has limits: a file
that takes too much memory or time, or crashes its decoder, ends that process
and no other."""
import json
import os
import subprocess
import sys
import weakref
from collections import deque
from contextlib import suppress
from itertools import cycle
from multiprocessing.spawn import get_executable
from typing import BinaryIO, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from dan_mm.errors import describe
from .images import MAX_PIXELS, InputImage, decode_image, read_image, read_size

# Above what the process takes before
MAX_MEMORY = 1_350_000_000  # bytes
MAX_SECONDS = 18  # for an image or a frame
# Images and videos that are decoded before they are asked for
AHEAD = 1
MAX_PATH = 4096  # characters; what is longer is no path on Linux
# The path of this process is that of the other one.
COMMAND = ('import json, sys; sys.path[:] = json.loads(sys.argv[1]); '
           'from dan_mm.reading.reader import serve; serve()')


def read_any(path: str,
             is_video: bool,
             content: Optional[bytes] = None) -> Iterator[InputImage]:
    """Read an image or a video, or decode the content of an image; what is
    wrong becomes an error of it."""
    try:
        if is_video:
            from .videos import read_video
            yield from read_video(path)
        elif content is not None:
            yield InputImage(decode_image(content, path), path)
        else:
            yield InputImage(read_image(path), path)
    except ModuleNotFoundError:
        yield InputImage(
            None,
            path,
            error=f'The video {path} cannot be read: PyAV is missing. Run '
            '`pip install av`.')
    except MemoryError:
        yield InputImage(
            None,
            path,
            error=f'{path} cannot be read: it takes too much memory. Shrink '
            'it.')
    except Exception as error:
        yield InputImage(None, path, error=describe(error))


def read_sizes(path: str) -> Iterator[tuple]:
    """Read the width and height of an image."""
    yield read_size(path)


def copy_sound(path: str, source: str, target: str) -> Iterator[None]:
    """See :func:`dan_mm.reading.videos.add_sound`."""
    from .videos import add_sound
    yield from add_sound(path, source, target)


JOBS = dict(
    read=read_any, decode=read_any, read_size=read_sizes, add_sound=copy_sound)


class MediaReader:
    """Read images and videos in processes of their own, which start when they
    are needed first and end with this object.

    On Linux, an image or a frame takes at most 1.4 GB and 18 s there; other
    systems bound the time, Windows nothing. Threads may share a reader.

    Args:
        workers (int): How many processes. Defaults to 1.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._idle: List[_Process] = []
        # A generator that is left gives its processes back later.
        weakref.finalize(self, _close, self._idle)

    def read(self, files: Sequence[Tuple[str, bool]]) -> Iterator[InputImage]:
        """Read files, in order.

        Args:
            files (Sequence[tuple[str, bool]]): Each path, and whether it is
                that of a video.

        Yields:
            InputImage: The images and frames. What can't be read has an
            error, and stops no other.
        """
        # Two long jobs and their answers would fill the pipes, and both
        # processes would wait.
        jobs = [('read', path[:MAX_PATH + 1], is_video)
                for path, is_video in files]
        last = None
        for job, item in self._run(jobs):
            _, path, is_video = job
            if isinstance(item, str):
                if job is last and not is_video:
                    continue  # it ended after the image was read
                item = InputImage(
                    None,
                    path,
                    error=f'{path} cannot be read: {item}. Convert or shrink '
                    'it.')
            last = job
            yield item
            del item

    def decode(self, content: bytes, name: str) -> InputImage:
        """Decode the content of an image file that is in memory.

        Args:
            content (bytes): All of the file.
            name (str): What messages call it.

        Returns:
            InputImage: The image, of that path. What is wrong with it is its
            error.
        """
        [(_, item), *_] = self._run([('decode', name, False, content)])
        if isinstance(item, str):
            error = f'{name} cannot be read: {item}. Convert or shrink it.'
            item = InputImage(None, name, error=error)
        return item

    def read_size(self, path: str) -> Tuple[int, int]:
        """See :func:`dan_mm.reading.images.read_size`.

        Raises:
            ValueError: If that fails.
        """
        [(_, item)] = self._run([('read_size', path)])
        if isinstance(item, str):
            raise ValueError(item)
        return tuple(item)

    def add_sound(self, path: str, source: str, target: str) -> None:
        """See :func:`dan_mm.reading.videos.add_sound`.

        Raises:
            OSError: If that fails.
        """
        for _, item in self._run([('add_sound', path, source, target)]):
            if isinstance(item, str):
                raise OSError(item)

    def _run(self, jobs: Sequence[tuple]) -> Iterator[tuple]:
        processes = [self._take() for _ in range(min(self.workers, len(jobs)))]
        turns, waiting = cycle(processes), iter(jobs)
        ahead = deque()
        try:
            while True:
                while len(ahead) < (1 + AHEAD) * len(processes):
                    job = next(waiting, None)
                    if job is None:
                        break
                    process = next(turns)
                    process.submit(job)
                    ahead.append((process, job))
                if not ahead:
                    break
                process, job = ahead.popleft()
                for item in process.results():
                    yield job, item
                    del item
        finally:
            for process in processes:
                if process.jobs:
                    process.end()
                else:
                    self._idle.append(process)

    def _take(self) -> '_Process':
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                process = self._idle.pop()
                # A fork has the pipes of its parent.
                if (process.owner == os.getpid()
                        and process.process.poll() is None):
                    return process
        return _Process()


def _close(processes: List['_Process']) -> None:
    for process in processes:
        process.end()


class _Process:
    """The other process, seen from this one. It is started again when it has
    ended."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.jobs = deque()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                get_executable(),
                '-I',
                '-X',
                f'utf8={sys.flags.utf8_mode}',
                '-c',
                COMMAND,
                # Python skips paths of other types.
                json.dumps(
                    [path for path in sys.path if isinstance(path, str)])
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Threads of OpenBLAS take memory, and so do large blocks that the
            # C library keeps, which the next image would lack.
            env=dict(
                os.environ,
                OPENBLAS_NUM_THREADS='1',
                OPENCV_IO_MAX_IMAGE_PIXELS=str(MAX_PIXELS),
                MALLOC_MMAP_THRESHOLD_=str(2**20)))

    def submit(self, job: tuple) -> None:
        self.jobs.append(job)
        self._send(job)

    def _send(self, job: tuple) -> None:
        # It may have ended, which is seen where its results are read.
        content = b''
        if job[0] == 'decode':
            *rest, content = job
            job = (*rest, len(content))
        with suppress(OSError):
            self.process.stdin.write(json.dumps(job).encode() + b'\n')
            self.process.stdin.write(content)
            self.process.stdin.flush()

    def results(self) -> Iterator:
        """Yield what the first job gives, and at last a string if the process
        ended on it."""
        while True:
            reply = self._receive()
            if reply is None:
                break
            if reply == 'done':
                self.jobs.popleft()
                return
            yield reply
            del reply  # a large image, before the next one comes
        self.jobs.popleft()
        yield self._reason()
        self.start()
        for job in self.jobs:
            self._send(job)

    def _receive(self):
        """Get a reply, or None if the process has ended."""
        out = self.process.stdout
        line = out.readline()
        if not line.endswith(b'\n'):
            return None
        reply = json.loads(line)
        if not isinstance(reply, dict):
            return reply
        if reply['img'] is not None:
            img = np.empty(reply['img'], np.uint8)
            view = memoryview(img).cast('B')
            while view:
                size = out.readinto(view)
                if not size:
                    return None
                view = view[size:]
            reply['img'] = img
        return InputImage(**reply)

    def _reason(self) -> str:
        import signal
        status = self.process.wait()
        self.end()
        if -status == getattr(signal, 'SIGALRM', None):
            return f'it takes more than {MAX_SECONDS} s'
        return 'it takes too much memory or crashes its decoder'

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in self.process.stdin, self.process.stdout:
            with suppress(OSError):
                pipe.close()


def serve() -> None:
    """Do the jobs that come in, until there are no more. It is what the other
    process runs."""
    import signal

    # Ctrl-C goes to all processes of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The process that started this one may ignore or block it.
    if hasattr(signal, 'SIGALRM'):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    replies = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # whatever a library prints
    _limit_memory()
    for line in sys.stdin.buffer:
        name, *arguments = json.loads(line)
        if name == 'decode':
            arguments[-1] = sys.stdin.buffer.read(arguments[-1])
        results = JOBS[name](*arguments)
        while True:
            item = None  # a large image, before the next one comes
            # Writing waits for the other process, which may take its time.
            _set_alarm(MAX_SECONDS)
            try:
                item = next(results, 'done')
            except Exception as error:
                _send(replies, describe(error))
                item = 'done'
            _set_alarm(0)
            if item is not None:
                _send(replies, item)
            if item == 'done':
                break


def _send(replies: BinaryIO, item) -> None:
    img = None
    if isinstance(item, InputImage):
        img = item.img
        item = item._replace(img=None if img is None else img.shape)._asdict()
    replies.write(json.dumps(item).encode() + b'\n')
    if img is not None:
        replies.write(img.data)
    replies.flush()


def _set_alarm(seconds: int) -> None:
    import signal
    if hasattr(signal, 'alarm'):
        signal.alarm(seconds)


def _limit_memory() -> None:
    if sys.platform != 'linux':
        return
    import resource
    with open('/proc/self/status') as file:
        used = next(
            int(line.split()[1]) for line in file
            if line.startswith('VmData'))  # kB
    limit = 1024 * used + MAX_MEMORY
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
