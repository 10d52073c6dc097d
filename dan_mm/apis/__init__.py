# Copyright (c) dan_mm contributors. All rights reserved.
from importlib import import_module
from typing import Any

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

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_PLACES[name]}', __name__), name)
