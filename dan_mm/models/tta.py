# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List

from mmpretrain.models import AverageClsScoreTTA
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample


@MODELS.register_module()
class AverageScoreTTA(AverageClsScoreTTA):
    """Test-time augmentation: the average of the scores of all views of an
    image, and its label.

    :class:`mmpretrain.models.AverageClsScoreTTA` leaves the label of the first
    version beside the average of the scores.
    """

    def _merge_single_sample(self,
                             data_samples: List[DataSample]) -> DataSample:
        merged = super()._merge_single_sample(data_samples)
        return merged.set_pred_label(merged.pred_score.argmax())
