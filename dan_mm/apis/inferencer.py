# Copyright (c) dan_mm contributors. All rights reserved.
import json
import logging
import os.path as osp
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from threading import Lock
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from dan_mm.errors import CheckpointLoadError, describe
from dan_mm.imaging import ALIGNMENT as ALIGNMENT_FILE
from dan_mm.imaging import FaceAligner
from dan_mm.onnx.folder import ExportFolder, is_export, read_export
from dan_mm.reading import InputImage, MediaReader
from .faces import Face, FaceDetector
from .media import Source, batches, expand, prefetch, read
from .orientation import find_faces, try_each
from .tracking import FaceFollower, FaceTracker

# What is longer is no face, and large after `ResizeEdge`.
MAX_RATIO = 8
# What `dan-mm align` writes, if nothing else is known
ALIGNMENT = dict(size=224, margin=0.1)
MAX_ALIGNMENT = 10_000  # characters of the file that says how
SYNTHETIC = ('This model knows synthetic faces only: what it says about '
             'photographs means nothing. Train one on photographs.')


def printable(text: str) -> str:
    """Escape what would do something to a terminal."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1]
                   for char in text)


def _rounded(face: Optional[Face]) -> Optional[Face]:
    """Round landmarks to 1/8 of a pixel: PyTorch and onnxruntime find ones
    that differ in the sixth digit, and warping goes by steps of 1/32."""
    return face and face._replace(keypoints=np.round(8 * face.keypoints) / 8)


@dataclass
class FaceResult:
    """The expression of a face.

    Args:
        scores (dict[str, float]): The probability of each class by its name.
        bbox (ndarray, optional): Left, top, right and bottom in pixels of the
            image, float32 of shape ``(4, )``. None for an aligned crop.
        score (float, optional): How sure the detector is, in [0, 1].
        keypoints (ndarray, optional): Left eye, right eye, nose tip, left and
            right corner of the mouth as seen with the face upright, in pixels,
            float32 of shape ``(5, 2)``.
        landmarks_plausible (bool, optional): False where the landmarks are not
            those of a face in any orientation; the scores mean little then.
        track (int, optional): The number of the face in its video, from 1,
            with smoothing.
        embedding (ndarray, optional): The features before the classifier, on
            request, float32 of shape ``(C, )``.
        attention_maps (ndarray, optional): What each head of DAN looks at in
            ``crop``, on request, float32 of shape ``(K, H, W)``.
        crop (ndarray, optional): The aligned face, with ``attention_maps``:
            BGR, uint8 of shape ``(height, width, 3)``.
    """
    scores: Dict[str, float]
    bbox: Optional[np.ndarray] = None
    score: Optional[float] = None
    keypoints: Optional[np.ndarray] = None
    landmarks_plausible: Optional[bool] = None
    track: Optional[int] = None
    embedding: Optional[np.ndarray] = None
    attention_maps: Optional[np.ndarray] = None
    crop: Optional[np.ndarray] = None

    @property
    def expression(self) -> str:
        """The class with the highest probability."""
        return max(self.scores, key=self.scores.get)

    def to_dict(self) -> dict:
        """Make plain data of it, for JSON, without the crop."""
        plain = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in vars(self).items()
            if value is not None and key != 'crop'
        }
        return dict(expression=self.expression, **plain)


@dataclass
class ImageResult:
    """The expressions of the faces of an image, or of a frame of a video.

    Args:
        path (str, optional): The file or the camera. None for an array.
        frame (int, optional): In a video, the number of the frame, from 0.
        time (float, optional): In a video, its time in seconds.
        faces (list[FaceResult]): The faces, those that the detector is most
            certain of first.
        error (str, optional): Why the image could not be read, or a face of
            it not be aligned.
    """
    path: Optional[str] = None
    frame: Optional[int] = None
    time: Optional[float] = None
    faces: List[FaceResult] = field(default_factory=list)
    error: Optional[str] = None

    def to_dict(self) -> dict:
        """Make plain data of it, for JSON."""
        plain = {
            key: getattr(self, key)
            for key in ('path', 'frame', 'time', 'error')
            if getattr(self, key) is not None
        }
        return dict(**plain, faces=[face.to_dict() for face in self.faces])


class FERInferencer:
    """Find the faces of images, videos and cameras, and tell their
    expressions.

    Faces are found by RetinaFace, aligned as the images were that the model
    was trained on, and classified, those of several images together.

    Args:
        model (str | PathLike, optional): The path of a checkpoint, of a work
            folder of ``tools/train.py`` or of a folder of ``dan-mm export``,
            which runs without PyTorch, or a name of the model index. Defaults
            to None, the model that is shipped with this package.
        config (str | PathLike, optional): The config of the model, which is
            code and runs. Defaults to None: the checkpoint describes its
            model. See :func:`find_model`.
        detector (FaceDetector, optional): Another detector of faces. Defaults
            to None, RetinaFace with MobileNetV1 x0.25, which is built when it
            is needed first.
        device (str, optional): Such as ``'cuda:0'``. Defaults to None, the
            first GPU, or the CPU.
        batch_size (int): How many images or frames, and how many times four
            faces, are taken at once. Defaults to 8.
        precision (str): 'float32' or 'int8' of an export folder. Defaults to
            'float32'.

    Attributes:
        classes (tuple[str]): The names of the classes.
        alignment (dict): How faces are aligned: see
            :class:`dan_mm.datasets.AlignFace`.
        about (str): What the model was trained on, and its licence.
        synthetic (bool): Whether the model knows synthetic faces only.

    Raises:
        FileNotFoundError: If the model or its config is not there.
        ValueError: If the checkpoint does not describe a model that may be
            built, or its weights or classes do not fit it.
        OSError: If the weights can't be read or downloaded.
        ImportError: If onnxruntime is missing for an export folder.

    Examples:
        >>> from dan_mm.apis import FERInferencer
        >>> inferencer = FERInferencer()
        >>> for face in inferencer('photograph.jpg')[0].faces:
        ...     print(face.expression, face.scores)
    """

    def __init__(self,
                 model: Union[str, PathLike, None] = None,
                 config: Union[str, PathLike, None] = None,
                 detector: Optional[FaceDetector] = None,
                 device: Optional[str] = None,
                 batch_size: int = 8,
                 precision: str = 'float32') -> None:
        if batch_size < 1:
            raise ValueError(f'Got batch_size={batch_size}, expected at '
                             'least 1.')
        self.export: Optional[ExportFolder] = None
        if model is not None and is_export(model):
            if config is not None:
                raise ValueError(f'Got the config {config} for the export '
                                 f'folder {model}, which needs none.')
            from dan_mm.onnx.runtime import ONNXClassifier
            self.export = read_export(str(model), precision)
            self._classifier = ONNXClassifier(self.export, device)
        elif precision != 'float32':
            raise ValueError(f"Got precision='{precision}' for a checkpoint, "
                             'expected an export folder. Run `dan-mm export` '
                             'with --calibrate.')
        else:
            try:
                from .torch_classifier import TorchClassifier
            except ModuleNotFoundError as error:
                raise ImportError(
                    f'{error.name} is missing, expected it for a checkpoint. '
                    'Install dan-mm with its requirements, or give a folder '
                    'of `dan-mm export`.') from error
            self._classifier = TorchClassifier(model, config, device)
        self.device = self._classifier.device
        self.batch_size = batch_size
        self._reader = MediaReader()
        self._lock = Lock()
        self.detector = detector
        self.classes = self._classifier.classes
        path, metainfo = self._classifier.path, self._classifier.metainfo
        self._check_classes(path)
        self._gray = metainfo.get('color_type') == 'grayscale'
        known = metainfo.get('alignment')
        try:
            self._aligner = FaceAligner(**(known or ALIGNMENT))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'The checkpoint {path} has the alignment {known!r:.100} '
                f'({error}), expected arguments of AlignFace.') from error
        self.alignment = self._aligner.settings
        size = self.alignment['size']
        width, height = (size, size) if isinstance(size, int) else size
        try:
            black = self._crop(np.zeros((height, width, 3), np.uint8), None)
        except ValueError as error:
            raise ValueError(f'The model of {path} cannot be used for a '
                             f'face: {error}.') from error
        self._classifier.try_crop(black)
        # Faces that are classified at once
        self._step = min(4 * batch_size, self._classifier.max_faces
                         or 4 * batch_size)
        name, licence = (
            printable(str(metainfo.get(key) or ''))[:200]
            for key in ('dataset_name', 'licence'))
        self.about = (
            f'This model was trained on {name or "unnamed data"}; licence of '
            f'the data: {licence or "unknown"}.')
        self.synthetic = name.startswith('synthface')
        logging.getLogger('dan_mm').info(self.about)
        if not known:
            warnings.warn('The checkpoint does not say how its faces were '
                          f'aligned: {ALIGNMENT} is taken, which may fit '
                          'badly. Align the training data with `dan-mm '
                          'align`.')

    def _check_classes(self, path: str) -> None:
        if len(set(self.classes)) < len(self.classes) or not all(
                name.isprintable() and len(name) <= 100
                for name in self.classes):
            raise ValueError(f'The checkpoint {path} has the classes '
                             f'{self.classes!r:.500}, expected different '
                             'names that can be printed.')

    def __call__(self,
                 inputs: Union[Source, Sequence[Source]],
                 aligned: bool = False,
                 embeddings: bool = False,
                 attention_maps: bool = False,
                 smoothing: Optional[float] = None,
                 every: int = 1) -> List[ImageResult]:
        """Tell the expressions of all faces.

        Args:
            inputs (str | PathLike | ndarray | Sequence): An image as an array
                (BGR, uint8 of shape ``(H, W, 3)``), the path of an image or a
                video, a folder with all its folders, or a list of these.
            aligned (bool): Whether the images are aligned crops of one face,
                which need no detector. Defaults to False.
            embeddings (bool): Whether to add the features before the
                classifier. Defaults to False.
            attention_maps (bool): Whether to add what each head of DAN looks
                at, and the aligned crops. Defaults to False.
            smoothing (float, optional): In a video, follow faces and average
                their scores over time: the weight of the past in [0, 1), such
                as 0.8. Defaults to None, each frame for itself.
            every (int): In a video, search faces in every n-th frame only, and
                follow them between: see
                :class:`dan_mm.apis.tracking.FaceFollower`. All frames are
                classified. Defaults to 1.

        Returns:
            list[ImageResult]: One for each image or frame, in order. What
            could not be read has an ``error``.

        Raises:
            FileNotFoundError: If a single input is not there.
            ImportError: If mmdet or mmcv's ops are needed and missing.
            TypeError: If an input is something else.
            ValueError: If a folder has no images, or a camera is given,
                which has no end.
        """
        if any(isinstance(source, int) for source in expand(inputs)):
            raise ValueError(f'Got the camera {inputs}, expected files. '
                             'Cameras are endless; use `stream(0)`.')
        results = self.stream_images(inputs, aligned, embeddings,
                                     attention_maps, smoothing, every)
        return [result for _, result in results]

    def stream(self, inputs: Union[Source, Sequence[Source]],
               **options) -> Iterator[ImageResult]:
        """Tell expressions while images come: of a video of any length, or
        a camera, given by its number.

        Args and errors are those of :meth:`__call__`.

        Yields:
            ImageResult: One for each image or frame, in order.
        """
        for _, result in self.stream_images(inputs, **options):
            yield result

    def stream_images(
            self,
            inputs: Union[Source, Sequence[Source]],
            aligned: bool = False,
            embeddings: bool = False,
            attention_maps: bool = False,
            smoothing: Optional[float] = None,
            every: int = 1) -> Iterator[Tuple[InputImage, ImageResult]]:
        """The same as :meth:`stream`, with the images.

        Yields:
            tuple[InputImage, ImageResult]: The image, and its faces.
        """
        if self.synthetic:
            warnings.warn(SYNTHETIC)
        if smoothing is not None:
            FaceTracker(smoothing)  # refuses a value out of range
        follower = FaceFollower(every)
        sources = expand(inputs)
        if aligned:
            self._compare_alignment(inputs)
        tracker, video = None, None
        # A camera must not wait for frames to come.
        camera = any(isinstance(source, int) for source in sources)
        size = 1 if camera else self.batch_size
        taken = batches(read(sources, self._reader), size)
        for batch in taken if camera else prefetch(taken):
            results = self._predict(batch, aligned, embeddings, attention_maps,
                                    follower)
            for image, result in zip(batch, results):
                if smoothing is not None and image.frame is not None:
                    if image.path != video or image.frame == 0:
                        tracker, video = FaceTracker(smoothing), image.path
                    self._smooth(tracker, result)
                yield image, result
            del batch, image  # before the next images come

    def _compare_alignment(self, inputs) -> None:
        """Warn of folders whose faces were aligned in another way."""
        for item in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
            path = osp.join(str(item), ALIGNMENT_FILE)
            if isinstance(item, (str, PathLike)) and osp.isfile(path):
                try:
                    with open(path, encoding='utf-8') as file:
                        found = json.loads(file.read(MAX_ALIGNMENT))
                except (OSError, RecursionError, ValueError):
                    found = 'something that cannot be read'
                if found != self.alignment:
                    warnings.warn(
                        f'{path} says that its faces were aligned with '
                        f'{found}, the model expects {self.alignment}. Align '
                        'them with `dan-mm align --like MODEL`.')

    def _predict(self, batch: List[InputImage], aligned: bool,
                 embeddings: bool, attention_maps: bool,
                 follower: FaceFollower) -> List[ImageResult]:
        results = [
            ImageResult(image.path, image.frame, image.time, [], image.error)
            for image in batch
        ]
        whole = [(image.img, result) for image, result in zip(batch, results)
                 if image.img is not None]
        if aligned:
            found = [[None]] * len(whole)
        else:
            with self._lock:  # only one thread builds it
                self.detector = self.detector or FaceDetector(
                    device=self.device, export=self.export)
            find = partial(try_each, partial(find_faces, self.detector))
            found = follower(
                [image for image in batch if image.img is not None], find)
        faces = []
        for (img, result), several in zip(whole, found):
            if isinstance(several, Exception):
                result.error = (f'{result.path or "An array"} cannot be '
                                f'searched for faces: {describe(several)}')
            else:
                faces += [(img, _rounded(face), result) for face in several]
        for start in range(0, len(faces), self._step):
            part = faces[start:start + self._step]
            crops, whole = [], []
            for img, face, result in part:
                try:
                    crops.append(self._crop(img, face))
                    whole.append((face, result))
                except Exception as error:
                    where = 'The crop' if face is None else (
                        f'A face at {face.bbox.tolist()}')
                    result.error = (f'{where} cannot be aligned: '
                                    f'{describe(error)}')
            classified = try_each(
                lambda one: self._classify(one, embeddings, attention_maps),
                crops)
            for (face, result), one in zip(whole, classified):
                if isinstance(one, Exception):
                    result.error = (f'A face of {result.path or "an array"} '
                                    f'cannot be classified: {describe(one)}')
                    continue
                if face is not None:
                    one = replace(one, **face._asdict())
                result.faces.append(one)
        return results

    def _crop(self, img: np.ndarray, face: Optional[Face]) -> np.ndarray:
        if face is not None:
            img = self._aligner.align(img, face.keypoints)
        height, width = img.shape[:2]
        if max(height, width) > MAX_RATIO * min(height, width):
            raise ValueError(f'it has {width}x{height} pixels, expected sides '
                             f'of a ratio up to {MAX_RATIO}')
        if self._gray:
            img = cv2.cvtColor(
                cv2.cvtColor(img, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return img

    def _classify(self, crops: List[np.ndarray], embeddings: bool,
                  attention_maps: bool) -> List[FaceResult]:
        if not crops:
            return []
        found = self._classifier(crops, embeddings, attention_maps)
        if not np.isfinite(found.scores).all():
            raise CheckpointLoadError(
                f'The model gives the scores {found.scores.tolist()!r:.200}, '
                'expected numbers. Take another checkpoint.')
        return [
            FaceResult(
                dict(zip(self.classes, scores.tolist())),
                embedding=None
                if found.embeddings is None else found.embeddings[i],
                attention_maps=None
                if found.attention_maps is None else found.attention_maps[i],
                crop=crops[i] if attention_maps else None)
            for i, scores in enumerate(found.scores)
        ]

    def _smooth(self, tracker: FaceTracker, result: ImageResult) -> None:
        scores = [
            np.array(list(face.scores.values()), np.float32)
            for face in result.faces
        ]
        # An aligned crop is one face, always at the same place.
        place = np.array([0, 0, 1, 1], np.float32)
        numbers = tracker.update([
            place if face.bbox is None else face.bbox for face in result.faces
        ], scores)
        for face, number in zip(result.faces, numbers):
            face.track = number
            smoothed = tracker.tracks[number].scores.tolist()
            face.scores = dict(zip(self.classes, smoothed))
