# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List, Optional, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmpretrain.evaluation.metrics import Accuracy
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn.utils.fusion import fuse_linear_bn_eval

from .man import refuse_batch_of_one


@MODELS.register_module()
class AFN(ClsHead):
    """Attention Fusion Network, the head of `DAN: Distract Your Attention
    <https://doi.org/10.3390/biomimetics8020199>`_, equations (5) to (7).

    It follows the neck :class:`MAN`: it scales the attention vectors with a
    log-softmax over the heads, adds them up and classifies the sum with a
    linear layer and a BatchNorm on the class scores (as the original code
    does).

    Args:
        num_classes (int): The number of classes.
        in_channels (int): The number of channels C of the feature map and of
            the attention vectors.
        form (str): The form of both losses: 'original', as in the authors'
            code, which made the published numbers, or 'paper', as in the
            equations. Defaults to 'original'.
        loss (dict): The classification loss. Defaults to
            ``dict(type='CrossEntropyLoss', loss_weight=1.0)``.
        loss_affinity (dict, optional): The loss on the pooled feature map.
            The head adds ``num_classes``, ``in_channels`` and ``form``. None
            for no such loss. Defaults to ``dict(type='AffinityLoss')``.
        loss_partition (dict, optional): The loss on the scaled attention
            vectors. The head adds ``form``. None for no such loss. Defaults to
            ``dict(type='PartitionLoss')``.
        topk (int | tuple[int]): Top-k accuracy. Defaults to ``(1, )``.
        cal_acc (bool): Whether to compute the accuracy in training; it is left
            out for soft targets. Defaults to False.
        init_cfg (dict, optional): The initialisation. Defaults to None, that
            of PyTorch, as in the original code.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 form: str = 'original',
                 loss: dict = dict(type='CrossEntropyLoss', loss_weight=1.0),
                 loss_affinity: Optional[dict] = dict(type='AffinityLoss'),
                 loss_partition: Optional[dict] = dict(type='PartitionLoss'),
                 topk: Union[int, Tuple[int, ...]] = (1, ),
                 cal_acc: bool = False,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(
            loss=loss,
            topk=(topk, ) if isinstance(topk, int) else topk,
            cal_acc=cal_acc,
            init_cfg=init_cfg)
        if num_classes < 2:
            raise ValueError(f'AFN got num_classes={num_classes}, expected at '
                             'least 2.')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)
        self.bn = nn.BatchNorm1d(num_classes)
        self.loss_affinity = loss_affinity and MODELS.build(
            loss_affinity,
            default_args=dict(
                num_classes=num_classes, in_channels=in_channels, form=form))
        self.loss_partition = loss_partition and MODELS.build(
            loss_partition, default_args=dict(form=form))

    def switch_to_deploy(self) -> None:
        """Fold the BatchNorm on the class scores into the linear layer, in
        place, for inference: see :meth:`MAN.switch_to_deploy`."""
        if not isinstance(self.bn, nn.Identity):
            self.eval()
            self.fc = fuse_linear_bn_eval(self.fc, self.bn)
            self.bn = nn.Identity()

    def scale(self, heads: torch.Tensor) -> torch.Tensor:
        """Scale the attention vectors: equation (5).

        Args:
            heads (Tensor): The raw attention vectors, of shape ``(B, K, C)``.

        Returns:
            Tensor: Their log-softmax over the heads, of the same shape. With
            one head, where it would be all zeros, they stay as they are.
        """
        return F.log_softmax(heads, dim=1) if heads.size(1) > 1 else heads

    def pre_logits(self, feats: Tuple[torch.Tensor,
                                      torch.Tensor]) -> torch.Tensor:
        """Fuse the attention vectors.

        Args:
            feats (tuple[Tensor, Tensor]): The output of :class:`MAN`: the
                feature map ``(B, C, H, W)`` and the raw attention vectors
                ``(B, K, C)``.

        Returns:
            Tensor: The fused vectors, of shape ``(B, C)``.

        Raises:
            ValueError: If ``feats`` is not an output of :class:`MAN`.
        """
        if not (isinstance(feats, (tuple, list)) and len(feats) == 2
                and feats[0].ndim == 4 and feats[1].ndim == 3
                and feats[1].size(2) == self.in_channels):
            found = [tuple(feat.shape) for feat in feats]
            raise ValueError(
                f'AFN got features of the shapes {found}, expected a map '
                f'(B, C, H, W) and vectors (B, K, {self.in_channels}). Use '
                "`neck=dict(type='MAN', in_channels=...)` and the same "
                '`in_channels` for neck and head.')
        return self.scale(feats[1]).sum(dim=1)

    def forward(self, feats: Tuple[torch.Tensor,
                                   torch.Tensor]) -> torch.Tensor:
        """Compute the class scores.

        Args:
            feats (tuple[Tensor, Tensor]): As in :meth:`pre_logits`.

        Returns:
            Tensor: The scores before the softmax, of the dtype of the weights
            (also under autocast) and shape ``(B, num_classes)``.
        """
        refuse_batch_of_one(self.bn, feats[0].size(0), 'AFN')
        pre_logits = self.pre_logits(feats)
        # Half precision would round the scores to two or three digits.
        with torch.autocast(pre_logits.device.type, enabled=False):
            return self.bn(self.fc(pre_logits.to(self.fc.weight.dtype)))

    def loss(self, feats: Tuple[torch.Tensor, torch.Tensor],
             data_samples: List[DataSample], **kwargs) -> dict:
        """Compute the losses: the terms of equation (7).

        Args:
            feats (tuple[Tensor, Tensor]): As in :meth:`pre_logits`.
            data_samples (list[DataSample]): The targets. Where they have a
                ``gt_score`` it is used, otherwise ``gt_label``.
            **kwargs: Other keyword arguments of the classification loss.

        Returns:
            dict[str, Tensor]: The scalars ``loss_cls``, ``loss_affinity``,
            ``loss_partition`` and, on request, accuracies.

        Raises:
            ValueError: If a target doesn't fit ``num_classes``.
        """
        # The part can be traced by torch.fx
        cls_score = self(feats)

        # The part cannot be traced by torch.fx
        target = self._get_target(data_samples)
        x, heads = feats
        with torch.autocast(x.device.type, enabled=False):
            losses = dict(
                loss_cls=self.loss_module(
                    cls_score, target, avg_factor=len(cls_score), **kwargs))
            if self.loss_affinity is not None:
                losses['loss_affinity'] = self.loss_affinity(
                    x.to(heads.dtype).mean(dim=(2, 3)), target)
            if self.loss_partition is not None:
                losses['loss_partition'] = self.loss_partition(
                    self.scale(heads))

        if self.cal_acc and target.ndim == 1:
            accuracies = Accuracy.calculate(cls_score, target, topk=self.topk)
            losses.update({
                f'accuracy_top-{k}': accuracy
                for k, accuracy in zip(self.topk, accuracies)
            })
        return losses

    def _get_target(self, data_samples: List[DataSample]) -> torch.Tensor:
        """Stack soft targets ``(B, C)`` or hard targets ``(B, )``."""
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
            if target.size(1) != self.num_classes:
                raise ValueError(
                    f'AFN got soft targets of {target.size(1)} classes and '
                    f'has num_classes={self.num_classes}. Set '
                    '`model.head.num_classes` to the number of classes of the '
                    'dataset.')
            return target
        target = torch.cat([sample.gt_label for sample in data_samples])
        # A GPU asserts it by itself; looking at the values would wait for it.
        if target.device.type == 'cpu' and not (
                0 <= target.min() and target.max() < self.num_classes):
            raise ValueError(
                f'AFN got the labels {sorted(set(target.tolist()))}, expected '
                f'labels from 0 to {self.num_classes - 1}. Set '
                '`model.head.num_classes` to the number of classes of the '
                'dataset.')
        return target
