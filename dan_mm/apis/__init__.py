# Copyright (c) dan_mm contributors. All rights reserved.
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drawing import draw_faces
    from .faces import Face, FaceDetector
    from .found_model import find_model
    from .inferencer import FaceResult, FERInferencer, ImageResult
    from .model_index import register_model_index

# Imported when they are used first: export folders run where neither PyTorch
# nor MMPretrain is installed.
_PLACES = dict(
    FERInferencer='inferencer',
    Face='faces',
    FaceDetector='faces',
    FaceResult='inferencer',
    ImageResult='inferencer',
    draw_faces='drawing',
    find_model='found_model',
    register_model_index='model_index')


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_PLACES[name]}', __name__), name)


__all__ = [
    'FERInferencer', 'Face', 'FaceDetector', 'FaceResult', 'ImageResult',
    'draw_faces', 'find_model', 'register_model_index'
]
