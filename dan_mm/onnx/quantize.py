# Copyright (c) dan_mm contributors. All rights reserved.
"""Quantize the models of an export folder to int8."""
import json
import os.path as osp
import tempfile
from typing import Iterator, List, Sequence

import cv2
import numpy as np
import onnx
from onnxruntime.quantization import (CalibrationDataReader, QuantFormat,
                                      QuantType, quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process

from dan_mm.apis import FERInferencer
from dan_mm.apis.faces import FaceDetector
from dan_mm.apis.media import read
from dan_mm.apis.orientation import find_faces
from dan_mm.imaging import prepare_image
from .export import add_metadata, write_file, write_manifest
from .folder import MANIFEST, model_file, read_export
from .runtime import ONNXClassifier

# Layers in int8, and weights of layers that stay in float32. What sums over
# channels and the heads are no such layers. The detector loses faces with
# activations, its first layer or its outputs in int8.
QUANTIZED = dict(
    classifier=['Add', 'AveragePool', 'Conv', 'MaxPool', 'Relu'],
    detector=['Conv'])
IN_FLOAT = 'model.backbone.stage1.0.', 'model.bbox_head.'
# More samples change the ranges of activations little.
MAX_CROPS, MAX_IMAGES = 512, 32
BATCH = 8
# Sides of images for the detector, in pixels
SIDE, LONGEST = 640, 1024


class _Batches(CalibrationDataReader):
    """Batches of inputs of a model."""

    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self.batches = batches

    def get_next(self) -> dict:
        """Get the next batch, or None."""
        batch = next(self.batches, None)
        return None if batch is None else dict(images=batch)


def quantize(out: str, inferencer: FERInferencer, sources: Sequence,
             aligned: bool) -> None:
    """Add int8 models to an export folder: static, per channel, as pairs of
    QuantizeLinear and DequantizeLinear.

    Args:
        out (str): The export folder.
        inferencer (FERInferencer): The model that was exported.
        sources (Sequence): Images to calibrate the models on: see
            :func:`dan_mm.apis.media.expand`.
        aligned (bool): Whether they are aligned crops of one face.

    Raises:
        ValueError: If no face is found.
    """
    images = [
        image.img for image in read(_some(sources), inferencer._reader)
        if image.img is not None
    ]
    if aligned:
        crops = [inferencer._crop(img, None) for img in images]
        # A detector never sees a face alone.
        images = [_mosaic(crops[i:i + 25]) for i in range(0, len(crops), 25)]
    else:
        detector = FaceDetector(device='cpu')
        crops = [
            inferencer._crop(img, face) for img in images
            for face in find_faces(detector, [img])[0]
        ]
    if not crops:
        raise ValueError('Found no face to calibrate int8 on, expected some. '
                         'Give other images to --calibrate.')
    folder = read_export(out)
    with open(osp.join(out, MANIFEST), encoding='utf-8') as file:
        files = json.load(file)['files']
    prepare = ONNXClassifier(folder, 'cpu')._preprocess
    batches = dict(
        classifier=_batch([prepare(crop) for crop in _some(crops)]),
        detector=(prepare_image(img, LONGEST)[0][None]
                  for img in images[:MAX_IMAGES]))
    for name, samples in batches.items():
        content = _quantize(folder.models[f'{name}.onnx'], samples,
                            QUANTIZED[name], folder.about)
        file = model_file(name, 'int8')
        files[file] = write_file(content, out, file)
    write_manifest(out, folder.about, files)


def _some(items: Sequence) -> List:
    """Take up to so many items, evenly spread."""
    numbers = np.linspace(0, len(items) - 1, min(len(items), MAX_CROPS))
    return [items[i] for i in numbers.astype(int)]


def _mosaic(crops: List[np.ndarray]) -> np.ndarray:
    """Put up to 25 crops into an image."""
    side = SIDE // 5
    img = np.zeros((SIDE, SIDE, 3), np.uint8)
    for i, crop in enumerate(crops):
        top, left = side * (i // 5), side * (i % 5)
        img[top:top + side, left:left + side] = cv2.resize(crop, (side, side))
    return img


def _batch(samples: List[np.ndarray]) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), BATCH):
        yield np.stack(samples[start:start + BATCH])


def _quantize(content: bytes, samples: Iterator[np.ndarray], layers: List[str],
              about: dict) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        original, source, target = (
            osp.join(folder, f'{name}.onnx')
            for name in ('original', 'prepared', 'quantized'))
        with open(original, 'wb') as file:
            file.write(content)
        quant_pre_process(original, source, skip_symbolic_shape=True)
        model = onnx.load(source)
        excluded = [
            node.name for node in model.graph.node if any(
                name.startswith(IN_FLOAT) for name in node.input)
        ]
        quantize_static(
            source,
            target,
            _Batches(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=layers,
            nodes_to_exclude=excluded)
        return add_metadata(onnx.load(target), about)
