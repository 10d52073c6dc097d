# Copyright (c) dan_mm contributors. All rights reserved.
"""Write a classifier and the face detector as ONNX files."""
import json
import os
import os.path as osp
import warnings
from math import isfinite
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime
import torch
from mmcv.cnn import fuse_conv_bn
from torch import Tensor, nn
from torch.export import Dim

from dan_mm.apis import FERInferencer
from dan_mm.apis.torch_classifier import TorchClassifier
from dan_mm.files import write_bytes
from dan_mm.imaging import INTERPOLATIONS
from dan_mm.models import MAN
from dan_mm.models.retinaface import RetinaFace
from dan_mm.models.retinaface_weights import get_weights
from dan_mm.version import __version__
from .folder import (FORMAT, MANIFEST, METADATA, ExportFolder, digest, encode,
                     is_export, list_files)
from .runtime import KERNELS, ONNXClassifier

MAX_DIFFERENCE = 1e-4  # of the scores to those of the model
OPSET = 20


class ExportedClassifier(nn.Module):
    """A classifier from aligned faces, BGR or grey, uint8 of shape ``(B, H, W,
    C)``, to probabilities, features and attention maps."""

    def __init__(self, classifier: TorchClassifier) -> None:
        super().__init__()
        model = classifier.model
        self.backbone, self.neck, self.head = (model.backbone, model.neck
                                               if model.with_neck else None,
                                               model.head)
        preprocessor = model.data_preprocessor
        self.to_rgb = preprocessor.to_rgb
        self.normalize = preprocessor._enable_normalize
        if self.normalize:
            self.register_buffer('mean', preprocessor.mean)
            self.register_buffer('std', preprocessor.std)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Classify."""
        x = images.permute(0, 3, 1, 2).float()
        if self.to_rgb and x.size(1) == 3:
            x = x[:, [2, 1, 0]]
        if self.normalize:
            x = (x - self.mean) / self.std
        stage = self.backbone(x)
        feats = stage if self.neck is None else self.neck(stage)
        outputs = (torch.softmax(self.head(feats),
                                 1), self.head.pre_logits(feats).flatten(1))
        if isinstance(self.neck, MAN):
            outputs += (self.neck.attention_maps(stage), )
        return outputs


class ExportedDetector(nn.Module):
    """RetinaFace from images, BGR, uint8 of shape ``(B, H, W, 3)``, to the
    scores ``(B, N)`` of its N anchors, and to their boxes ``(B, N, 4)`` and
    landmarks ``(B, N, 10)``, which are not decoded: most are no faces."""

    def __init__(self) -> None:
        super().__init__()
        model = RetinaFace()
        model.load_state_dict(get_weights())
        self.model = fuse_conv_bn(model.eval())

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Find faces."""
        x = images.permute(0, 3, 1, 2).float()
        x = x - x.new_tensor(self.model.MEAN)[:, None, None]
        # (B, H * W * 2 anchors, values) of all levels
        logits, bboxes, keypoints = (
            torch.cat([
                out.unflatten(1, (2, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for out in outs
            ], 1) for outs in self.model(x))
        scores = (logits[..., 0] - logits[..., 1]).sigmoid()
        return scores, bboxes, keypoints


def describe_pipeline(pipeline: Sequence[dict], path: str) -> List[dict]:
    """Describe the test pipeline of a model for the runtime. ValueError is
    raised for what that cannot do."""
    steps = []
    for step in pipeline:
        kind = step['type']
        if kind == 'Resize' and not step.get('keep_ratio') and 'scale' in step:
            backend = step.get('backend', 'cv2')
            interpolation = step.get('interpolation', 'bilinear')
            scale = step['scale']
            size = [scale] * 2 if isinstance(scale, int) else list(scale)
            known = (*INTERPOLATIONS, 'area') if backend == 'cv2' else KERNELS
            if interpolation in known:
                steps.append(
                    dict(
                        type='resize',
                        size=size,
                        interpolation=interpolation,
                        backend=backend))
                continue
        elif kind == 'CenterCrop' and not step.get('efficientnet_style'):
            size = step['crop_size']
            size = [size] * 2 if isinstance(size, int) else list(size)
            steps.append(dict(type='crop', size=size))
            continue
        elif kind == 'PackInputs':
            continue
        raise ValueError(
            f'The test pipeline of {path} has the step {step}, which cannot '
            'be exported: Resize to a fixed size, CenterCrop and PackInputs '
            'can.')
    return steps


def export(model: Optional[str],
           out: str,
           config: Optional[str] = None) -> FERInferencer:
    """Export a classifier and the face detector in float32.

    Args:
        model (str, optional): See :class:`dan_mm.apis.FERInferencer`.
        out (str): The folder to write: a new or empty one, or one of an
            earlier export, whose files are replaced.
        config (str, optional): The config of the model, which is code.
            Defaults to None.

    Returns:
        FERInferencer: The model that was exported.

    Raises:
        OSError: If the folder can't be written, or the weights not be read.
        ValueError: If the model can't be used or exported, or the folder has
            other files.
    """
    if osp.exists(out) and not is_export(out) and not (osp.isdir(out) and
                                                       not os.listdir(out)):
        raise ValueError(f'{out} is no folder of an earlier export, expected '
                         'a new or empty folder. Give another one.')
    inferencer = FERInferencer(model, config, device='cpu')
    if inferencer.export:
        raise ValueError(f'{model} is an export folder already, expected a '
                         'checkpoint.')
    about = _describe(inferencer)
    files = {}
    os.makedirs(out, exist_ok=True)
    content = _export_classifier(inferencer, about)
    files['classifier.onnx'] = write_file(content, out, 'classifier.onnx')
    content = _export_detector(about)
    files['detector.onnx'] = write_file(content, out, 'detector.onnx')
    write_manifest(out, about, files)
    for name, _ in list_files(out):
        if name not in files:  # int8 of an earlier export
            os.remove(osp.join(out, name))
    return inferencer


def _describe(inferencer: FERInferencer) -> dict:
    classifier = inferencer._classifier
    metainfo = classifier.metainfo
    temperature = metainfo.get('temperature')
    if not isinstance(temperature, (int, float)) or not isfinite(temperature):
        temperature = None
    return dict(
        alignment=inferencer.alignment,
        channels=classifier.input_shape[0],
        classes=list(inferencer.classes),
        color_type=str(metainfo.get('color_type') or ''),
        dataset_name=str(metainfo.get('dataset_name') or ''),
        licence=str(metainfo.get('licence') or ''),
        pipeline=describe_pipeline(classifier.pipeline, classifier.path),
        temperature=temperature,
        versions=dict(
            dan_mm=__version__,
            onnx=onnx.__version__,
            onnxruntime=onnxruntime.__version__,
            opset=OPSET,
            torch=torch.__version__))


def _export_classifier(inferencer: FERInferencer, about: dict) -> bytes:
    """Export the classifier, and check it against the model."""
    classifier = inferencer._classifier
    channels, height, width = classifier.input_shape
    example = torch.zeros((2, height, width, channels), dtype=torch.uint8)
    names = ['scores', 'embeddings', 'attention_maps']
    module = ExportedClassifier(classifier)
    content = _to_onnx(module, example, {0: Dim('batch')},
                       names[:2 + isinstance(module.neck, MAN)], about)
    folder = ExportFolder(classifier.path, about, {'classifier.onnx': content})
    exported = ONNXClassifier(folder, 'cpu')
    rng = np.random.default_rng(0)
    # As large as aligned faces, and larger
    size = np.broadcast_to(about['alignment']['size'], 2)[::-1]
    for scale, number in (1, 3), (2, 1):
        crops = [
            inferencer._crop(
                rng.integers(0, 256, (*size * scale, 3), np.uint8), None)
            for _ in range(number)
        ]
        found, expected = (
            one(crops, True, False) for one in (exported, classifier))
        difference = np.abs(found.scores - expected.scores).max()
        if not difference <= MAX_DIFFERENCE:
            raise ValueError(
                f'The scores of the exported model differ by {difference:.2g} '
                f'from those of {classifier.path}, expected at most '
                f'{MAX_DIFFERENCE}. This model cannot be exported.')
    return content


def _export_detector(about: dict) -> bytes:
    example = torch.zeros((2, 160, 192, 3), dtype=torch.uint8)
    return _to_onnx(ExportedDetector(), example, {
        0: Dim('batch'),
        1: Dim('height'),
        2: Dim('width')
    }, ['scores', 'bboxes', 'keypoints'], about)


@torch.no_grad()
def _to_onnx(module: nn.Module, example: Tensor, dynamic: Dict[int, Dim],
             names: List[str], about: dict) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            module.eval().to(memory_format=torch.contiguous_format),
            (example, ),
            dynamo=True,
            dynamic_shapes=(dynamic, ),
            input_names=['images'],
            output_names=names,
            opset_version=OPSET,
            verbose=False)
    return add_metadata(program.model_proto, about)


def add_metadata(model: onnx.ModelProto, about: dict) -> bytes:
    """Store what a model expects in it, and serialize it."""
    # Where each node came from names paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, model.graph,
                 *model.graph.input, *model.graph.output,
                 *model.graph.initializer, *model.functions):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: encode(about)})
    return model.SerializeToString()


def write_file(content: bytes, out: str, name: str) -> str:
    """Write a file of an export folder, and return its digest."""
    write_bytes(osp.join(out, name), content)
    return digest(content)


def write_manifest(out: str, about: dict, files: Dict[str, str]) -> None:
    """Complete an export folder."""
    content = json.dumps(
        dict(format=FORMAT, about=about, files=files), indent=1)
    write_bytes(osp.join(out, MANIFEST), content.encode())
