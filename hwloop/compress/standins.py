"""What stands in for layers while channels are followed and cut, and is put back afterwards.

torch-pruning follows channels through what treats each for itself. A grouped convolution, a group
norm and an attention of heads treat whole bundles so; with a channel at a time in their places,
what is coupled is the same, and a bundle is what must be cut as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.errors import CandidateError
from hwloop.tasks.attention import BY_HEADS, ExplicitAttention

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
            if norm.num_groups > 1:
                norm.num_groups = norm.num_channels // bundles[norm]
        broken = [conv for conv, weight, groups in originals if not _put_back(conv, weight, groups)]
        if broken:
            raise CandidateError("compress", "part of a convolution's group was cut")


def _scaled(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Each channel alone."""
    if not norm.affine:
        return x * 1.0
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return x * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def _make_depthwise(conv: Any) -> None:
    numbers = torch.arange(conv.out_channels, dtype=conv.weight.dtype)
    shape = (conv.out_channels, 1, *conv.kernel_size)
    columns = numbers.reshape(-1, *(1,) * (len(shape) - 1))
    conv.weight = nn.Parameter(columns.expand(shape).clone())
    conv.groups = conv.out_channels


def _is_grouped(child: Any) -> bool:
    """Whether a convolution reads and writes its channels in equal bundles."""
    if not isinstance(child, GROUPED_TYPES) or not 1 < child.groups < child.out_channels:
        return False
    return child.in_channels == child.out_channels


def _put_back(conv: Any, weight: nn.Parameter, groups: int) -> bool:
    """The convolution with what is left of its channels; false where that is no whole groups."""
    kept = conv.weight.detach().flatten(1)[:, 0].long()
    bundle = len(weight) // groups
    conv.weight, conv.groups = weight, groups
    if torch.equal(kept, torch.arange(len(weight))):
        return True
    conv.weight = nn.Parameter(weight.detach()[kept], requires_grad=weight.requires_grad)
    conv.groups = max(len(kept) // bundle, 1)
    if len(kept) % bundle:
        return False
    whole = kept.reshape(-1, bundle) - kept.reshape(-1, bundle)[:, :1]
    return bool((whole == torch.arange(bundle)).all() and (kept[::bundle] % bundle == 0).all())
