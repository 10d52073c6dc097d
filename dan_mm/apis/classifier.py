# Copyright (c) dan_mm contributors. All rights reserved.
from typing import NamedTuple, Optional

import numpy as np


class Classified(NamedTuple):
    """What a classifier says about N faces.

    Args:
        scores (ndarray): The probability of each class, float32 of shape
            ``(N, num_classes)``.
        embeddings (ndarray, optional): The features before the classifier,
            float32 of shape ``(N, C)``.
        attention_maps (ndarray, optional): What each head of DAN looks at,
            float32 of shape ``(N, K, H, W)``.
    """
    scores: np.ndarray
    embeddings: Optional[np.ndarray] = None
    attention_maps: Optional[np.ndarray] = None
