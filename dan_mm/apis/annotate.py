# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
import warnings
from typing import Optional, Sequence, Set

import cv2
import numpy as np

from dan_mm.datasets.loading import prepare_image
from dan_mm.files import check_tree, partial_path, write_bytes
from dan_mm.reading import InputImage, MediaReader, VideoWriter
from .drawing import draw_faces
from .inferencer import ImageResult
from .media import Source

# Images with other extensions become PNG.
IMAGE_FILES = '.jpg', '.jpeg', '.png'
VIDEO_FILE = '.mp4'


class AnnotatedWriter:
    """Write images and videos with the faces drawn into them to the folder
    ``out``, in the tree of the inputs. Videos keep their times and their
    sound; frames whose longer side has more than ``max_side`` pixels are
    shrunk.

    It is a context manager: a video is complete when it ends. OSError is
    raised if the folder can't be written to, ValueError if it is in one of the
    inputs, of which ``sources`` are all files, or has one.
    """

    def __init__(self,
                 out: str,
                 inputs: Sequence[Source],
                 sources: Sequence[Source],
                 max_side: Optional[int] = None) -> None:
        self.out = out
        self.max_side = max_side
        self.roots = [
            osp.abspath(item) for item in inputs
            if isinstance(item, str) and osp.isdir(item)
        ]
        self.taken: Set[str] = set()
        self.number = 0
        self.video: Optional[VideoWriter] = None
        self.source: Optional[str] = None
        files = [item for item in sources if isinstance(item, str)]
        self.folders = {
            osp.dirname(osp.join(out, self._relative(path)))
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
        elif self.video is not None:
            self.video.abort()
            os.remove(self.partial)

    def write(self, image: InputImage, result: ImageResult) -> None:
        """Draw the faces of an image or frame, and write it, or raise
        OSError."""
        if image.img is None:
            return
        img = draw_faces(image.img, result.faces)
        if image.frame is None:
            self._close_video()
            path = self._path(image.path, None)
            write_bytes(path, cv2.imencode(osp.splitext(path)[1], img)[1])
        else:
            if self.max_side:
                img, _ = prepare_image(img, self.max_side)
            self._write_frame(image, img)

    def _relative(self, source: str) -> str:
        """Get the place of a source in the new tree."""
        for root in self.roots[::-1]:
            if osp.abspath(source).startswith(osp.join(root, '')):
                return osp.relpath(source, root)
        return osp.basename(source)

    def _path(self, source: Optional[str], extension: Optional[str]) -> str:
        """Choose the path of a result, another one for each source."""
        if source is None:
            self.number += 1
            source = f'image{self.number}.png'
        stem, own = osp.splitext(self._relative(source))
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
        if (self.video is None or image.path != self.source
                or image.frame == 0):
            self._close_video()
            self.source = image.path
            self.target = self._path(image.path, VIDEO_FILE)
            self.partial = partial_path(self.target)
            self.video = VideoWriter(self.partial, *img.shape[1::-1])
        if img.shape[1::-1] != self.video.size:
            img = cv2.resize(img, self.video.size)
        self.video.write(img, image.time, image.duration)

    def _close_video(self) -> None:
        if self.video is None:
            return
        video, self.video = self.video, None
        video.close()
        if osp.isfile(self.source):
            self._add_sound()
        os.replace(self.partial, self.target)

    def _add_sound(self) -> None:
        both = self.partial.replace('.partial', '.sound.partial')
        try:
            MediaReader().add_sound(self.partial, self.source, both)
        except OSError as error:
            warnings.warn(f'{self.target} has no sound: that of {self.source} '
                          f'cannot be copied ({error}).')
        else:
            # Without sound, there is none.
            if osp.exists(both):
                os.replace(both, self.partial)
        finally:
            if osp.exists(both):
                os.remove(both)
