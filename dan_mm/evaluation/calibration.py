# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def expected_calibration_error(scores: np.ndarray,
                               labels: np.ndarray,
                               bins: int = 15) -> float:
    """The expected calibration error of `On Calibration of Modern Neural
    Networks <https://arxiv.org/abs/1706.04599>`_, equation (3): how far the
    highest probability is from the accuracy, on average over bins of equal
    width, weighted by their number of samples.

    Args:
        scores (ndarray): Probabilities of shape ``(N, classes)``.
        labels (ndarray): Integers of shape ``(N, )``.
        bins (int): The number of bins. Defaults to 15, as in the paper.

    Returns:
        float: The error, in [0, 1].
    """
    confidence = scores.max(1)
    gap = (scores.argmax(1) == labels) - confidence
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(
        np.abs(np.bincount(index, gap, minlength=bins)).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the number to divide logits by, so that the likelihood of the
    labels is highest: temperature scaling, section 4.2 of the same paper.

    Args:
        logits (ndarray): Scores before the softmax, of shape
            ``(N, classes)``.
        labels (ndarray): Integers of shape ``(N, )``.

    Returns:
        float: The temperature, between 0.05 and 20.
    """

    def loss(log_temperature: float) -> float:
        log_scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_scores[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20))).x))


@METRICS.register_module()
class CalibrationError(BaseMetric):
    """The expected calibration error, in [0, 1]: see
    :func:`expected_calibration_error`.

    Args:
        bins (int): The number of bins. Defaults to 15.
        collect_device (str): The device that results of several processes are
            collected on, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): The prefix of the name ``ece``. Defaults to
            None, ``calibration``.
    """
    default_prefix = 'calibration'

    def __init__(self,
                 bins: int = 15,
                 collect_device: str = 'cpu',
                 prefix: str = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.bins = bins

    def process(self, data_batch: Sequence,
                data_samples: Sequence[dict]) -> None:
        """Take the scores and the labels of a batch."""
        self.results.extend(
            (sample['pred_score'].cpu().numpy(), int(sample['gt_label']))
            for sample in data_samples)

    def compute_metrics(self, results: List[tuple]) -> dict:
        """Compute ``ece``, in [0, 1], of scores and labels."""
        scores, labels = map(np.array, zip(*results))
        return dict(ece=expected_calibration_error(scores, labels, self.bins))
