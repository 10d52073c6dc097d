# Copyright (c) dan_mm contributors. All rights reserved.
import sys

import torch
import torch.nn as nn
from mmpretrain.registry import MODELS

FORMS = ('original', 'paper')
# The original code clamps the term of each sample to this range.
MIN_TERM, MAX_TERM = 1e-12, 1e12


def _check_form(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"Got form='{form}', expected one of {FORMS}.")
    return form


def _check_eps(eps: float) -> float:
    if eps <= 0:
        raise ValueError(f'Got eps={eps}, expected more than 0: a variance of '
                         '0 divides.')
    return eps


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared_distance(feats: torch.Tensor, centers: torch.Tensor,
                     target: torch.Tensor) -> torch.Tensor:
    r"""The squared Euclidean distance of features to their class centres.

    For soft targets :math:`p` it is :math:`\sum_c p_c \|x - c_c\|^2`.

    Args:
        feats (Tensor): The features, of shape ``(B, D)``.
        centers (Tensor): The class centres, of shape ``(C, D)``.
        target (Tensor): Class indices, int64 of shape ``(B, )``, or class
            probabilities of shape ``(B, C)``.

    Returns:
        Tensor: The distances, of shape ``(B, )``.
    """
    if target.ndim == 1:
        return (feats - centers[target]).pow(2).sum(1)
    distances = (feats.unsqueeze(1) - centers).pow(2).sum(2)
    return (target * distances).sum(1)


def affinity_loss(feats: torch.Tensor,
                  centers: torch.Tensor,
                  target: torch.Tensor,
                  form: str = 'original',
                  eps: float = sys.float_info.epsilon) -> torch.Tensor:
    r"""Affinity loss: equation (2) of `DAN
    <https://doi.org/10.3390/biomimetics8020199>`_.

    .. math::
        L_{af} = \sum_i \frac{\|x'_i - c_{y_i}\|^2}{\sigma_c^2}

    :math:`\sigma_c^2` is the sum over the dimensions of the unbiased variance
    of the centres over the classes; the gradient flows through it. The term of
    each sample is clamped to [1e-12, 1e12].

    Args:
        feats (Tensor): The features, of shape ``(B, D)``.
        centers (Tensor): The class centres, of shape ``(C, D)``.
        target (Tensor): Class indices, int64 of shape ``(B, )``, or class
            probabilities of shape ``(B, C)``.
        form (str): 'original' (the authors' code) averages over the batch,
            'paper' sums. Defaults to 'original'.
        eps (float): Added to the variance. Defaults to
            ``sys.float_info.epsilon``.

    Returns:
        Tensor: The loss, a scalar >= 0.
    """
    variance = centers.var(dim=0).sum() + eps
    distance = squared_distance(feats, centers, target)
    # Coinciding centres make the term saturate. It has no gradient there, and
    # the division must not overflow: 0 * inf in its backward is nan.
    saturated = distance.detach() >= MAX_TERM * variance.detach()
    terms = distance.masked_fill(saturated, 0) / variance
    terms = terms.clamp(min=MIN_TERM).masked_fill(saturated, MAX_TERM)
    return terms.mean() if form == 'original' else terms.sum()


def partition_loss(heads: torch.Tensor,
                   form: str = 'original',
                   eps: float = sys.float_info.epsilon) -> torch.Tensor:
    r"""Partition loss: equation (6) of `DAN
    <https://doi.org/10.3390/biomimetics8020199>`_.

    .. math::
        L_{pt} = \frac{1}{NL} \sum_{i=1}^{N} \sum_{l=1}^{L}
                 \log\left(1 + \frac{K}{\sigma_{i,l}^2}\right)

    Args:
        heads (Tensor): The scaled vectors of the K heads, of shape
            ``(B, K, L)``.
        form (str): 'paper' is the equation; 'original' (the authors' code)
            takes the mean of the variances inside the logarithm. Defaults to
            'original'.
        eps (float): Added to a variance before it divides. Defaults to
            ``sys.float_info.epsilon``.

    Returns:
        Tensor: The loss, a scalar >= 0; 0 for one head.
    """
    num_heads = heads.size(1)
    if num_heads == 1:
        return heads.new_zeros(())
    variance = heads.var(dim=1)
    if form == 'original':
        variance = variance.mean()
    return torch.log(1 + num_heads / (variance + eps)).mean()


@MODELS.register_module()
class CenterLoss(nn.Module):
    r"""Center loss of `A Discriminative Feature Learning Approach for Deep
    Face Recognition <https://doi.org/10.1007/978-3-319-46478-7_31>`_, the
    baseline of DAN's ablation: :math:`\|x'_i - c_{y_i}\|^2`.

    The class centres are the parameter ``centers``, of shape ``(C, D)``,
    N(0, 1) at first: optimiser and checkpoint carry them.

    Args:
        num_classes (int): The number of classes C, at least 2. :class:`AFN`
            fills it in.
        in_channels (int): The number of dimensions D. :class:`AFN` fills it
            in.
        form (str): 'original' averages over the batch, 'paper' sums.
            Defaults to 'original'.
        loss_weight (float): The weight of the loss. Defaults to 1.0.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 form: str = 'original',
                 loss_weight: float = 1.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f'{type(self).__name__} got num_classes={num_classes}, '
                'expected at least 2: centres are only far from each other if '
                'there are two.')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.form = _check_form(form)
        self.loss_weight = loss_weight
        self.centers = nn.Parameter(torch.randn(num_classes, in_channels))

    def forward(self, feats: torch.Tensor,
                target: torch.Tensor) -> torch.Tensor:
        """Compute the loss, in at least float32.

        Args:
            feats (Tensor): The features, of shape ``(B, D)``.
            target (Tensor): Class indices, int64 of shape ``(B, )``, or class
                probabilities of shape ``(B, C)``.

        Returns:
            Tensor: The loss, a scalar.
        """
        with torch.autocast(feats.device.type, enabled=False):
            return self.loss_weight * self._loss(
                _at_least_float32(feats), _at_least_float32(self.centers),
                target)

    def _loss(self, feats, centers, target):
        distance = squared_distance(feats, centers, target)
        return distance.mean() if self.form == 'original' else distance.sum()

    def extra_repr(self) -> str:
        return (f'num_classes={self.num_classes}, '
                f"in_channels={self.in_channels}, form='{self.form}', "
                f'loss_weight={self.loss_weight}')


@MODELS.register_module()
class AffinityLoss(CenterLoss):
    """Affinity loss of `DAN <https://doi.org/10.3390/biomimetics8020199>`_:
    see :func:`affinity_loss`.

    Args:
        num_classes (int): The number of classes C, at least 2. :class:`AFN`
            fills it in.
        in_channels (int): The number of dimensions D. :class:`AFN` fills it
            in.
        form (str): 'original' averages over the batch, 'paper' sums.
            Defaults to 'original'.
        loss_weight (float): The weight of the loss. Defaults to 1.0.
        eps (float): Added to the variance of the centres. Defaults to
            ``sys.float_info.epsilon``.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 form: str = 'original',
                 loss_weight: float = 1.0,
                 eps: float = sys.float_info.epsilon) -> None:
        super().__init__(num_classes, in_channels, form, loss_weight)
        self.eps = _check_eps(eps)

    def _loss(self, feats, centers, target):
        return affinity_loss(feats, centers, target, self.form, self.eps)


@MODELS.register_module()
class PartitionLoss(nn.Module):
    """Partition loss of `DAN <https://doi.org/10.3390/biomimetics8020199>`_:
    see :func:`partition_loss`.

    Args:
        form (str): 'original' or 'paper'. Defaults to 'original'.
        loss_weight (float): The weight of the loss. Defaults to 1.0.
        eps (float): Added to a variance before it divides. Defaults to
            ``sys.float_info.epsilon``.
    """

    def __init__(self,
                 form: str = 'original',
                 loss_weight: float = 1.0,
                 eps: float = sys.float_info.epsilon) -> None:
        super().__init__()
        self.form = _check_form(form)
        self.loss_weight = loss_weight
        self.eps = _check_eps(eps)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """Compute the loss, in at least float32.

        Args:
            heads (Tensor): The scaled vectors of the K heads, of shape
                ``(B, K, L)``.

        Returns:
            Tensor: The loss, a scalar.
        """
        with torch.autocast(heads.device.type, enabled=False):
            return self.loss_weight * partition_loss(
                _at_least_float32(heads), self.form, self.eps)

    def extra_repr(self) -> str:
        return f"form='{self.form}', loss_weight={self.loss_weight}"
