"""2:4 sparsity: of every four consecutive input channels, each output reads at most two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.records import Action, Group, Layer, LayerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hwloop.compress.moments import Moments

FOUR, KEPT = 4, 2
INPUTS, OUTPUTS = 16, 8
"""Channels are multiples of them, as the kernels of NVIDIA's tensor cores need it."""

LEAST_CHANNELS = 128
"""Thinner layers have no sparse kernel that is faster than their dense one."""

RIDGE = 0.01
"""Of the mean variance of a layer's inputs: draws what stays towards what it was."""


class Sparse(Method):
    """Halves the weights that a layer reads, in the pattern that tensor cores skip.

    Which two of four go, and what the others make up for, is told by what the layer is given:
    columns from left to right, the least of w^2 / H^-1 first (Frantar and Alistarh, ICML 2023,
    section 3; Mishra et al., 2021, for the pattern). Distillation keeps the zeros.
    """

    kind = "sparse"
    usual = False

    def actions(self) -> tuple[Action, ...]:
        return (Action(kind=self.kind, amount=KEPT / FOUR),)

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        return any(_is_eligible(layer.config) for layer in layers)

    def rows(
        self, config: LayerConfig, action: Action, rules: SpaceRules
    ) -> tuple[LayerConfig, ...]:
        return (replace(config, sparsity="2:4"),) if _is_eligible(config) else (config,)

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        names = dict(work.module.named_modules(remove_duplicate=False))
        done: set[int] = set()
        for group in chosen:
            for path in group.layers:
                layer: Any = names.get(path)  # none, where its block is left out
                if layer is not None and id(layer) not in done and _has_room(layer):
                    _thin_out(layer, work.given(path))
                    done.add(id(layer))

    def describe(self, action: Action) -> str:
        return "2:4 sparse"


def _is_eligible(config: LayerConfig) -> bool:
    if config.op not in ("conv", "linear") or config.groups > 1:
        return False
    return _fits(config.in_shape[1], config.out_channels)


def _has_room(layer: Any) -> bool:
    return getattr(layer, "groups", 1) == 1 and _fits(layer.weight.shape[1], len(layer.weight))


def _fits(inputs: int, outputs: int) -> bool:
    wide = min(inputs, outputs) >= LEAST_CHANNELS
    return wide and inputs % INPUTS == 0 and outputs % OUTPUTS == 0


def _thin_out(layer: Any, moments: Moments | None) -> None:
    """A layer in place."""
    import torch

    from hwloop.compress.training import keep_zeros

    weight = layer.weight.detach().double()
    taps = weight.reshape(*weight.shape[:2], -1).transpose(1, 2)
    rows = taps.reshape(-1, weight.shape[1])
    found = thinned(rows, _second_moments(moments))
    found = found.reshape(taps.shape).transpose(1, 2).reshape(weight.shape)
    with torch.no_grad():
        layer.weight.copy_(found)
    keep_zeros(layer)


def _second_moments(moments: Moments | None) -> Tensor | None:
    """(C, C) of what a layer is given; None where that is not known."""
    import torch

    if moments is None:
        return None
    found = moments.covariance + torch.outer(moments.mean, moments.mean)
    ridge = RIDGE * found.diagonal().mean().clamp(min=1e-12)
    return found + ridge * torch.eye(len(found), dtype=torch.float64)


def thinned(rows: Tensor, moments: Tensor | None) -> Tensor:
    """(R, C) weights with two of every four columns zero, the others refitted.

    Args:
        moments: (C, C) second moments of the columns' inputs, positive definite; without, the
            smallest weights go and the others stay.
    """
    import torch

    if moments is None:
        fours = rows.reshape(len(rows), -1, FOUR)
        gone = fours.abs().topk(FOUR - KEPT, dim=2, largest=False).indices
        return fours.scatter(2, gone, 0.0).reshape(rows.shape)
    factor = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True)
    left = rows.clone()
    for begin in range(0, left.shape[1], FOUR):
        four = slice(begin, begin + FOUR)
        loss = (left[:, four] / factor.diagonal()[four]) ** 2
        gone = torch.zeros_like(loss, dtype=torch.bool)
        gone.scatter_(1, loss.topk(FOUR - KEPT, largest=False).indices, True)
        for column in range(begin, begin + FOUR):
            lost = left[:, column] * gone[:, column - begin] / factor[column, column]
            left[:, column:] -= torch.outer(lost, factor[column, column:])
            left[gone[:, column - begin], column] = 0.0
    return left
