# Copyright (c) dan_mm contributors. All rights reserved.
"""The folder that ``dan-mm export`` writes: the ONNX files of a classifier and
of a face detector, and a manifest with what they expect and their digests."""
import hashlib
import json
import os.path as osp
from typing import Any, Dict, List, NamedTuple, Tuple

from dan_mm.imaging import FaceAligner
from dan_mm.reading.images import check_regular

MANIFEST = 'manifest.json'
FORMAT = 1  # of the folder; another one is refused
PRECISIONS = 'float32', 'int8'
MAX_MANIFEST, MAX_MODEL = 2**17, 2**30  # bytes
# The key of the manifest in the metadata of the ONNX files
METADATA = 'dan_mm'


class ExportFolder(NamedTuple):
    """An export folder whose files are complete and unchanged.

    Args:
        path (str): The folder.
        about (dict): What its models expect: see :func:`read_export`.
        models (dict[str, bytes]): The content of ``classifier.onnx`` and
            ``detector.onnx``, in the precision that was asked for.
    """
    path: str
    about: Dict[str, Any]
    models: Dict[str, bytes]


def is_export(path: Any) -> bool:
    """Whether a path is an export folder, or what is left of one."""
    return any(
        osp.isfile(osp.join(str(path), name))
        for name in (MANIFEST, 'classifier.onnx', 'detector.onnx'))


def model_file(name: str, precision: str) -> str:
    """The name of the file of a model."""
    return f'{name}.onnx' if precision == 'float32' else (
        f'{name}_{precision}.onnx')


def list_files(path: str) -> List[Tuple[str, int]]:
    """List the models of an export folder, with their sizes in bytes."""
    names = [
        model_file(name, precision) for name in ('classifier', 'detector')
        for precision in PRECISIONS
    ]
    return [(name, osp.getsize(osp.join(path, name))) for name in names
            if osp.isfile(osp.join(path, name))]


def digest(content: bytes) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()


def encode(about: dict) -> str:
    """Write what models expect as text, always the same for the same."""
    return json.dumps(about, sort_keys=True, ensure_ascii=True)


def read_export(path: str, precision: str = 'float32') -> ExportFolder:
    """Read an export folder, and check it before anything of it runs.

    Args:
        path (str): The folder.
        precision (str): 'float32' or 'int8'. Defaults to 'float32'.

    Returns:
        ExportFolder: The folder. ``about`` has ``classes``, ``alignment``,
        ``pipeline``, ``color_type``, ``channels``, ``dataset_name``,
        ``licence``, ``temperature`` and ``versions``.

    Raises:
        FileNotFoundError: If a file is missing, or the precision.
        ValueError: If it is of another version, or was edited.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Got precision='{precision}', expected one of "
                         f'{", ".join(PRECISIONS)}.')
    again = f'Run `dan-mm export MODEL {path}` again.'
    manifest = _read(osp.join(path, MANIFEST), MAX_MANIFEST, again)
    try:
        found = json.loads(manifest)
        version, about, files = (
            found[key] for key in ('format', 'about', 'files'))
        digests = {str(name): str(value) for name, value in files.items()}
    except (AttributeError, KeyError, RecursionError, TypeError,
            ValueError) as error:
        raise ValueError(f'{osp.join(path, MANIFEST)} is no manifest of an '
                         f'export folder. {again}') from error
    if version != FORMAT:
        raise ValueError(
            f'The export folder {path} has the format {version!r:.20}, '
            f'expected {FORMAT}. {again}')
    models = {}
    for name in 'classifier', 'detector':
        file = model_file(name, precision)
        if file not in digests:
            raise FileNotFoundError(
                f'The export folder {path} has no {file}: it was written '
                f'without {precision}. Run `dan-mm export` with --calibrate.')
        content = _read(osp.join(path, file), MAX_MODEL, again)
        if digest(content) != digests[file]:
            raise ValueError(f'{osp.join(path, file)} has changed since it '
                             f'was exported. {again}')
        models[f'{name}.onnx'] = content
    _check(about, osp.join(path, MANIFEST), again)
    return ExportFolder(path, about, models)


def _read(path: str, largest: int, again: str) -> bytes:
    try:
        status = check_regular(path, 'file')
        if status.st_size > largest:
            raise ValueError(f'{path} has {status.st_size} bytes, expected '
                             f'at most {largest}.')
        with open(path, 'rb') as file:
            return file.read(status.st_size)
    except FileNotFoundError:
        raise FileNotFoundError(f'The export folder {osp.dirname(path)} has '
                                f'no {osp.basename(path)}. {again}') from None


def _check(about: Any, path: str, again: str) -> None:
    """Check what the models expect, which is used here and not by them."""
    try:
        FaceAligner(**about['alignment'])
        classes = about['classes']
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError('no names of classes')
        if about['channels'] not in (1, 3):
            raise ValueError(f'{about["channels"]!r:.20} channels')
        for step in about['pipeline']:
            kind, size = step['type'], step['size']
            if kind not in ('resize', 'crop') or len(size) != 2 or not all(
                    type(side) is int and 1 <= side <= 4096 for side in size):
                raise ValueError(f'the step {step!r:.100}')
        for key in 'color_type', 'dataset_name', 'licence':
            if not isinstance(about[key], str):
                raise ValueError(f'the {key} {about[key]!r:.20}')
    except (ArithmeticError, AttributeError, KeyError, TypeError,
            ValueError) as error:
        raise ValueError(f'{path} cannot be used ({error}), expected what '
                         f'`dan-mm export` writes. {again}') from error
