"""torch-pruning's dependency graph of a network, or of parts of it where the whole defies it.

Only this file and ``pruning_graph.py`` know torch-pruning (Fang et al., CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.calls import sharing_copy
from hwloop.compress.limits import at_most_calls
from hwloop.compress.pruning_graph import cuts_outputs_of, is_depthwise, out_channels, traced
from hwloop.compress.slices import WRITERS, Side, Slice
from hwloop.compress.standins import standing_in
from hwloop.errors import UsageError
from hwloop.tasks.attention import ExplicitAttention

NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
SMALL_SIZES = (32, 64, 128)
"""Heights and widths to trace at, where that tells the same as the deployed size."""

MOST_CALLS = 10_000_000
"""Of functions, while one group is followed: seconds. VGG takes 1.4 million where it flattens."""

_traced_at: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Tensor]] = WeakKeyDictionary()
"""Network → shape of the example, and what :func:`tracing_input` found for it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scope:
    """A part of a network that can be traced.

    Attributes:
        path: of the module; empty for the whole network.
        example: an input of it.
        opaque: paths within it through which no channel is followed.
    """

    path: str
    example: Tensor
    opaque: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Members:
    """What is coupled to a layer.

    Attributes:
        layers: paths, the layer itself first.
        bundle: channels that can only go together: a grouped convolution's, or a head's.
        slices: where its channels lie.
        clean: all dependencies are of kinds that are handled.
    """

    layers: tuple[str, ...]
    bundle: int
    clean: bool
    slices: tuple[Slice, ...] = ()


def tracing_input(module: nn.Module, example: Tensor) -> Tensor:
    """The smallest part of an image that tells the same dependencies as the image itself.

    Tracing takes a forward pass, with everything that its gradient would need kept in memory.
    What was found for a network is remembered while it lives.

    Args:
        example: (N, ...); returned itself where it is no image, or a smaller one tells otherwise.

    Raises:
        UsageError: torch-pruning cannot trace the network.
    """
    shape = tuple(example.shape)
    known = _traced_at.get(module)
    if known is None or known[0] != shape:
        known = _traced_at[module] = shape, _smallest(module, example)
    return known[1]


def _smallest(module: nn.Module, example: Tensor) -> Tensor:
    trial = sharing_copy(module)  # what forward keeps while it is traced stays there

    def meaning(part: Tensor) -> list[Any]:
        with dependencies(trial, Scope(path="", example=part)) as graph:
            return graph.meaning()

    wanted = meaning(example)
    sizes = SMALL_SIZES if example.ndim == 4 else ()
    for size in sizes:
        if size >= min(example.shape[2:]):
            break
        part = example[:, :, :size, :size].clone()
        try:
            if meaning(part) == wanted:
                return part
        except UsageError:
            continue
    return example


@contextmanager
def dependencies(module: nn.Module, scope: Scope) -> Iterator[Dependencies]:
    """The dependencies within a part of a network, until the block ends.

    Until then other layers stand in for some: the network must be run afterwards only.

    Raises:
        UsageError: torch-pruning cannot trace it.
    """
    with standing_in(module) as bundles:
        found = Dependencies(module, scope, bundles)
        try:
            yield found
        finally:
            found.forget()


class Dependencies:
    """torch-pruning's graph of one network, or of a part of it.

    Raises:
        UsageError: torch-pruning cannot trace it.
    """

    def __init__(self, module: nn.Module, scope: Scope, bundles: Mapping[nn.Module, int]) -> None:
        self._module = module
        self._scope = scope
        self._names = {child: path for path, child in module.named_modules()}
        self._bundles = bundles
        self._attentions: dict[nn.Module, ExplicitAttention] = {
            child.query: child for child in module.modules() if isinstance(child, ExplicitAttention)
        }
        opaque = [module.get_submodule(path) for path in scope.opaque]
        self._graph = traced(module.get_submodule(scope.path), scope.example, opaque=opaque)

    def knows(self, path: str) -> bool:
        """Whether a layer was met."""
        return self._module.get_submodule(path) in self._graph.module2node

    def _group(self, path: str) -> Any:
        """torch-pruning's group: every dependency of all output channels of a layer."""
        layer = self._module.get_submodule(path)
        indices = list(range(out_channels(layer)))
        return self._graph.get_pruning_group(layer, cuts_outputs_of(layer), idxs=indices)

    def members(self, path: str, *, most_calls: int = MOST_CALLS) -> Members:
        """What is coupled to a layer.

        Args:
            most_calls: of functions, before it is given up.

        Raises:
            UsageError: there is no end to it.
        """
        graph, clean = self._graph, True
        layers, bundles = [path], [1]
        with at_most_calls(most_calls, what="following the network's channels"):
            group = self._group(path)
        for dependency, indices in group:
            target = dependency.target.module
            writes = graph.is_out_channel_pruning_fn(dependency.handler)
            if writes:
                bundles.append(self._bundles.get(target, 1))
            if not isinstance(target, WRITERS):
                by_channel = isinstance(target, (*NORM_TYPES, nn.Parameter))
                handled = by_channel or _is(dependency.target, "ELEMENTWISE")
                clean = clean and (handled or _is_reshaping(target))
                continue
            if writes:
                layers.append(self._names[target])
                clean = clean and sorted(indices) == list(range(out_channels(target)))
            grouped = getattr(target, "groups", 1)
            clean = clean and (grouped == 1 or is_depthwise(target))
            if not writes and max(indices) >= target.weight.shape[1] * grouped:
                clean = False  # torch-pruning took for element-wise what is not
        clean = clean and out_channels(self._module.get_submodule(path)) % math.lcm(*bundles) == 0
        return Members(
            layers=tuple(dict.fromkeys(layers)),
            bundle=math.lcm(*bundles),
            slices=self._slices(group) if clean else (),
            clean=clean,
        )

    def _slices(self, group: Any) -> tuple[Slice, ...]:
        """Where a group's channels lie."""
        graph = self._graph
        found: dict[tuple[str, Side, int], dict[int, list[int]]] = {}
        for item in group:
            node, target = item.dep.target, item.dep.target.module
            writes = graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(target, nn.Parameter):
                names = (self._scope.path, graph._param_to_name[target])
                place = (".".join(filter(None, names)), Side.PARAMETER, node.pruning_dim)
            elif isinstance(target, (*WRITERS, *NORM_TYPES)):
                place = (self._names[target], Side.OUTPUTS if writes else Side.INPUTS, 0)
            else:
                continue
            own = found.setdefault(place, {})
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                if root is not None and index not in own.setdefault(root, []):
                    own[root].append(index)
            if writes and target in self._attentions:
                heads = (self._names[self._attentions[target]], Side.HEADS, 0)
                found[heads] = found[place]
        return tuple(
            Slice(path=name, side=side, dim=dim, places=own)
            for (name, side, dim), own in found.items()
        )

    def meaning(self) -> list[Any]:
        """What the graph says, to be compared with that of the same network on another input."""
        nodes = list(self._graph.module2node.values())
        index = {node: position for position, node in enumerate(nodes)}
        return [
            (
                *(node.type, self._names.get(node.module), node.enable_index_mapping),
                *([index[other] for other in side] for side in (node.inputs, node.outputs)),
                *(_mappings(dependency) for dependency in node.dependencies),
            )
            for node in nodes
        ]

    def forget(self) -> None:
        """Let go of what forward computed, which the graph's circles would keep for long."""
        for node in self._graph.module2node.values():
            node.grad_fn = None
            if _is(node, "SLICE"):
                node.module.grad_fn = None


def _mappings(dependency: Any) -> list[Any]:
    return [item and (type(item).__name__, vars(item)) for item in dependency.index_mapping]


def _is(node: Any, kind: str) -> bool:
    return bool(node.type == tp.ops.OPTYPE[kind])


def _is_reshaping(target: Any) -> bool:
    """torch-pruning's own placeholder operations: reshape, concat, split, element-wise."""
    return type(target).__module__.startswith("torch_pruning")
