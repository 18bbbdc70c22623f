"""Structured pruning: which channels of a coupled group go, and cutting them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hwloop.compress import slices
from hwloop.compress.calls import check_fits
from hwloop.compress.coupled import Coupling
from hwloop.compress.coupling import cuttable
from hwloop.compress.moments import InputMoments
from hwloop.compress.pruning_graph import in_channels_of
from hwloop.compress.refit import Reader, by_loss, refit
from hwloop.compress.slices import Side, Slice
from hwloop.compress.training import batch_norms

Order = tuple[int, ...]
"""Channels of a group, the most important first, by their numbers in the layer asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """What of a group decides a cut, in the dense network: its channels, and where they lie."""

    order: Order
    slices: tuple[Slice, ...]


_Known = tuple[object, dict[str, _Ranked]]
_rankings: WeakKeyDictionary[nn.Module, dict[bool, _Known]] = WeakKeyDictionary()
"""Dense network → with and without moments: the state of what decides, and the groups that were
asked for. What is restored from weights has none, between candidates that have them."""


def ranking(
    dense: nn.Module, example: Tensor, paths: Iterable[str], moments: InputMoments | None = None
) -> dict[str, Order]:
    """The channels of groups by importance; computed once per group while the weights stay.

    With the moments of what layers are given, the order in which channels can be done without
    (:func:`hwloop.compress.refit.by_loss`). Without, or where no layer that reads the group has
    any: the sum over the coupled layers of the squared norm of a channel's weights (Fang et al.,
    CVPR 2023, section 3.3).

    Args:
        dense: the network whose weights decide.
        example: (N, ...) an input of the deployed shape.
        paths: of the groups' first layers.
        moments: of the dense network's layers.

    Raises:
        CandidateError: stage ``compress``: one of the groups cannot be cut.
        UsageError: the network cannot be run.
    """
    return {path: ranked.order for path, ranked in _ranked(dense, example, paths, moments).items()}


def _ranked(
    dense: nn.Module, example: Tensor, paths: Iterable[str], moments: InputMoments | None
) -> dict[str, _Ranked]:
    wanted = list(paths)
    state = (moments, [(value.data_ptr(), value._version) for value in dense.parameters()])
    of_both = _rankings.setdefault(dense, {})
    known = of_both.get(moments is None)
    if known is None or known[0] != state:
        known = of_both[moments is None] = state, {}
    groups = known[1]
    lacking = cuttable(dense, example, [path for path in wanted if path not in groups])
    for path, group in lacking.items():
        readers = _readers(dense, group, moments or {})
        count = group.channels // group.bundle
        bundles = by_loss(readers, count) if readers else _by_magnitude(dense, group)
        groups[path] = _Ranked(
            order=tuple(in_channels_of(bundles, group.bundle)), slices=group.slices
        )
    return {path: groups[path] for path in wanted}


def _readers(dense: nn.Module, group: Coupling, moments: InputMoments) -> list[Reader]:
    found = []
    for path, pairs in _pairs(group.slices).items():
        if path in moments:
            inputs, channels = torch.tensor(sorted(pairs)).T
            weight = dense.get_submodule(path).get_parameter("weight")
            channels = channels // group.bundle
            found.append(
                Reader(weight=weight, moments=moments[path], inputs=inputs, channels=channels)
            )
    return found


def _pairs(slices: Iterable[Slice]) -> dict[str, list[tuple[int, int]]]:
    """Path of a layer that reads a group → pairs of its input and the group's channel."""
    return {
        each.path: [(own, channel) for channel, places in each.places.items() for own in places]
        for each in slices
        if each.side is Side.INPUTS
    }


def _by_magnitude(dense: nn.Module, group: Coupling) -> tuple[int, ...]:
    """A group's bundles, the most important first."""
    scores = torch.zeros(group.channels)
    for each in group.slices:
        part = None if each.side is Side.PARAMETER else dense.get_submodule(each.path)
        weight = getattr(part, "weight", None)
        inputs = each.side is Side.INPUTS
        if not isinstance(weight, Tensor) or (inputs and getattr(part, "groups", 1) > 1):
            continue
        rows = weight.detach().transpose(0, 1) if inputs else weight.detach()
        squares = rows.reshape(len(rows), -1).square().sum(1)
        if len(squares) == 1:  # one number for all
            continue
        if all(len(places) == 1 for places in each.places.values()):
            own = [place for (place,) in each.places.values()]
            scores[list(each.places)] += squares[own]
            continue
        for channel, places in each.places.items():
            scores[channel] += squares[list(places)].sum()
    bundles = scores.reshape(-1, group.bundle).sum(1)
    return tuple(torch.argsort(bundles, descending=True, stable=True).tolist())


def cut(
    module: nn.Module,
    example: Tensor,
    widths: Mapping[str, int],
    *,
    dense: nn.Module,
    moments: InputMoments | None = None,
) -> dict[str, set[int]]:
    """Cut groups to fewer channels, in place: the least important go.

    With moments, the layers that read them are fitted to what stays; batch norms are to be renewed.

    Args:
        module: the network to cut, a copy of ``dense``.
        example: (N, ...) an input of the deployed shape.
        widths: path of a group's first layer → channels that stay.
        dense: the network whose weights decide, so that the choice does not depend on the order
            of the groups.
        moments: of the dense network's layers.

    Returns:
        Path of a layer with moments → its inputs that went.

    Raises:
        CandidateError: stage ``compress``: a group cannot be cut to that width.
    """
    groups = _ranked(dense, example, widths, moments)
    lost = _refit_readers(module, groups, widths, moments or {})
    slices.cut(
        module,
        [(groups[path].slices, groups[path].order[width:]) for path, width in widths.items()],
    )
    check_fits(module, example)
    return lost


def _refit_readers(
    module: nn.Module,
    groups: Mapping[str, _Ranked],
    widths: Mapping[str, int],
    moments: InputMoments,
) -> dict[str, set[int]]:
    """Each layer once, for all that it loses: a concatenation brings it channels of several.

    Returns:
        The inputs that each loses.
    """
    removed: dict[str, set[int]] = {}
    for path, width in widths.items():
        gone = set(groups[path].order[width:])
        for reader, pairs in _pairs(groups[path].slices).items():
            inputs = {index for index, channel in pairs if channel in gone}
            if reader in moments and inputs:
                removed.setdefault(reader, set()).update(inputs)
    normed = bool(batch_norms(module))
    there = {path for path, _ in module.named_modules()}
    for reader, inputs in removed.items():
        if reader in there:  # and not in a block that was left out
            refit(module.get_submodule(reader), moments[reader], sorted(inputs), normed=normed)
    return removed
