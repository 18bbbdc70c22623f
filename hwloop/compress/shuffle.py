"""Channels in another order: where they are followed rightly, the network answers as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

WRITERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
BY_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def shuffle(graph: Any, group: Any, order: Sequence[int]) -> None:
    """Bring a group's channels into another order, in place, with new tensors.

    Args:
        graph: torch-pruning's, of the part that the group was found in.
        group: with all its channels.
        order: which channel comes to each place.
    """
    places: dict[tuple[Any, bool], dict[int, list[int]]] = {}
    for item in group:
        writes = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        own = places.setdefault((item.dep.target, writes), {})
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is not None and index not in own.setdefault(root, []):
                own[root].append(index)
    for (node, writes), own in places.items():
        _reorder(graph, node, own, order, axis=0 if writes else 1)


def _reorder(
    graph: Any, node: Any, own: dict[int, list[int]], order: Sequence[int], *, axis: int
) -> None:
    target = node.module
    if isinstance(target, nn.Parameter):
        path = graph._param_to_name[target]
        owner, _, name = path.rpartition(".")
        moved = _moved(target, own, order, node.pruning_dim)
        setattr(graph.model.get_submodule(owner), name, nn.Parameter(moved))
        return
    if not isinstance(target, nn.Module) or type(target).__module__.startswith("torch_pruning"):
        return
    reads = isinstance(target, WRITERS) and axis == 1
    if reads and getattr(target, "groups", 1) > 1:  # depthwise: its outputs say all
        return
    for name in ("weight",) if reads else BY_CHANNEL:
        value = getattr(target, name, None)
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        dim = axis if isinstance(target, WRITERS) else value.ndim - 1
        moved = _moved(value, own, order, dim)
        setattr(target, name, nn.Parameter(moved) if name in target._parameters else moved)


def _moved(value: Tensor, own: dict[int, list[int]], order: Sequence[int], dim: int) -> Tensor:
    index = torch.arange(value.shape[dim])
    for place, channel in enumerate(order):
        for to, source in zip(own.get(place, ()), own.get(channel, ()), strict=True):
            index[to] = source
    return value.detach().index_select(dim, index)
