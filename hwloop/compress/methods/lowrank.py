"""Low rank: a layer becomes two thin ones, with nothing between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.errors import CandidateError
from hwloop.records import Action, Group, Layer, LayerConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwloop.compress.moments import Moments

LEAST_CHANNELS = 64
"""Of the narrower side. Two kernels do not beat one where both are as thin as this."""

MOST_WORK = 0.65
"""Of the layer's multiply-accumulates: what a second kernel costs beside them must be won first."""


class LowRank(Method):
    """Halves or quarters the multiply-accumulates of a group's layers, and keeps their width.

    A k x k convolution of C to K channels becomes one of C to r and a 1x1 of r to K; r is the
    share of the rank at which both cost as much as the one, C K k^2 / (C k^2 + K), in multiples of
    what the target's kernels like. The r directions of the outputs are kept that vary most on real
    inputs (Zhang et al., TPAMI 2016, section 3.1; where those are not at hand, of the weights).
    """

    kind = "lowrank"
    usual = False

    def actions(self) -> tuple[Action, ...]:
        return tuple(Action(kind=self.kind, amount=share) for share in (0.5, 0.25))

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        return any(self._rank_of(layer.config, action, rules) for layer in layers)

    def rows(
        self, config: LayerConfig, action: Action, rules: SpaceRules
    ) -> tuple[LayerConfig, ...]:
        rank = self._rank_of(config, action, rules)
        if not rank:
            return (config,)
        first = replace(config, out_channels=rank, tail=())
        if config.op == "linear":
            return first, replace(config, in_shape=(config.in_shape[0], rank))
        shape = (config.in_shape[0], rank, *config.out_sides)
        one, none = (1, 1), (0, 0)
        return first, replace(config, in_shape=shape, kernel=one, stride=one, padding=none)

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        from hwloop.compress.calls import check_fits

        for group, action in chosen.items():
            for path in group.layers:
                _replace(work, path, partial(self._rank_in, action=action, rules=work.rules))
        check_fits(work.module, work.example)

    def describe(self, action: Action) -> str:
        return f"low rank, {100 * action.amount:g}% of the work"

    def _rank_of(self, config: LayerConfig, action: Action, rules: SpaceRules) -> int:
        if config.op not in ("conv", "linear") or config.groups > 1:
            return 0
        taps = math.prod(config.kernel) if config.op == "conv" else 1
        return self._rank(config.in_shape[1], config.out_channels, taps, action, rules)

    def _rank_in(self, layer: Any, action: Action, rules: SpaceRules) -> int:
        outputs, inputs, *kernel = layer.weight.shape
        if getattr(layer, "groups", 1) > 1:
            return 0
        return self._rank(inputs, outputs, math.prod(kernel), action, rules)

    def _rank(self, inputs: int, outputs: int, taps: int, action: Action, rules: SpaceRules) -> int:
        """0 where the layer stays as it is."""
        if min(inputs, outputs) < LEAST_CHANNELS:
            return 0
        whole, thin = inputs * outputs * taps, inputs * taps + outputs
        rank = max(round(action.amount * whole / thin / rules.align), 1) * rules.align
        return rank if rank * thin <= MOST_WORK * whole else 0


def _replace(work: Work, path: str, rank_in: Callable[[Any], int]) -> None:
    """One layer by two, under every name that it has.

    Raises:
        CandidateError: it computes something of its own.
    """
    from hwloop.compress.training import batch_norms

    names = dict(work.module.named_modules(remove_duplicate=False))
    layer: Any = names.get(path)
    rank = 0 if layer is None else rank_in(layer)  # none, where its block is left out
    if not rank:
        return
    if not _computes_as_torchs(layer):
        name = type(layer).__name__
        raise CandidateError("compress", f"{path} is a {name} and computes in a way of its own")
    normed = bool(batch_norms(work.module))
    made = _factored(layer, rank, work.given(path), normed=normed)
    for name, part in names.items():
        if part is layer:
            parent, _, own = name.rpartition(".")
            setattr(work.module.get_submodule(parent), own, made)


def _computes_as_torchs(layer: Any) -> bool:
    """Whether a layer is one of torch's, or of a class that only makes it differently."""
    from torch import nn

    own, computing = type(layer), ("__call__", "forward", "_conv_forward")
    return any(
        issubclass(own, known)
        and all(getattr(own, name, None) is getattr(known, name, None) for name in computing)
        for known in (nn.Linear, nn.Conv1d, nn.Conv2d)
    )


def _factored(layer: Any, rank: int, moments: Moments | None, *, normed: bool) -> nn.Sequential:
    """Two layers for one: the best that r directions of its outputs can do.

    With U the directions, W the weights and m the mean input: U^T W, then U, with the bias
    b + (1 - U U^T) W m.

    Args:
        normed: batch norms, renewed afterwards, make up for a mean that is lost without a bias.
    """
    import torch
    from torch import nn

    weight = layer.weight.detach().double()
    directions = _directions(weight, rank, moments, centred=layer.bias is not None or normed)
    first, second = _layers(layer, rank)
    with torch.no_grad():
        projected = directions.T @ weight.flatten(1)
        first.weight.copy_(projected.reshape(first.weight.shape))
        second.weight.copy_(directions.reshape(second.weight.shape))
        if second.bias is not None:
            second.bias.copy_(layer.bias)
            if moments is not None:
                mean = weight.reshape(*weight.shape[:2], -1).sum(2) @ moments.mean
                second.bias.add_(mean - directions @ (directions.T @ mean))
    return nn.Sequential(first, second).train(layer.training)


def _directions(weight: Tensor, rank: int, moments: Moments | None, *, centred: bool) -> Tensor:
    """(K, r) orthonormal: in which the outputs vary most, as if positions were independent.

    Args:
        centred: around their mean, which something else makes up for.
    """
    import torch

    taps = weight.reshape(*weight.shape[:2], -1)
    if moments is None:
        spread = torch.einsum("ict,jct->ij", taps, taps)
    else:
        spread = torch.einsum("ict,cd,jdt->ij", taps, moments.covariance, taps)
        if not centred:
            mean = taps.sum(2) @ moments.mean
            spread = spread + torch.outer(mean, mean)
    found: Tensor = torch.linalg.eigh(spread).eigenvectors[:, -rank:].flip(1)
    return found


def _layers(layer: Any, rank: int) -> tuple[Any, Any]:
    from torch import nn

    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(
            rank, layer.out_features, bias=bias
        )
    kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    first = kind(
        layer.in_channels,
        rank,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    )
    return first, kind(rank, layer.out_channels, 1, bias=bias)
