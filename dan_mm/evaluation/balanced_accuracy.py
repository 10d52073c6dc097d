# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List

from mmpretrain.evaluation import SingleLabelMetric
from mmpretrain.registry import METRICS


@METRICS.register_module()
class BalancedAccuracy(SingleLabelMetric):
    """Balanced accuracy: the mean of the recalls of the classes that occur in
    the ground truth, in percent.

    It is :func:`sklearn.metrics.balanced_accuracy_score`. The macro recall of
    :class:`mmpretrain.evaluation.SingleLabelMetric` differs where a class has
    no image: it counts that as a recall of 0.

    Args:
        collect_device (str): The device that results of several processes are
            collected on, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): The prefix of the name ``balanced``.
            Defaults to None.
    """
    default_prefix = 'accuracy'

    def __init__(self, collect_device: str = 'cpu', prefix: str = None):
        super().__init__(
            items=('recall', 'support'),
            average=None,
            collect_device=collect_device,
            prefix=prefix)

    def compute_metrics(self, results: List[dict]) -> dict:
        """Compute ``balanced``, in [0, 100]."""
        metrics = super().compute_metrics(results)
        recalls = [
            recall for recall, support in zip(metrics['recall_classwise'],
                                              metrics['support_classwise'])
            if support > 0
        ]
        return dict(balanced=sum(recalls) / len(recalls))
