"""Structured pruning: which channels of a coupled group go, and cutting them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.calls import sharing_copy
from hwloop.compress.coupling import check_fits, scopes_of
from hwloop.compress.moments import InputMoments
from hwloop.compress.pruning_graph import in_channels_of, out_channels
from hwloop.compress.refit import Reader, by_loss, refit
from hwloop.compress.tracing import Dependencies, dependencies
from hwloop.compress.training import batch_norms
from hwloop.errors import CandidateError, UsageError

Order = tuple[int, ...]
"""Channels of a group's first layer, the most important first."""

Pairs = list[tuple[int, int]]
"""A layer's input, and the group's channel that it is of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """What of a group decides a cut, in the dense network: its channels, and who reads them."""

    order: Order
    readers: Mapping[str, Pairs]


_rankings: WeakKeyDictionary[nn.Module, tuple[object, dict[str, _Ranked]]] = WeakKeyDictionary()
"""Dense network → its weights' state, and the groups that were asked for."""


def ranking(
    dense: nn.Module, example: Tensor, paths: Iterable[str], moments: InputMoments | None = None
) -> dict[str, Order]:
    """The channels of groups by importance; computed once per group while the weights stay.

    With the moments of what layers are given, the order in which channels can be done without
    (:func:`hwloop.compress.refit.by_loss`). Without, or where no layer that reads the group has
    any: the mean over the coupled layers of the squared norm of a channel's weights (Fang et al.,
    CVPR 2023, section 3.3).

    Args:
        dense: the network whose weights decide.
        example: (N, ...) an input of the deployed shape.
        paths: of the groups' first layers.
        moments: of the dense network's layers.

    Raises:
        UsageError: torch-pruning cannot trace the network.
    """
    return {path: ranked.order for path, ranked in _ranked(dense, example, paths, moments).items()}


def _ranked(
    dense: nn.Module, example: Tensor, paths: Iterable[str], moments: InputMoments | None
) -> dict[str, _Ranked]:
    wanted = list(paths)
    state = (moments, [(value.data_ptr(), value._version) for value in dense.parameters()])
    known = _rankings.get(dense)
    if known is None or known[0] != state:
        known = _rankings[dense] = state, {}
    groups = known[1]
    lacking = [path for path in wanted if path not in groups]
    if lacking:
        with dependencies(sharing_copy(dense), scopes_of(dense, example, lacking)) as graph:
            for path in lacking:
                groups[path] = _ranked_group(dense, graph, path, moments or {})
    return {path: groups[path] for path in wanted}


def _ranked_group(
    dense: nn.Module, graph: Dependencies, path: str, moments: InputMoments
) -> _Ranked:
    readers = graph.readers(path)
    return _Ranked(order=_order(dense, graph, path, readers, moments), readers=readers)


def _order(
    dense: nn.Module,
    graph: Dependencies,
    path: str,
    found: Mapping[str, Pairs],
    moments: InputMoments,
) -> Order:
    width, bundle = out_channels(dense.get_submodule(path)), graph.members(path).bundle
    readers = []
    for reader, pairs in found.items():
        if reader in moments and pairs:
            inputs, channels = torch.tensor(sorted(pairs)).T
            weight = dense.get_submodule(reader).get_parameter("weight")
            readers.append(
                Reader(
                    weight=weight,
                    moments=moments[reader],
                    inputs=inputs,
                    channels=channels // bundle,
                )
            )
    if readers:
        return tuple(in_channels_of(by_loss(readers, width // bundle), bundle))
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
    scores = importance(graph.group(path)).reshape(-1, bundle).sum(1)
    ordered = torch.argsort(scores, descending=True, stable=True).tolist()
    return tuple(in_channels_of(ordered, bundle))


def cut(
    module: nn.Module,
    example: Tensor,
    widths: Mapping[str, int],
    *,
    dense: nn.Module,
    moments: InputMoments | None = None,
) -> None:
    """Cut groups to fewer channels, in place: the least important go.

    With moments, the layers that read them are fitted to what stays; batch norms are to be renewed.

    Args:
        module: the network to cut, a copy of ``dense``.
        example: (N, ...) an input of the deployed shape.
        widths: path of a group's first layer → channels that stay.
        dense: the network whose weights decide, so that the choice does not depend on the order
            of the groups.
        moments: of the dense network's layers.

    Raises:
        CandidateError: stage ``compress``: a group cannot be cut to that width.
    """
    groups = _ranked(dense, example, widths, moments)
    if widths:
        _refit_readers(module, groups, widths, moments or {})
        try:
            with dependencies(module, scopes_of(dense, example, widths)) as graph:
                for path, width in widths.items():
                    graph.cut(path, groups[path].order[:width])
        except UsageError as error:  # the dense network could be traced
            what = f"the pruned layers do not fit: {error.message}"
            raise CandidateError("compress", what) from error
    check_fits(module, example)


def _refit_readers(
    module: nn.Module,
    groups: Mapping[str, _Ranked],
    widths: Mapping[str, int],
    moments: InputMoments,
) -> None:
    """Each layer once, for all that it loses: a concatenation brings it channels of several."""
    removed: dict[str, set[int]] = {}
    for path, width in widths.items():
        gone = set(groups[path].order[width:])
        for reader, pairs in groups[path].readers.items():
            inputs = {index for index, channel in pairs if channel in gone}
            if reader in moments and inputs:
                removed.setdefault(reader, set()).update(inputs)
    normed = bool(batch_norms(module))
    there = {path for path, _ in module.named_modules()}
    for reader, inputs in removed.items():
        if reader in there:  # and not in a block that was left out
            refit(module.get_submodule(reader), moments[reader], sorted(inputs), normed=normed)
