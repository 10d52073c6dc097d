# Copyright (c) dan_mm contributors. All rights reserved.
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample


def test_the_label_is_that_of_the_average():
    model = MODELS.build(
        dict(
            type='AverageScoreTTA',
            module=dict(
                type='ImageClassifier', backbone=dict(type='ResNet',
                                                      depth=18))))
    # The first version alone is of class 0, the average of class 1.
    versions = [
        DataSample().set_gt_label(1).set_pred_score(
            torch.tensor(score)).set_pred_label(label)
        for score, label in (([.5, .4, .1], 0), ([.1, .7, .2], 1))
    ]
    merged, = model.merge_preds([versions])
    assert torch.allclose(merged.pred_score, torch.tensor([.3, .55, .15]))
    assert merged.pred_label.tolist() == [1]
    assert merged.gt_label.tolist() == [1]
