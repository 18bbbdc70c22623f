"""Structured pruning: which channels of a coupled group go, and cutting them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.coupling import check_fits, dependencies, tracing_input
from hwloop.errors import CandidateError, UsageError

Order = tuple[int, ...]
"""Channels of a group's first layer, the most important first."""

_rankings: WeakKeyDictionary[nn.Module, tuple[object, dict[str, Order]]] = WeakKeyDictionary()
"""Dense network → its weights' state, and the orders that were asked for."""


def ranking(dense: nn.Module, example: Tensor, paths: Iterable[str]) -> dict[str, Order]:
    """The channels of groups by importance; computed once per group while the weights stay.

    A channel's importance is the mean over the coupled layers of the squared norm of its weights
    (Fang et al., CVPR 2023, section 3.3), each layer's normalised by its mean.

    Args:
        dense: the network whose weights decide.
        example: (N, ...) an input of the deployed shape.
        paths: of the groups' first layers.

    Raises:
        UsageError: torch-pruning cannot trace the network.
    """
    wanted = list(paths)
    state = [(value.data_ptr(), value._version) for value in dense.parameters()]
    known = _rankings.get(dense)
    if known is None or known[0] != state:
        known = _rankings[dense] = state, {}
    orders = known[1]
    if not orders.keys() >= set(wanted):
        importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
        with dependencies(dense, tracing_input(dense, example)) as graph:
            for path in wanted:
                found = importance(graph.group(path))
                orders[path] = tuple(torch.argsort(found, descending=True, stable=True).tolist())
    return {path: orders[path] for path in wanted}


def cut(module: nn.Module, example: Tensor, widths: Mapping[str, int], *, dense: nn.Module) -> None:
    """Cut groups to fewer channels, in place: the channels with the smallest weights go.

    Args:
        module: the network to cut, a copy of ``dense``.
        example: (N, ...) an input of the deployed shape.
        widths: path of a group's first layer → channels that stay.
        dense: the network whose weights decide, so that the choice does not depend on the order
            of the groups.

    Raises:
        CandidateError: stage ``compress``: a group cannot be cut to that width.
    """
    orders = ranking(dense, example, widths)
    if widths:
        try:
            with dependencies(module, tracing_input(dense, example)) as graph:
                for path, width in widths.items():
                    graph.cut(path, orders[path][:width])
        except UsageError as error:  # the dense network could be traced
            what = f"the pruned layers do not fit: {error.message}"
            raise CandidateError("compress", what) from error
    check_fits(module, example)
