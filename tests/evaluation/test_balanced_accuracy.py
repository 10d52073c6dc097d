# Copyright (c) dan_mm contributors. All rights reserved.
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample
from sklearn.metrics import balanced_accuracy_score


def test_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (50, ), generator=generator)
    # Class 4 of 6 occurs in predictions only, class 5 nowhere.
    scores = torch.rand(50, 6, generator=generator)
    scores[:, 5] = 0
    evaluator = Evaluator(dict(type='BalancedAccuracy'))
    evaluator.process([
        DataSample().set_gt_label(label).set_pred_score(score)
        for label, score in zip(labels, scores)
    ])
    metrics = evaluator.evaluate(50)
    with pytest.warns(UserWarning, match='y_pred contains classes not in'):
        expected = balanced_accuracy_score(labels, scores.argmax(1))
    assert list(metrics) == ['accuracy/balanced']
    assert metrics['accuracy/balanced'] == pytest.approx(100 * expected)
