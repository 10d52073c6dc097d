# Copyright (c) dan_mm contributors. All rights reserved.
from contextlib import contextmanager
from typing import Iterator

import torch
import torch.nn as nn
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision on the CPU: forward passes run under bfloat16 autocast,
    weights and gradients stay float32.

    :class:`mmengine.optim.AmpOptimWrapper` is for accelerators and asserts
    without one. bfloat16 has the range of float32 and needs no loss scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast.

        Args:
            model (nn.Module): The model to train.
        """
        with super().optim_context(model), torch.autocast(
                'cpu', dtype=torch.bfloat16):
            yield
