# Copyright (c) dan_mm contributors. All rights reserved.
import math
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def refuse_batch_of_one(norm: nn.Module, batch_size: int, owner: str) -> None:
    """Refuse to train a :class:`~torch.nn.BatchNorm1d` on one sample.

    Args:
        norm (nn.Module): The normalisation that ``owner`` is about to run.
        batch_size (int): The number of samples in the batch.
        owner (str): The module's name for the message.

    Raises:
        ValueError: If ``norm`` would take its statistics from one sample.
    """
    # SyncBatchNorm counts the samples of all processes: not our business.
    if batch_size == 1 and norm.training and isinstance(norm, nn.BatchNorm1d):
        raise ValueError(
            f'{owner} got a training batch of 1 image, expected at least 2: '
            'BatchNorm takes its statistics over the batch. Raise '
            '`train_dataloader.batch_size`, or set '
            '`train_dataloader.drop_last=True` if only the last batch of an '
            'epoch has one image.')


class SpatialAttention(nn.Module):
    """The spatial unit of one attention head: equation (3) of `DAN
    <https://doi.org/10.3390/biomimetics8020199>`_.

    Args:
        in_channels (int): The number of channels C of the feature map.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()

        def conv_bn(inputs: int, outputs: int, height: int, width: int):
            return nn.Sequential(
                nn.Conv2d(
                    inputs,
                    outputs, (height, width),
                    padding=(height // 2, width // 2)),
                nn.BatchNorm2d(outputs))

        mid_channels = in_channels // 2
        self.conv1x1 = conv_bn(in_channels, mid_channels, 1, 1)
        self.conv3x3 = conv_bn(mid_channels, in_channels, 3, 3)
        self.conv1x3 = conv_bn(mid_channels, in_channels, 1, 3)
        self.conv3x1 = conv_bn(mid_channels, in_channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Get the attention map of a feature map.

        Args:
            x (Tensor): The feature map, of shape ``(B, C, H, W)``.

        Returns:
            Tensor: The map, at least float32, not bounded, of shape
            ``(B, 1, H, W)``.
        """
        y = self.conv1x1(x)
        y = torch.relu(self.conv3x3(y) + self.conv1x3(y) + self.conv3x1(y))
        # Hundreds of channels are added: half precision loses digits here.
        return y.sum(
            dim=1,
            keepdim=True,
            dtype=torch.promote_types(y.dtype, torch.float32))

    def merge(self) -> Tuple[nn.Conv2d, nn.Conv2d]:
        """Get two convolutions, 1x1 and 3x3, that do the same in evaluation
        mode before the ReLU."""
        conv1x1, conv, conv1x3, conv3x1 = (
            fuse_conv_bn_eval(*unit) for unit in (self.conv1x1, self.conv3x3,
                                                  self.conv1x3, self.conv3x1))
        with torch.no_grad():
            conv.weight[:, :, 1:2] += conv1x3.weight
            conv.weight[:, :, :, 1:2] += conv3x1.weight
            conv.bias += conv1x3.bias + conv3x1.bias
        return conv1x1, conv


class ChannelAttention(nn.Sequential):
    """The channel unit of one attention head: the gate of equation (4) of `DAN
    <https://doi.org/10.3390/biomimetics8020199>`_.

    It takes pooled features of shape ``(B, C)`` and returns a gate in (0, 1)
    of the same shape.

    Args:
        in_channels (int): The number of channels C of the feature map.
    """

    def __init__(self, in_channels: int) -> None:
        mid_channels = in_channels // 16
        super().__init__(
            nn.Linear(in_channels, mid_channels), nn.BatchNorm1d(mid_channels),
            nn.ReLU(inplace=True), nn.Linear(mid_channels, in_channels),
            nn.Sigmoid())


class AttentionHead(nn.Module):
    """A spatial and a channel unit, used one after the other by
    :class:`MAN`."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.spatial = SpatialAttention(in_channels)
        self.channel = ChannelAttention(in_channels)


def _stack(convs: Iterable[nn.Conv2d], groups: int) -> nn.Conv2d:
    """Make one convolution of those of all heads: of the same input, or with
    a group for each."""
    convs = tuple(convs)
    first = convs[0]
    stacked = nn.Conv2d(
        first.in_channels * groups,
        first.out_channels * len(convs),
        first.kernel_size,
        padding=first.padding,
        groups=groups,
        device=first.weight.device,
        dtype=first.weight.dtype)
    with torch.no_grad():
        stacked.weight.copy_(torch.cat([conv.weight for conv in convs]))
        stacked.bias.copy_(torch.cat([conv.bias for conv in convs]))
    return stacked.eval().requires_grad_(first.weight.requires_grad)


@MODELS.register_module()
class MAN(BaseModule):
    """Multi-head Attention Network, the neck of `DAN: Distract Your Attention
    <https://doi.org/10.3390/biomimetics8020199>`_, equations (3) and (4).

    Every head weighs the feature map with a spatial attention map of its own,
    pools it and gates the channels of the result. It is followed by the head
    :class:`AFN`.

    The heads run one after the other. Grouped convolutions over all heads were
    measured with ``tools/analysis_tools/benchmark_man.py`` and are slower
    in training; see ``configs/README.md``. With merged branches they are
    faster: :meth:`switch_to_deploy`.

    Args:
        in_channels (int): The number of channels C of the feature map, at
            least 16.
        num_heads (int): The number of attention heads K. Defaults to 4.
        in_index (int): Which of the backbone's outputs to use, if it has
            several. Defaults to -1, the last one.
        num_extra_tokens (int): If the backbone's output is a sequence of
            tokens: how many of them, at its beginning, are no image patches
            (class and distillation tokens). Defaults to 0.
        feat_size (tuple[int], optional): If the backbone's output is a
            sequence of tokens: the height and width of the map that they form.
            Defaults to None, which means a square.
        map_scale (float): A factor on the spatial attention maps that weigh
            the features. The vectors of the heads grow with the backbone's
            features, and large ones saturate the log-softmax of :class:`AFN`.
            Defaults to 1.0, as in the original code.
        init_cfg (dict | list, optional): The initialisation. Defaults to that
            of the original code: convolutions kaiming-normal (fan-out),
            linear layers N(0, 0.001), biases 0.

    Examples:
        >>> import torch
        >>> from dan_mm.models import MAN
        >>> neck = MAN(in_channels=512)
        >>> x, heads = neck(torch.rand(2, 512, 7, 7))
        >>> x.shape, heads.shape
        (torch.Size([2, 512, 7, 7]), torch.Size([2, 4, 512]))
        >>> neck.attention_maps(x).shape
        torch.Size([2, 4, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 4,
        in_index: int = -1,
        num_extra_tokens: int = 0,
        feat_size: Optional[Tuple[int, int]] = None,
        map_scale: float = 1.0,
        init_cfg: Union[dict, List[dict], None] = [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Normal', layer='Linear', std=0.001),
            dict(type='Constant', layer=['BatchNorm1d', 'BatchNorm2d'], val=1),
        ]
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels < 16:
            raise ValueError(
                f'MAN got in_channels={in_channels}, expected at least 16: '
                'its channel unit works on a sixteenth of them. Choose a '
                'wider stage of the backbone with `in_index`.')
        if num_heads < 1:
            raise ValueError(f'MAN got num_heads={num_heads}, expected at '
                             'least 1.')
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.in_index = in_index
        self.num_extra_tokens = num_extra_tokens
        self.feat_size = feat_size
        self.map_scale = map_scale
        self.heads = nn.ModuleList(
            AttentionHead(in_channels) for _ in range(num_heads))
        self.deploy = False

    def forward(
        self, feats: Union[torch.Tensor, Sequence[torch.Tensor]]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compute the feature map and the vectors of all heads.

        Args:
            feats (Tensor | Sequence[Tensor]): The output of the backbone, or
                its outputs. The chosen one is a map ``(B, C, H, W)``, tokens
                ``(B, L, C)`` or a vector ``(B, C)``.

        Returns:
            tuple[Tensor, Tensor]: The chosen feature map, of shape
            ``(B, C, H, W)``, and the raw attention vectors of the heads, of
            shape ``(B, K, C)`` and at least float32.

        Raises:
            ValueError: If the output of the backbone can't be read as a map
                of ``in_channels`` channels, or for a training batch of one.
        """
        x = self._to_map(feats)
        refuse_batch_of_one(self.heads[0].channel[1], x.size(0), 'MAN')
        maps = self._attention_maps(x)
        # The raw vectors are sums over hundreds of channels, about 70 at
        # first: bfloat16 would lose 7 % of their spread over the heads.
        with torch.autocast(x.device.type, enabled=False):
            pooled = torch.einsum('bchw,bkhw->bkc', x.to(maps.dtype), maps) * (
                self.map_scale / maps[0, 0].numel())
            dtype = self.heads[0].channel[0].weight.dtype
            heads = torch.stack([
                vector * head.channel(vector.to(dtype))
                for head, vector in zip(self.heads, pooled.unbind(dim=1))
            ], 1)  # yapf: disable
        return x, heads

    def attention_maps(
            self, feats: Union[torch.Tensor,
                               Sequence[torch.Tensor]]) -> torch.Tensor:
        """Compute the spatial attention maps of all heads, for figures and
        metrics.

        Args:
            feats (Tensor | Sequence[Tensor]): As in :meth:`forward`.

        Returns:
            Tensor: The maps, not normalised, >= 0, at least float32, of shape
            ``(B, K, H, W)``.

        Raises:
            ValueError: If the output of the backbone can't be read as a map
                of ``in_channels`` channels.
        """
        return self._attention_maps(self._to_map(feats))

    def _attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        if not self.deploy:
            return torch.cat([head.spatial(x) for head in self.heads], dim=1)
        y = torch.relu(self.conv3x3(self.conv1x1(x)))
        return y.unflatten(1, (self.num_heads, -1)).sum(
            dim=2, dtype=torch.promote_types(y.dtype, torch.float32))

    def switch_to_deploy(self) -> None:
        """Re-parameterise for inference, in place: fold BatchNorm, merge the
        three convolutions of each spatial unit into one and those of all
        heads into grouped ones.

        The outputs stay the same up to rounding. The names of the parameters
        change, and the neck can't be trained any more.
        """
        if self.deploy:
            return
        self.eval()
        conv1x1, conv3x3 = zip(*(head.spatial.merge() for head in self.heads))
        self.conv1x1 = _stack(conv1x1, 1)
        self.conv3x3 = _stack(conv3x3, self.num_heads)
        for head in self.heads:
            del head.spatial
            linear, norm, *rest = head.channel
            head.channel = nn.Sequential(
                fuse_linear_bn_eval(linear, norm), *rest)
        self.deploy = True

    def _to_map(
            self, feats: Union[torch.Tensor,
                               Sequence[torch.Tensor]]) -> torch.Tensor:
        """Pick the backbone's output and bring it to ``(B, C, H, W)``."""
        if isinstance(feats, (tuple, list)):
            if not -len(feats) <= self.in_index < len(feats):
                raise ValueError(
                    f'MAN got {len(feats)} outputs from the backbone and '
                    f'in_index={self.in_index}. Set `neck.in_index` to one of '
                    "them, or more stages in the backbone's `out_indices`.")
            feats = feats[self.in_index]
        if not isinstance(feats, torch.Tensor):
            raise ValueError(
                f'MAN got {type(feats).__name__} as the output of the '
                'backbone, expected a tensor. Choose an output that is one, '
                "with `neck.in_index` or `backbone.out_type='featmap'`; a "
                "backbone that has none can't feed MAN.")
        shape = tuple(feats.shape)
        channels = self.in_channels
        if feats.ndim == 4 and shape[1] == channels:
            return feats
        if feats.ndim == 3 and shape[2] == channels:
            return self._tokens_to_map(feats)
        if feats.ndim == 2 and shape[1] == channels:
            return feats[:, :, None, None]
        raise ValueError(
            f'MAN got features of shape {shape} from the backbone and '
            f'in_channels={channels}, expected (B, {channels}, H, W), '
            f'(B, L, {channels}) or (B, {channels}). Set `neck.in_channels` '
            'to the number of channels, or choose another output with '
            "`neck.in_index` or the backbone's `out_type` or "
            '`reshape_last_feat`.')

    def _tokens_to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        batch_size, length, channels = tokens.shape
        patches = length - self.num_extra_tokens
        if self.feat_size is None:
            side = math.isqrt(max(patches, 0))
            height, width = side, side
        else:
            height, width = self.feat_size
        if patches < 1 or height * width != patches:
            expected = ('a square number of'
                        if self.feat_size is None else f'{height} x {width}')
            raise ValueError(
                f'MAN got {length} tokens of shape {tuple(tokens.shape)}, '
                f'{self.num_extra_tokens} of them extra, expected {expected} '
                'patch tokens. Set `neck.num_extra_tokens` to the number of '
                "class and distillation tokens, and `neck.feat_size=(H, W)` "
                'if the map is not square.')
        tokens = tokens[:, self.num_extra_tokens:]
        return tokens.transpose(1, 2).reshape(batch_size, channels, height,
                                              width)
