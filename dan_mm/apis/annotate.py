# Copyright (c) dan_mm contributors. All rights reserved.
import errno
import os
import os.path as osp
from contextlib import contextmanager, suppress
from typing import Iterator, List, Optional, Sequence, Set

import cv2
import numpy as np

from dan_mm.errors import describe
from dan_mm.files import check_tree, partial_path, write_bytes
from dan_mm.imaging import prepare_image
from dan_mm.reading import InputImage, MediaReader
from dan_mm.reading.videos import VideoWriter
from .drawing import draw_faces
from .inferencer import ImageResult
from .media import Source, place_in_tree

# Images with other extensions become PNG.
IMAGE_FILES = '.jpg', '.jpeg', '.png'
VIDEO_FILE = '.mp4'
MAX_SIDE = 16384  # pixels; x264 takes no more
# What a name or a video does to itself, and not to the disk
OWN_FAILURES = errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL


class AnnotatedWriter:
    """Write images and videos with the faces drawn into them to the folder
    ``out``, in the tree of the inputs. Videos keep their times and their
    sound; frames whose longer side has more than ``max_side`` pixels are
    shrunk.

    It is a context manager: a video is complete when it ends.

    Args:
        out (str): The folder to write. Files of the same names are replaced.
        inputs (Sequence): What was given: the paths in a folder stay.
        sources (Sequence): All files of that.
        max_side (int): Frames whose longer side has more pixels are shrunk to
            that. Defaults to 16384, the most that can be written.

    Attributes:
        errors (list[str]): What of images and videos cannot be written; it
            stops no other.

    Raises:
        OSError: If the folder can't be written to.
        ValueError: If it is in one of the inputs, or has one.
    """

    def __init__(self,
                 out: str,
                 inputs: Sequence[Source],
                 sources: Sequence[Source],
                 max_side: int = MAX_SIDE) -> None:
        self.out = out
        self.max_side = max_side
        self.roots = [
            osp.abspath(item) for item in inputs
            if isinstance(item, str) and osp.isdir(item)
        ]
        self.errors: List[str] = []
        self.failed = False
        self.taken: Set[str] = set()
        self.number = 0
        self.video: Optional[VideoWriter] = None
        self.source: Optional[str] = None
        files = [item for item in sources if isinstance(item, str)]
        self.folders = {
            osp.dirname(osp.join(out, place_in_tree(path, self.roots)))
            for path in files
        } | {out}  # yapf: disable
        check_tree(out, [*self.roots, *files],
                   [osp.join(folder, '') for folder in self.folders])

    def writes(self, path: str) -> bool:
        """Tell if a file may be one of those to write, or the folder."""
        place = osp.realpath(path)
        if osp.join(osp.realpath(self.out),
                    '').startswith(osp.join(place, '')):
            return True
        extension = osp.splitext(place)[1].lower()
        return extension in (*IMAGE_FILES,
                             VIDEO_FILE) and (osp.dirname(place) in map(
                                 osp.realpath, self.folders))

    def __enter__(self) -> 'AnnotatedWriter':
        return self

    def __exit__(self, kind: Optional[type], *error) -> None:
        # Who interrupts a camera wants what there is.
        if kind is None or kind is KeyboardInterrupt:
            self._close_video()
        else:
            self._drop_video()

    def write(self, image: InputImage, result: ImageResult) -> None:
        """Draw the faces of an image or frame, and write it.

        Args:
            image (InputImage): The image.
            result (ImageResult): Its faces.

        Raises:
            OSError: If the disk is full, or the like.
        """
        if image.img is None:
            return
        if image.path != self.source or not image.frame:
            self._close_video()
            self.source, self.failed = image.path, False
        if self.failed:
            return
        with self._own_failure():
            img = draw_faces(image.img, result.faces)
            if image.frame is None:
                path = self._path(image.path, None)
                write_bytes(path, cv2.imencode(osp.splitext(path)[1], img)[1])
            else:
                self._write_frame(image, prepare_image(img, self.max_side)[0])

    @contextmanager
    def _own_failure(self) -> Iterator[None]:
        """Keep what fails on one image or video from stopping others."""
        try:
            yield
        except Exception as error:
            self._drop_video()
            if (isinstance(error, OSError)
                    and error.errno not in OWN_FAILURES):
                raise
            self.failed = True
            self.errors.append(f'{self.source or "An array"} cannot be '
                               f'annotated: {describe(error)}')

    def _path(self, source: Optional[str], extension: Optional[str]) -> str:
        """Choose the path of a result, another one for each source."""
        if source is None:
            self.number += 1
            source = f'image{self.number}.png'
        stem, own = osp.splitext(place_in_tree(source, self.roots))
        if extension is None:
            extension = own if own.lower() in IMAGE_FILES else '.png'
        path = osp.join(self.out, stem + extension)
        number = 1
        while path in self.taken:
            number += 1
            path = osp.join(self.out, f'{stem}-{number}{extension}')
        self.taken.add(path)
        os.makedirs(osp.dirname(path), exist_ok=True)
        return path

    def _write_frame(self, image: InputImage, img: np.ndarray) -> None:
        if self.video is None:
            self.target = self._path(image.path, VIDEO_FILE)
            self.partial = partial_path(self.target)
            self.video = VideoWriter(self.partial, *img.shape[1::-1])
        if img.shape[1::-1] != self.video.size:
            img = cv2.resize(img, self.video.size)
        self.video.write(img, image.time, image.duration)

    def _close_video(self) -> None:
        if self.video is None:
            return
        with self._own_failure():
            self.video.close()
            if osp.isfile(self.source):
                self._add_sound()
            os.replace(self.partial, self.target)
        self.video = None

    def _drop_video(self) -> None:
        if self.video is None:
            return
        self.video.abort()
        self.video = None
        with suppress(OSError):
            os.remove(self.partial)

    def _add_sound(self) -> None:
        both = self.partial.replace('.partial', '.sound.partial')
        try:
            MediaReader().add_sound(self.partial, self.source, both)
        except OSError as error:
            self.errors.append(f'{self.target} has no sound: that of '
                               f'{self.source} cannot be copied ({error}).')
        else:
            # Without sound, there is none.
            if osp.exists(both):
                os.replace(both, self.partial)
        finally:
            if osp.exists(both):
                os.remove(both)
