# Copyright (c) dan_mm contributors. All rights reserved.
"""The classifier of a checkpoint."""
from os import PathLike
from typing import Iterator, List, Optional, Tuple, Union

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.apis import ImageClassificationInferencer

from dan_mm.description import (MAX_TENSOR, WITH_CONFIG, build_classifier,
                                check_cost)
from dan_mm.engine.hooks import compare_weights
from dan_mm.errors import list_some
from dan_mm.models import MAN, switch_to_deploy
from dan_mm.scope import default_scope
from .classifier import Classified
from .found_model import FoundModel, find_model
from .torch_detector import choose_device


class TorchClassifier:
    """The classifier of a checkpoint, with its test pipeline.

    Args:
        model (str | PathLike, optional): See :class:`FERInferencer`.
        config (str | PathLike, optional): See there.
        device (str, optional): See there.

    Attributes:
        path (str): The checkpoint.
        metainfo (dict): What it says about its data.
        classes (tuple[str]): The names of the classes.
        device (str): Where it runs.
        model (ImageClassifier): The model, re-parameterised for inference.
        pipeline (list[dict]): The test pipeline.
        input_shape (tuple[int]): The channels, height and width of an input,
            known after :meth:`try_crop`.
        max_faces (int | None): How many faces may be classified at once.

    Raises:
        FileNotFoundError: If the model or its config is not there.
        ValueError: If the checkpoint does not describe a model that may be
            built, or its weights or classes do not fit it.
        OSError: If the weights can't be read or downloaded.
    """

    def __init__(self, model: Union[str, PathLike,
                                    None], config: Union[str, PathLike, None],
                 device: Optional[str]) -> None:
        # A config changes the process while it is read.
        with default_scope('mmpretrain'):
            found = find_model(model, config)
        self.device = choose_device(device)
        self.path, self.metainfo = found.path, found.metainfo
        self.classes = self._find_classes(found)
        self._described = config is None
        self._one_channel = False
        self.max_faces: Optional[int] = None
        self._inferencer = self._build(found)
        self.model = self._inferencer.model

    @staticmethod
    def _find_classes(found: FoundModel) -> Tuple[str, ...]:
        classes = found.metainfo.get('classes')
        classes = tuple(map(str, classes)) if isinstance(
            classes, (list, tuple)) else ()
        last = [
            len(value) for key, value in found.weights.items()
            if key.startswith('head.') and key.endswith('fc.bias')
        ]
        if not classes or last and last[-1] != len(classes):
            number = f'{last[-1]} classes' if last else 'no classifier'
            raise ValueError(
                f'The checkpoint {found.path} has {number}, and the names '
                f'{classes or "of none"}. Convert an original checkpoint '
                'with `--dataset`.')
        return classes

    def _build(self, found: FoundModel) -> ImageClassificationInferencer:
        with default_scope('mmpretrain'):
            model = build_classifier(found.description, found.weights,
                                     found.path)
            problems = compare_weights(
                model, found.weights, optional='head.loss_')
            if problems:
                raise ValueError(
                    f'The weights of {found.path} do not fit the model that '
                    f'it describes: {list_some(problems)}. Give the `config` '
                    'that it was trained with.')
            model.load_state_dict(found.weights, strict=False)
            self.pipeline = found.description.pipeline
            dataset = dict(pipeline=self.pipeline)
            model._config = Config(dict(test_dataloader=dict(dataset=dataset)))
            try:
                return ImageClassificationInferencer(
                    model, device=self.device, classes=self.classes)
            except Exception as error:
                raise ValueError(
                    f'The test pipeline of {found.path} cannot be built '
                    f'({type(error).__name__}: {str(error):.300}), expected '
                    'transforms of a face image. Get the checkpoint again, or '
                    'give the `config` that it was trained with.') from error

    def try_crop(self, crop: np.ndarray) -> None:
        """Try the pipeline on a crop, bound what a described model takes, and
        make it fast. ValueError is raised if it can't be used."""
        model = self.model
        try:
            data = next(self._preprocess([crop]))
            stem = next((layer for layer in model.backbone.modules()
                         if isinstance(layer, torch.nn.Conv2d)), None)
            # Grey images may come from the loading step, which is left out.
            if stem and stem.in_channels == 1 < len(data['inputs'][0]):
                self._one_channel = True
                data = next(self._preprocess([crop]))
            self.input_shape = tuple(data['inputs'][0].shape)
            inputs = model.data_preprocessor(data)['inputs']
            if self._described:
                self.max_faces = max(MAX_TENSOR // check_cost(model, inputs),
                                     1)
            switch_to_deploy(model, inputs.shape)
        except Exception as error:
            raise ValueError(
                f'The model of {self.path} cannot be used for a face '
                f'({type(error).__name__}: {str(error):.300}), expected one '
                f'of a common size. {WITH_CONFIG}') from error

    def _preprocess(self, crops: List[np.ndarray]) -> Iterator[dict]:
        """Run the test pipeline on crops, as one batch."""
        if self._one_channel:
            crops = [mmcv.bgr2gray(crop) for crop in crops]
        # An empty list is no batch.
        return self._inferencer.preprocess(crops, len(crops) or 1)

    @torch.inference_mode()
    def __call__(self, crops: List[np.ndarray], embeddings: bool,
                 attention_maps: bool) -> Classified:
        """Classify faces.

        Args:
            crops (list[ndarray]): Aligned faces, at least one: BGR, uint8 of
                shape ``(H, W, 3)``.
            embeddings (bool): Whether to add the features.
            attention_maps (bool): Whether to add what the heads look at.

        Returns:
            Classified: The result.
        """
        model = self.model
        data = model.data_preprocessor(next(self._preprocess(crops)))
        stage = model.backbone(data['inputs'])
        feats = model.neck(stage) if model.with_neck else stage
        samples = model.head.predict(feats, data['data_samples'])
        scores = torch.stack([sample.pred_score for sample in samples])
        vectors = maps = None
        if embeddings:
            vectors = model.head.pre_logits(feats).float().cpu().numpy()
        if attention_maps and isinstance(model.neck, MAN):
            maps = model.neck.attention_maps(stage).float().cpu().numpy()
        return Classified(scores.float().cpu().numpy(), vectors, maps)
