# Copyright (c) dan_mm contributors. All rights reserved.
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Callable, List, NamedTuple, Optional

from dan_mm.reading import InputImage, MediaReader
from .inferencer import FERInferencer, ImageResult
from .media import MAX_BATCH


class _File(NamedTuple):
    """The content of an image file, and who waits for its result."""
    content: bytes
    name: str
    options: tuple
    future: Future


class _Image(NamedTuple):
    """A decoded image, and who waits for its result."""
    image: InputImage
    options: tuple
    future: Future


class Batcher:
    """Answer the images of many callers together.

    Files are decoded side by side, within the limits of
    :class:`dan_mm.reading.MediaReader`. What has been decoded when the
    inferencer is free shares a batch. Nobody waits for images that nobody has
    given.

    Args:
        inferencer (FERInferencer): Who answers, in a thread of its own.
        workers (int): How many files are decoded at once.
        max_wait (float): For how many seconds images wait for others that are
            being decoded. Defaults to 0.005.
        observe (Callable, optional): Called with the results of each batch.
            Defaults to None.
    """

    def __init__(
            self,
            inferencer: FERInferencer,
            workers: int,
            max_wait: float = 0.005,
            observe: Optional[Callable[[List[ImageResult]],
                                       None]] = None) -> None:
        self.inferencer = inferencer
        self.max_wait = max_wait
        self._observe = observe
        self._reader = MediaReader()
        self._files: SimpleQueue = SimpleQueue()
        self._decoded: List[_Image] = []
        self._pixels = 0  # of them
        self._coming = 0  # files that are not decoded yet
        self._changed = Condition()
        # A process that ends waits for no image.
        for target in [self._decode] * workers + [self._predict]:
            Thread(target=target, daemon=True).start()

    def submit(self,
               content: bytes,
               name: str,
               aligned: bool = False,
               embeddings: bool = False) -> 'Future[ImageResult]':
        """Take a file.

        Args:
            content (bytes): All of an image file.
            name (str): What the result calls it.
            aligned (bool): See :class:`FERInferencer`. Defaults to False.
            embeddings (bool): See there. Defaults to False.

        Returns:
            Future[ImageResult]: Its result, with an error if it can't be
            decoded. Cancelled, it takes no more work.
        """
        future: Future = Future()
        with self._changed:
            self._coming += 1
        self._files.put(_File(content, name, (aligned, embeddings), future))
        return future

    def _decode(self) -> None:
        while True:
            content, name, options, future = self._files.get()
            image = None
            if not future.cancelled():
                try:
                    image = self._reader.decode(content, name)
                except Exception as error:
                    # Such as no memory for another process
                    image = InputImage(None, name, error=str(error))
            with self._changed:
                # Memory is for a batch and what comes next.
                self._changed.wait_for(lambda: self._pixels < MAX_BATCH)
                self._coming -= 1
                if image is not None and image.img is not None:
                    self._decoded.append(_Image(image, options, future))
                    self._pixels += image.img[..., 0].size
                self._changed.notify_all()
            if image is not None and image.img is None and (
                    future.set_running_or_notify_cancel()):
                future.set_result(ImageResult(name, error=image.error))
            del content, image, future  # while it waits

    def _take(self) -> List[_Image]:
        """Take images of the same options."""
        size = self.inferencer.batch_size
        with self._changed:
            self._changed.wait_for(lambda: self._decoded)
            self._changed.wait_for(
                lambda: self._pixels >= MAX_BATCH or len(self._decoded) >= size
                or not self._coming, self.max_wait)
            options = self._decoded[0].options
            taken: List[_Image] = []
            kept: List[_Image] = []
            for one in self._decoded:
                fits = one.options == options and len(taken) < size
                (taken if fits else kept).append(one)
            self._decoded = kept
            self._pixels -= sum(one.image.img[..., 0].size for one in taken)
            self._changed.notify_all()
        return [
            one for one in taken if one.future.set_running_or_notify_cancel()
        ]

    def _predict(self) -> None:
        while True:
            taken = self._take()
            if not taken:
                continue
            aligned, embeddings = taken[0].options
            try:
                results = self.inferencer([one.image for one in taken],
                                          aligned=aligned,
                                          embeddings=embeddings)
            except Exception as error:
                for one in taken:
                    one.future.set_exception(error)
            else:
                if self._observe:
                    self._observe(results)
                for one, result in zip(taken, results):
                    one.future.set_result(result)
            del taken
