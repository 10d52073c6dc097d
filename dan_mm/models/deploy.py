# Copyright (c) dan_mm contributors. All rights reserved.
import copy

import torch
from mmcv.cnn import fuse_conv_bn
from mmpretrain.models import ImageClassifier


@torch.no_grad()
def switch_to_deploy(model: ImageClassifier, size: torch.Size) -> None:
    """Re-parameterise a classifier for inference, in place, and lay its
    weights out for convolutions over the last dimension.

    Its parts do it by their own method of that name, as in MMPretrain; in the
    backbone, each BatchNorm that follows a convolution is folded into it,
    unless that changes its output.

    Args:
        model (ImageClassifier): The classifier, which can't be trained after
            that.
        size (torch.Size): That of its input, ``(B, C, H, W)``.
    """
    model.eval()
    x = torch.rand(size, device=next(model.parameters()).device)
    backbone = model.backbone
    expected = backbone(x)[-1]
    # Some give several tokens; these have no BatchNorm.
    if isinstance(expected, torch.Tensor):
        fused = copy.deepcopy(backbone)
        if hasattr(fused, 'switch_to_deploy'):
            fused.switch_to_deploy()
        # It goes by the order in which layers were made, not by their use.
        fused = fuse_conv_bn(fused)
        difference = (fused(x)[-1] - expected).abs().max()
        if difference <= 1e-3 * expected.abs().max():
            model.backbone = fused
    for part in (model.neck, model.head):
        if hasattr(part, 'switch_to_deploy'):
            part.switch_to_deploy()
    model.to(memory_format=torch.channels_last)
