# Copyright (c) dan_mm contributors. All rights reserved.
import os
import os.path as osp
from typing import Optional, Sequence, Set, Tuple

import cv2
import numpy as np

from dan_mm.datasets.loading import prepare_image
from dan_mm.files import check_tree, partial_path, write_bytes
from .drawing import draw_faces
from .inferencer import PictureResult
from .media import Picture, Source, open_video

# The extensions of videos by their codecs
VIDEO_FILES = dict(mp4v='.mp4', VP80='.webm')
# Those of images; others become the last
IMAGE_FILES = '.jpg', '.jpeg', '.png'


class AnnotatedWriter:
    """Write pictures and videos with the faces drawn into them, in the tree
    of the inputs. A context manager: a video is whole when it ends.

    Args:
        out (str): The folder to write. What is there of the same names is
            replaced.
        inputs (Sequence): What was given: the paths in a folder stay.
        sources (Sequence): All files of that.
        codec (str): The codec of videos: ``'mp4v'``, or ``'VP80'``, which
            browsers play. Defaults to ``'mp4v'``.
        max_side (int, optional): Frames whose longer side has more pixels are
            shrunk to that. Defaults to None, any size.

    Raises:
        OSError: If the folder can't be written to.
        ValueError: If it is in one of the inputs, or has one.
    """

    def __init__(self,
                 out: str,
                 inputs: Sequence[Source],
                 sources: Sequence[Source],
                 codec: str = 'mp4v',
                 max_side: Optional[int] = None) -> None:
        self.out = out
        self.codec = codec
        self.max_side = max_side
        self.roots = [
            osp.abspath(item) for item in inputs
            if isinstance(item, str) and osp.isdir(item)
        ]
        self.taken: Set[str] = set()
        self.number = 0
        self.video: Optional[cv2.VideoWriter] = None
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
        return extension in (*IMAGE_FILES, *VIDEO_FILES.values()) and (
            osp.dirname(place) in map(osp.realpath, self.folders))

    def __enter__(self) -> 'AnnotatedWriter':
        return self

    def __exit__(self, kind: Optional[type], *error) -> None:
        # Who interrupts a camera wants what there is.
        if kind is None or kind is KeyboardInterrupt:
            self._close_video()
        elif self.video is not None:
            self.video.release()
            os.remove(self.partial)

    def write(self, picture: Picture, result: PictureResult) -> None:
        """Draw the faces of a picture or frame, and write it.

        Args:
            picture (Picture): The picture.
            result (PictureResult): Its faces.

        Raises:
            OSError: If it can't be written.
        """
        if picture.img is None:
            # Broken frames keep their time.
            if picture.frame and picture.path == self.source:
                self._write_frame(picture, self.last)
            return
        img = draw_faces(picture.img, result.faces)
        if picture.frame is None:
            self._close_video()
            path = self._path(picture.path, None)
            write_bytes(path, cv2.imencode(osp.splitext(path)[1], img)[1])
        else:
            if self.max_side:
                img, _ = prepare_image(img, self.max_side)
            self._write_frame(picture, img)

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
            source = f'picture{self.number}.png'
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

    def _write_frame(self, picture: Picture, img: np.ndarray) -> None:
        if (self.video is None or picture.path != self.source
                or not picture.frame):
            self._close_video()
            self._open_video(picture, img.shape[1::-1])
        if img.shape[1::-1] != self.size:
            img = cv2.resize(img, self.size)
        self.video.write(img)
        self.last = img

    def _open_video(self, picture: Picture, size: Tuple[int, int]) -> None:
        self.source, self.size = picture.path, size
        self.target = self._path(picture.path, VIDEO_FILES[self.codec])
        rate = 25.
        if osp.isfile(str(picture.path)):
            video = open_video(picture.path)
            rate = video.get(cv2.CAP_PROP_FPS)
            video.release()
        rate = rate if 1 <= rate <= 240 else 25.
        self.partial = partial_path(self.target)
        self.video = cv2.VideoWriter(self.partial,
                                     cv2.VideoWriter_fourcc(*self.codec), rate,
                                     size)
        if not self.video.isOpened():
            self.video = None
            raise OSError(f'Can not write the video {self.target}. Check the '
                          'folder, its permissions and the space on the disk.')

    def _close_video(self) -> None:
        if self.video is None:
            return
        self.video.release()
        self.video = self.source = None
        check = cv2.VideoCapture(self.partial)
        whole = check.isOpened() and check.read()[0]
        check.release()
        if not whole:
            if osp.exists(self.partial):
                os.remove(self.partial)
            raise OSError(f'The video {self.target} could not be written '
                          'whole. Check the space on the disk.')
        os.replace(self.partial, self.target)
