"""What stands in for layers while channels are followed, and is put back afterwards.

torch-pruning follows channels through what treats each for itself. A grouped convolution, a group
norm and an attention of heads treat whole bundles so; with a channel at a time in their places,
what is coupled is the same, and a bundle is what must be cut as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hwloop.tasks.attention import BY_HEADS, ExplicitAttention

GROUPED_TYPES = (nn.Conv1d, nn.Conv2d)


@contextmanager
def standing_in(module: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Until the block ends, every layer treats channels alone.

    Yields:
        Layer → channels that can only go together, side by side.
    """
    grouped: list[Any] = [child for child in module.modules() if _is_grouped(child)]
    norms = [child for child in module.modules() if isinstance(child, nn.GroupNorm)]
    attentions = [child for child in module.modules() if isinstance(child, ExplicitAttention)]
    originals = [(conv, conv.weight, conv.groups) for conv in grouped]
    bundles: dict[nn.Module, int] = {
        conv: conv.out_channels // groups for conv, _, groups in originals
    }
    for norm in norms:  # over all channels they are no bundles: any may go
        bundles[norm] = norm.num_channels // norm.num_groups if norm.num_groups > 1 else 1
    for attention in attentions:
        layers = (attention.get_submodule(name) for name in BY_HEADS)
        bundles.update(dict.fromkeys(layers, attention.head_channels))
    try:
        for attention in attentions:
            attention.channelwise = True
        for norm in norms:
            norm.forward = partial(_scaled, norm)  # type: ignore[method-assign]
        for conv in grouped:
            _make_depthwise(conv)
        yield bundles
    finally:
        for attention in attentions:
            attention.channelwise = False
        for norm in norms:
            del norm.forward
        for conv, weight, groups in originals:
            conv.weight, conv.groups = weight, groups


def make_norms_scales(module: nn.Module) -> None:
    """From here on every norm over channels treats each alone."""
    for child in module.modules():
        if isinstance(child, nn.LayerNorm | nn.GroupNorm):
            child.forward = partial(_scaled, child)  # type: ignore[method-assign]


def channels_dim(layer: nn.Module, x: Tensor) -> int:
    """Which dimension of its inputs a layer or norm takes for channels."""
    if isinstance(layer, nn.LayerNorm):  # that of torchvision's ConvNeXt is given images
        return -1 if x.shape[-1] == layer.normalized_shape[-1] else 1
    return -1 if isinstance(layer, nn.Linear) else 1


def _scaled(norm: nn.LayerNorm | nn.GroupNorm, x: Tensor) -> Tensor:
    """Each channel alone."""
    if norm.weight is None:
        return x * 1.0
    shape = [1] * x.ndim
    shape[channels_dim(norm, x)] = -1
    bias = 0.0 if norm.bias is None else norm.bias.reshape(shape)
    return x * norm.weight.reshape(shape) + bias


def _make_depthwise(conv: Any) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:, :1].clone())
    conv.groups = conv.out_channels


def _is_grouped(child: Any) -> bool:
    """Whether a convolution reads and writes its channels in equal bundles."""
    if not isinstance(child, GROUPED_TYPES) or not 1 < child.groups < child.out_channels:
        return False
    return child.in_channels == child.out_channels
