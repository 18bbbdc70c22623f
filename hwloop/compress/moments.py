"""What the layers of the dense network are given: mean and covariance of their input channels.

The closed forms of pruning (:mod:`hwloop.compress.refit`) need nothing else of the data. One pass
over real inputs, a sample of the positions, and only layers that are small enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

MOST_FEATURES = 2048
"""Wider layers, as behind a flattened map, are left out: their covariances take 32 MB and more."""

ROWS_PER_FEATURE = 4
LEAST_ROWS = 1024
"""Positions that are sampled of each batch: so many for each input channel, but not fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Of a layer's input channels, over inputs and positions.

    Attributes:
        mean: (C,) float64.
        covariance: (C, C) float64.
    """

    mean: Tensor
    covariance: Tensor

    def without(self, removed: Collection[int]) -> Moments:
        """Of the channels that stay."""
        stays = torch.ones(len(self.mean), dtype=torch.bool)
        stays[sorted(removed)] = False
        return Moments(mean=self.mean[stays], covariance=self.covariance[stays][:, stays])


InputMoments: TypeAlias = Mapping[str, Moments]
"""Path of a convolution or a linear layer → what it is given."""


def input_moments(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """The moments of every ungrouped 2-D convolution and linear layer that forward uses.

    Args:
        module: the dense network; left in eval mode.
        batches: (N, ...) real inputs.

    Returns:
        By path, without layers that were given what is no number.
    """
    sums: dict[str, _Sums] = {}
    handles = [
        child.register_forward_pre_hook(_counting(sums, path))
        for path, child in module.named_modules()
        if is_refitted(child)
    ]
    try:
        module.eval()
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {path: layer.moments() for path, layer in sums.items()}
    return {path: each for path, each in found.items() if bool(each.covariance.isfinite().all())}


def is_refitted(layer: Any) -> bool:
    """Whether a layer's moments are kept: it mixes all its input channels, and they are few."""
    if isinstance(layer, nn.Linear):
        return layer.in_features <= MOST_FEATURES
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return plain and layer.in_channels <= MOST_FEATURES


class _Sums:
    """Running sums of one layer's inputs; the positions are drawn by a seed of its own."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.count = 0
        self.total = torch.zeros(features, dtype=torch.float64)
        self.squares = torch.zeros(features, features, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(features)

    def add(self, inputs: Tensor) -> None:
        """Inputs (N, positions, C)."""
        images, positions = inputs.shape[:2]
        wanted = max(LEAST_ROWS, ROWS_PER_FEATURE * self.features)
        drawn = torch.randperm(images * positions, generator=self._generator)[:wanted]
        rows = inputs[drawn // positions, drawn % positions].double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.squares += rows.T @ rows

    def moments(self) -> Moments:
        mean = self.total / self.count
        return Moments(mean=mean, covariance=self.squares / self.count - torch.outer(mean, mean))


def _counting(sums: dict[str, _Sums], path: str) -> Callable[[Any, tuple[Any, ...]], None]:
    def count(layer: Any, arguments: tuple[Any, ...]) -> None:
        inputs, features = arguments[0].detach(), int(layer.weight.shape[1])
        if path not in sums:
            sums[path] = _Sums(features)
        if isinstance(layer, nn.Linear):  # (..., C), whatever the sizes before
            sums[path].add(inputs.reshape(1, -1, features))
        else:  # (N, C, H, W), or one image of it
            sums[path].add(inputs.reshape(-1, features, *inputs.shape[-2:]).flatten(2).mT)

    return count
