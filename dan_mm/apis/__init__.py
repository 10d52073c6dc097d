# Copyright (c) dan_mm contributors. All rights reserved.
from .drawing import draw_faces
from .faces import Face, FaceDetector
from .find_model import find_model
from .inferencer import FaceResult, FERInferencer, ImageResult
from .model_index import register_model_index

__all__ = [
    'FERInferencer', 'Face', 'FaceDetector', 'FaceResult', 'ImageResult',
    'draw_faces', 'find_model', 'register_model_index'
]
