"""What stands in for layers while channels are followed and cut, and is put back afterwards.

torch-pruning follows channels through what treats each for itself. A grouped convolution, a group
norm and an attention of heads treat whole bundles so; with a channel at a time in their places,
what is coupled is the same, and a bundle is what must be cut as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hwloop.errors import CandidateError
from hwloop.tasks.explicit import BY_HEADS, ExplicitAttention

GROUPED_TYPES = (nn.Conv1d, nn.Conv2d)


@contextmanager
def standing_in(module: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Until the block ends, every layer treats channels alone.

    Grouped convolutions are depthwise ones, whose weights are the numbers of their channels: what
    is left of them says in the end which channels are left.

    Yields:
        Layer → channels that can only go together, side by side.

    Raises:
        CandidateError: stage ``compress``: less than a whole bundle was cut.
    """
    grouped: list[Any] = [child for child in module.modules() if _is_grouped(child)]
    norms = [
        child
        for child in module.modules()
        if isinstance(child, nn.GroupNorm) and child.num_groups > 1
    ]
    attentions = [child for child in module.modules() if isinstance(child, ExplicitAttention)]
    originals = [(conv, conv.weight, conv.groups) for conv in grouped]
    bundles: dict[nn.Module, int] = {
        conv: conv.out_channels // groups for conv, _, groups in originals
    }
    bundles.update((norm, norm.num_channels // norm.num_groups) for norm in norms)
    for norm in norms:
        norm.num_groups = norm.num_channels
    for attention in attentions:
        layers = (attention.get_submodule(name) for name in BY_HEADS)
        bundles.update(dict.fromkeys(layers, attention.head_channels))
        attention.channelwise = True
    for conv in grouped:
        numbers = torch.arange(conv.out_channels, dtype=conv.weight.dtype)
        shape = (conv.out_channels, 1, *conv.kernel_size)
        columns = numbers.reshape(-1, *(1,) * (len(shape) - 1))
        conv.weight = nn.Parameter(columns.expand(shape).clone())
        conv.groups = conv.out_channels
    try:
        yield bundles
    finally:
        for attention in attentions:
            attention.channelwise = False
        for norm in norms:
            norm.num_groups = norm.num_channels // bundles[norm]
        for conv, weight, groups in originals:
            _put_back(conv, weight, groups)


def _is_grouped(child: Any) -> bool:
    """Whether a convolution reads and writes its channels in equal bundles."""
    if not isinstance(child, GROUPED_TYPES) or not 1 < child.groups < child.out_channels:
        return False
    return child.in_channels == child.out_channels


def _put_back(conv: Any, weight: nn.Parameter, groups: int) -> None:
    kept = conv.weight.detach().flatten(1)[:, 0].long()
    bundle = len(weight) // groups
    if len(kept) == len(weight):
        conv.weight, conv.groups = weight, groups
        return
    conv.weight = nn.Parameter(weight.detach()[kept].clone(), requires_grad=weight.requires_grad)
    conv.groups = len(kept) // bundle
    whole = kept.reshape(-1, bundle) if len(kept) % bundle == 0 else None
    if whole is None or bool((whole // bundle != whole[:, :1] // bundle).any()):
        raise CandidateError("compress", "part of a convolution's group was cut")
