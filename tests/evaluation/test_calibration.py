# Copyright (c) dan_mm contributors. All rights reserved.
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample
from scipy.special import softmax

from dan_mm.evaluation import expected_calibration_error, fit_temperature


def draw(number, temperature, seed=0):
    """Logits, and labels that follow their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(number, 5))
    scores = softmax(logits / temperature, axis=1)
    labels = (rng.random((number, 1)) > scores.cumsum(1)).sum(1)
    return logits, labels


def ece_by_loops(scores, labels, bins):
    total = 0.
    for lower in np.arange(bins) / bins:
        members = [(score.max(), score.argmax() == label)
                   for score, label in zip(scores, labels)
                   if lower < score.max() <= lower + 1 / bins]
        if members:
            confidence, right = np.mean(members, axis=0)
            total += len(members) / len(labels) * abs(confidence - right)
    return total


def test_equals_the_definition():
    logits, labels = draw(400, 2.)
    scores = softmax(logits, axis=1)
    for bins in 10, 15:
        assert expected_calibration_error(scores, labels, bins) == (
            pytest.approx(ece_by_loops(scores, labels, bins), abs=1e-12))
    evaluator = Evaluator(dict(type='CalibrationError'))
    evaluator.process([
        DataSample().set_gt_label(int(label)).set_pred_score(
            torch.from_numpy(score)) for label, score in zip(labels, scores)
    ])
    assert evaluator.evaluate(400)['calibration/ece'] == pytest.approx(
        ece_by_loops(scores, labels, 15), abs=1e-12)


def test_certain_and_right_or_wrong():
    scores = np.eye(3)[[0, 1, 2, 2]]
    assert expected_calibration_error(scores, np.array([0, 1, 2, 2])) == 0
    assert expected_calibration_error(scores, np.array([0, 1, 2, 0])) == 0.25


@pytest.mark.parametrize('temperature', [0.5, 1., 2.5])
def test_the_temperature_is_found(temperature):
    logits, labels = draw(20000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    scores = softmax(logits / found, axis=1)
    assert expected_calibration_error(scores, labels) < 0.02
