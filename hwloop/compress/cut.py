"""Structured pruning: which channels of a coupled group go, and cutting them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.coupling import check_fits, in_channels_of, scopes_of
from hwloop.compress.moments import InputMoments
from hwloop.compress.refit import Reader, by_loss, refit
from hwloop.compress.tracing import Dependencies, dependencies, out_channels
from hwloop.compress.training import batch_norms
from hwloop.errors import CandidateError, UsageError

Order = tuple[int, ...]
"""Channels of a group's first layer, the most important first."""

_rankings: WeakKeyDictionary[nn.Module, tuple[object, dict[str, Order]]] = WeakKeyDictionary()
"""Dense network → its weights' state, and the orders that were asked for."""


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
    wanted = list(paths)
    state = (moments, [(value.data_ptr(), value._version) for value in dense.parameters()])
    known = _rankings.get(dense)
    if known is None or known[0] != state:
        known = _rankings[dense] = state, {}
    orders = known[1]
    if not orders.keys() >= set(wanted):
        with dependencies(dense, scopes_of(dense, example, wanted)) as graph:
            for path in wanted:
                orders[path] = _order(dense, graph, path, moments or {})
    return {path: orders[path] for path in wanted}


def _order(dense: nn.Module, graph: Dependencies, path: str, moments: InputMoments) -> Order:
    width, bundle = out_channels(dense.get_submodule(path)), graph.bundle(path)
    readers = []
    for reader, pairs in graph.readers(path).items():
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
    orders = ranking(dense, example, widths, moments)
    if widths:
        try:
            with dependencies(module, scopes_of(dense, example, widths)) as graph:
                gone = {path: orders[path][width:] for path, width in widths.items()}
                _refit_readers(module, graph, gone, moments or {})
                for path, width in widths.items():
                    graph.cut(path, orders[path][:width])
        except UsageError as error:  # the dense network could be traced
            what = f"the pruned layers do not fit: {error.message}"
            raise CandidateError("compress", what) from error
    check_fits(module, example)


def _refit_readers(
    module: nn.Module, graph: Dependencies, gone: Mapping[str, Order], moments: InputMoments
) -> None:
    """Each layer once, for all that it loses: a concatenation brings it channels of several."""
    removed: dict[str, set[int]] = {}
    for path, channels in gone.items():
        for reader, pairs in graph.readers(path, channels).items():
            if reader in moments:
                removed.setdefault(reader, set()).update(index for index, _ in pairs)
    normed = bool(batch_norms(module))
    for reader, inputs in removed.items():
        layer = module.get_submodule(reader)
        refit(layer, moments[reader], sorted(inputs), normed=normed)
