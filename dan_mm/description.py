# Copyright (c) dan_mm contributors. All rights reserved.
"""A checkpoint describes its model and its test pipeline as plain data.

A config is code: whoever runs it trusts its author. A description is not: it
names classes of an allow-list, each in its place, with arguments of plain
types and bounded size. So a checkpoint from anywhere can be built without
running, importing, opening or fetching anything that it names.
"""
from math import prod
from reprlib import repr as short
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Classes of MMPretrain and of this project that touch neither files nor the
# network, whatever their arguments are.
BACKBONES = frozenset(
    ('ConvNeXt', 'DeiT3', 'DenseNet', 'DistilledVisionTransformer',
     'DlibResNet', 'EfficientNet', 'EfficientNetV2', 'HRNet', 'HorNet',
     'MobileNetV2', 'MobileNetV3', 'MobileOne', 'MobileViT', 'PoolFormer',
     'RegNet', 'RepVGG', 'Res2Net', 'ResNeSt', 'ResNeXt', 'ResNet',
     'ResNetV1c', 'ResNetV1d', 'SEResNeXt', 'SEResNet', 'ShuffleNetV2',
     'SwinTransformer', 'SwinTransformerV2', 'VAN', 'VisionTransformer'))
NECKS = frozenset(
    ('GeneralizedMeanPooling', 'GlobalAveragePooling', 'LinearNeck', 'MAN'))
HEADS = frozenset(('AFN', 'ClsHead', 'LinearClsHead', 'StackedLinearClsHead',
                   'VisionTransformerClsHead'))
LOSSES = frozenset(
    ('AffinityLoss', 'AsymmetricLoss', 'CenterLoss', 'CrossEntropyLoss',
     'FocalLoss', 'LabelSmoothLoss', 'PartitionLoss', 'SeesawLoss'))
LAYERS = frozenset(
    ('BN', 'BN1d', 'BN2d', 'Conv2d', 'Conv2dAdaptivePadding', 'GELU', 'GN',
     'HSigmoid', 'HSwish', 'LN', 'LN2d', 'LeakyReLU', 'PReLU', 'ReLU', 'ReLU6',
     'SiLU', 'Sigmoid', 'Swish', 'SyncBN'))
TRANSFORMS = frozenset(
    ('CenterCrop', 'PackInputs', 'Pad', 'Resize', 'ResizeEdge'))
# What reads a face image and aligns it in a dataset is done by the
# inferencer.
LOADING = frozenset(('AlignFace', 'LoadCheckedImage', 'LoadImageFromFile'))
# Arguments that are a word of a fixed list. Others that take a string look it
# up in a registry, which imports what it does not have.
WORDS = frozenset(
    ('algorithm_keys', 'approximate', 'arch', 'backend', 'block', 'edge',
     'form', 'input_key', 'interpolate_mode', 'interpolation', 'meta_keys',
     'mode', 'out_type', 'reduction', 'style'))
TYPES = 'type', 'conv_type'
METAINFO = frozenset(
    ('alignment', 'classes', 'color_type', 'dataset_name', 'licence'))
REFUSED = 'init_cfg', 'pretrained', 'scale_factor'
MAX_NUMBER, MAX_LENGTH, MAX_ITEMS, MAX_DEPTH = 2**16, 500, 5000, 12
# Pixels of a side of the input, and of a window of attention, which takes
# memory by its fourth power while it is built
MAX_SIDE, MAX_WINDOW = 1024, 64
MAX_STEPS = 10
# For one face: floating-point operations, and bytes of a tensor. The largest
# models of the list take two thirds and a sixth of them.
MAX_FLOPS, MAX_TENSOR = 2**39, 2**28

WITH_CONFIG = ('If you trust its author, give the config that it was trained '
               'with as `config`: a config is code and runs.')


class Description(NamedTuple):
    """What builds a classifier: the arguments of
    :class:`mmpretrain.models.ImageClassifier`, and the transforms of an
    aligned face image."""
    model: dict
    pipeline: List[dict]


def _plain(value: Any) -> Any:
    """Copy a config as plain data: without initialization, and with the bare
    names of types."""
    if isinstance(value, dict):
        return {
            str(key): _name(item) if key == 'type' else _plain(item)
            for key, item in value.items()
            if key not in ('_scope_', 'init_cfg', 'pretrained', 'train_cfg')
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


def _name(kind: Any) -> Any:
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(
        kind, '__name__', kind)


def describe(cfg: Config) -> Description:
    """Describe the model of a config, with ``model`` and ``test_dataloader``,
    and how it is tested: plain data if the config is. ValueError is raised if
    it has no classifier or no test pipeline."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or dataset.get('datasets'):
        # MMEngine's wrappers
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    model = _plain(cfg.get('model') or {})
    missing = [
        name for name, found in (('model.backbone', model.get('backbone')),
                                 ('model.head', model.get('head')),
                                 ('test_dataloader.dataset.pipeline',
                                  dataset.get('pipeline'))) if not found
    ]
    if missing:
        raise ValueError(
            f'Found no {", ".join(missing)} in the config {cfg.filename}, '
            'expected the config of an image classifier.')
    preprocessor = model.get('data_preprocessor') or _plain(
        cfg.get('data_preprocessor') or {})
    preprocessor.pop('batch_augments', None)
    model['data_preprocessor'] = preprocessor
    pipeline = [
        step for step in map(_plain, dataset['pipeline'])
        if step.get('type') not in LOADING
    ]
    return Description(model, pipeline)


class _Checker:
    """Copies what a file holds, and refuses what is no plain data."""

    def __init__(self,
                 words: frozenset = WORDS,
                 length: int = MAX_LENGTH) -> None:
        self.words = words
        self.length = length
        self.items = 0

    def copy(self,
             value: Any,
             place: str,
             types: frozenset,
             key: str = '',
             depth: int = 0) -> Any:
        """Copy a value, or in one, of the argument ``key``; it stands at
        ``place``, where ``type`` may name ``types``."""
        self.items += 1
        if self.items > MAX_ITEMS or depth > MAX_DEPTH:
            raise ValueError(f'{place} is larger than any model needs')
        if isinstance(value, dict):
            return {
                name: self.argument(name, item, place, types, depth)
                for name, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            copied = [
                self.copy(item, f'{place}[{i}]', types, key, depth + 1)
                for i, item in enumerate(value)
            ]
            return tuple(copied) if isinstance(value, tuple) else copied
        if isinstance(value, bool) or value is None:
            return value
        most = MAX_WINDOW if 'window' in key else (
            MAX_SIDE if place.startswith('test_pipeline')
            or key == 'pad_size_divisor' else MAX_NUMBER)
        if isinstance(value, (int, float)) and abs(value) <= most:
            return value
        word = isinstance(value, str) and len(value) <= self.length
        if word and key in self.words:
            return value
        found = short(value) if isinstance(
            value, (int, float, str)) else f'a {type(value).__name__}'
        raise ValueError(f'{place} is {found}')

    def argument(self, name: Any, value: Any, place: str, types: frozenset,
                 depth: int) -> Any:
        """Copy an argument."""
        if not isinstance(name, str) or not name.isidentifier() or (
                name.startswith('_') or name in REFUSED):
            raise ValueError(f'{place} has the argument {short(name)}')
        if name != 'type':
            loss = types is HEADS and name.startswith('loss')
            types = LOSSES if loss else LAYERS
        if name not in TYPES:
            return self.copy(value, f'{place}.{name}', types, name, depth + 1)
        if not isinstance(value, str) or value not in types:
            raise ValueError(f'{place} has the type {short(value)}')
        return value


def check_metainfo(metainfo: Any, path: str) -> dict:
    """Copy what inference needs of ``meta['dataset_meta']`` of the checkpoint
    ``path``, or raise ValueError if that is no plain data of a bounded
    size."""
    metainfo = metainfo if isinstance(metainfo, dict) else {}
    checker = _Checker(METAINFO | {'interpolation'}, MAX_NUMBER)
    try:
        return {
            key: checker.copy(metainfo[key], key, frozenset(), key)
            for key in METAINFO if key in metainfo
        }
    except ValueError as error:
        raise ValueError(
            f"The 'dataset_meta' of the checkpoint {path} cannot be used: "
            f'{error}, expected plain data of a common size.') from None


def check_description(model: Any, pipeline: Any, path: str) -> Description:
    """Copy ``meta['model']`` and ``meta['test_pipeline']`` of the checkpoint
    ``path`` so that they are safe to build, or raise ValueError if they are
    not the description of a classifier, or name anything that is not on the
    allow-list."""
    try:
        if not isinstance(model, dict) or not isinstance(
                pipeline, (list, tuple)):
            raise ValueError('it has none')
        places = dict(
            backbone=BACKBONES,
            neck=NECKS,
            head=HEADS,
            data_preprocessor=frozenset(('ClsDataPreprocessor', )))
        unknown = set(model) - {'type', *places}
        if model.get('type') != 'ImageClassifier' or unknown:
            raise ValueError(
                f'model has the type {short(model.get("type"))} and the '
                f'arguments {short(list(model))}')
        checker = _Checker()
        checked = dict(type='ImageClassifier')
        for place, types in places.items():
            part = model.get(place)
            if part is None and place == 'neck':
                continue
            if not isinstance(part, dict) or ('type' not in part and place
                                              != 'data_preprocessor'):
                raise ValueError(f'model has no {place} with a type')
            checked[place] = checker.copy(part, place, types)
        steps = [
            checker.copy(step, f'test_pipeline[{i}]', TRANSFORMS)
            for i, step in enumerate(pipeline)
        ]
        if not all(
                isinstance(step, dict) and 'type' in step for step in steps):
            raise ValueError('test_pipeline has a step without a type')
        # Others could make the image long and narrow before.
        if len(steps) > MAX_STEPS or any(step['type'] == 'ResizeEdge'
                                         for step in steps[1:]):
            raise ValueError(f'test_pipeline has {len(steps)} steps, or '
                             'ResizeEdge not as the first')
    except ValueError as error:
        raise ValueError(
            f'The description of the model in {path} cannot be used: '
            f'{error}. Expected an image classifier of the classes in '
            f'dan_mm/description.py. {WITH_CONFIG}') from None
    return Description(checked, steps)


class _Budget(TorchFunctionMode):
    """Refuse to make more or larger tensors than a model should have."""

    MAKERS = (torch.empty, torch.full, torch.ones, torch.rand, torch.randn,
              torch.zeros)

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        self.tensors = tensors
        self.elements = elements

    def __torch_function__(self,
                           func: Any,
                           types: Any,
                           args: tuple = (),
                           kwargs: Optional[dict] = None) -> Any:
        if func in self.MAKERS:
            size = kwargs.get('size', args) if kwargs else args
            if size and isinstance(size[0], (list, tuple)):
                size = size[0]
            self.tensors -= 1
            self.elements -= prod(
                side for side in size if isinstance(side, int))
            if self.tensors < 0 or self.elements < 0:
                raise ValueError('it has more parameters than its weights')
        return func(*args, **(kwargs or {}))


def build_classifier(description: Description, weights: Dict[str,
                                                             torch.Tensor],
                     path: str) -> ImageClassifier:
    """Build the classifier of a description in evaluation mode, without its
    weights, but with no more memory than they need, or raise ValueError."""
    # Buffers and class centres are made beside what is stored.
    tensors = 2 * len(weights) + 1000
    elements = 2 * sum(value.numel() for value in weights.values()) + 2**22
    try:
        with _Budget(tensors, elements):
            return MODELS.build(description.model).eval()
    except Exception as error:
        raise ValueError(
            f'The model that {path} describes cannot be built '
            f'({type(error).__name__}: {str(error):.300}). Expected arguments '
            'that fit its classes.') from error


class _Meter(TorchDispatchMode):
    """Note the largest tensor, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 1

    def __torch_dispatch__(self,
                           func: Any,
                           types: Any,
                           args: tuple = (),
                           kwargs: Optional[dict] = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.nbytes)
        return out


def check_cost(model: ImageClassifier, inputs: torch.Tensor) -> int:
    """Check what a model takes for one face, ``inputs`` of shape ``(1, C, H,
    W)``, without computing anything. Returns the size of the largest tensor on
    the way, in bytes, or raises ValueError if it takes too much."""
    # Tensors without data
    fake, counter = FakeTensorMode(), FlopCounterMode(display=False)
    tensors = {
        name: fake.from_tensor(value)
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    inputs = fake.from_tensor(inputs)
    with torch.no_grad(), fake, counter, _Meter() as meter:
        functional_call(model, tensors, (inputs, ))
    flops = counter.get_total_flops()
    if flops > MAX_FLOPS or meter.largest > MAX_TENSOR:
        raise ValueError(
            f'it takes {flops / 1e9:.0f} billion operations and tensors of '
            f'{meter.largest / 2**20:.0f} MiB for one face')
    return meter.largest
