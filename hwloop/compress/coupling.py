"""Which channels can only change together: torch-pruning's dependency graph.

Only this file and ``cut.py`` know torch-pruning (Fang et al., CVPR 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES, sharing_copy
from hwloop.errors import CandidateError, UsageError

PRUNABLE_TYPES = (nn.Conv2d, nn.Linear)
NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
SMALL_SIZES = (32, 64, 128)
"""Heights and widths to trace at, where that tells the same as the deployed size."""

_traced_at: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Tensor]] = WeakKeyDictionary()
"""Network → shape of the example, and what :func:`tracing_input` found for it."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Layers whose output channels can only change together.

    Attributes:
        layers: paths of the convolutions and linear layers.
        channels: output channels of the first.
        prunable: False when the width is fixed or the dependency is one that is not handled.
    """

    layers: tuple[str, ...]
    channels: int
    prunable: bool


def couplings(
    module: nn.Module, example: Tensor, *, layers: Collection[str], fixed: Collection[str]
) -> tuple[Coupling, ...]:
    """Each of ``layers`` in exactly one coupling.

    Args:
        layers: paths of the layers that forward uses (training-only branches are none of them).
        fixed: layers whose width is part of the network's interface.

    Raises:
        UsageError: torch-pruning cannot trace the network.
    """
    small = tracing_input(module, example)
    seen: set[str] = set()
    found = []
    with dependencies(module, small) as graph:
        for path, child in module.named_modules():
            if path not in layers or path in seen:
                continue
            members, clean, reshaped = graph.members(path)
            coupled = tuple(dict.fromkeys([path, *members]))
            seen.update(coupled)
            prunable = clean and not set(coupled) & set(fixed)
            if prunable and reshaped:
                prunable = _survives_a_cut(module, example, small, path)
            found.append(Coupling(layers=coupled, channels=out_channels(child), prunable=prunable))
    return tuple(found)


def _survives_a_cut(module: nn.Module, example: Tensor, small: Tensor, path: str) -> bool:
    """Whether a group can lose half of its channels alone.

    A reshape to sizes that forward computes itself, as in an attention with heads, is seen only so.
    """
    trial = sharing_copy(module)
    width = out_channels(module.get_submodule(path))
    shuffled = torch.randperm(width, generator=torch.Generator().manual_seed(0)).tolist()
    try:
        with dependencies(trial, small) as graph:
            graph.cut(path, shuffled[: max(width // 2, 1)])
        check_fits(trial, example)
    except (CandidateError, UsageError):
        return False
    return True


def check_fits(module: nn.Module, example: Tensor) -> None:
    """Dependencies that torch-pruning misses (a flattened concatenation, say) show here.

    Raises:
        CandidateError: stage ``compress``: forward fails.
    """
    try:
        with torch.no_grad():
            module.eval()(example)
    except FAILURES as error:
        raise CandidateError("compress", f"the pruned layers do not fit: {error}") from error


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
    with dependencies(module, example) as graph:
        wanted = graph.meaning()
    sizes = SMALL_SIZES if example.ndim == 4 else ()
    for size in sizes:
        if size >= min(example.shape[2:]):
            break
        part = example[:, :, :size, :size].clone()
        try:
            with dependencies(module, part) as graph:
                if graph.meaning() == wanted:
                    return part
        except UsageError:
            continue
    return example


@contextmanager
def dependencies(module: nn.Module, example: Tensor) -> Iterator[Dependencies]:
    """The dependencies within a network, until the block ends.

    Args:
        example: what :func:`tracing_input` gives for the network that this one was copied from.

    Raises:
        UsageError: torch-pruning cannot trace the network.
    """
    found = Dependencies(module, example)
    try:
        yield found
    finally:
        found.forget()


class Dependencies:
    """torch-pruning's graph of one network, which can be cut group by group."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self._module = module
        self._names = {child: path for path, child in module.named_modules()}
        self._graph = _trace(module, example)

    def group(self, path: str, channels: Sequence[int] | None = None) -> Any:
        """torch-pruning's group: every dependency of a layer's output channels, all by default."""
        layer = self._module.get_submodule(path)
        indices = list(range(out_channels(layer)) if channels is None else channels)
        return self._graph.get_pruning_group(layer, _cuts_outputs_of(layer), idxs=indices)

    def members(self, path: str) -> tuple[list[str], bool, bool]:
        """Paths of the layers coupled to a layer, whether all its dependencies are handled, and
        whether something between them changes shapes.
        """
        members, clean, reshaped = [], True, False
        for dependency, indices in self.group(path):
            target = dependency.target.module
            if not isinstance(target, PRUNABLE_TYPES):
                handled = isinstance(target, NORM_TYPES) or _is(dependency.target, "ELEMENTWISE")
                clean = clean and (handled or _is_reshaping(target))
                reshaped = reshaped or not handled
                continue
            if self._graph.is_out_channel_pruning_fn(dependency.handler):
                members.append(self._names[target])
                clean = clean and sorted(indices) == list(range(out_channels(target)))
            grouped = getattr(target, "groups", 1)
            clean = clean and (grouped == 1 or grouped == getattr(target, "out_channels", 0))
        return members, clean, reshaped

    def readers(
        self, path: str, channels: Sequence[int] | None = None
    ) -> dict[str, list[tuple[int, int]]]:
        """The layers that read a group's channels, all by default.

        Returns:
            Path of a layer → pairs of its input and the group's channel.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        for item in self.group(path, channels):
            target = item.dep.target.module
            reads = self._graph.is_in_channel_pruning_fn(item.dep.handler)
            if isinstance(target, PRUNABLE_TYPES) and reads:
                pairs = zip(item.idxs, item.root_idxs, strict=True)
                known = [(own, root) for own, root in pairs if root is not None]
                found.setdefault(self._names[target], []).extend(known)
        return found

    def cut(self, path: str, kept: Collection[int]) -> None:
        """Leave a group these channels, in place; other groups can be cut afterwards.

        Raises:
            CandidateError: stage ``compress``: the group cannot be cut so.
        """
        try:
            width = out_channels(self._module.get_submodule(path))
            removed = sorted(set(range(width)) - set(kept))
            group = self.group(path, removed)
            # Halves that are multiplied with each other take more channels along.
            if sorted(group[0].idxs) != removed or not self._graph.check_pruning_group(group):
                raise CandidateError("compress", f"group {path!r} cannot be cut to {len(kept)}")
            group.prune()
        except FAILURES as error:
            raise CandidateError("compress", f"group {path!r} cannot be cut: {error}") from error

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


def _trace(module: nn.Module, example: Tensor) -> Any:
    before = [parameter.requires_grad for parameter in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch-pruning traces through autograd, so every parameter must take part.
        module.requires_grad_(True)
        try:
            with torch.enable_grad():
                return tp.DependencyGraph().build_dependency(module, (example,))
        except FAILURES as error:
            raise UsageError(
                f"the network cannot be traced: {type(error).__name__}: {error}",
                "forward must take one tensor and return one, without data-dependent branches",
            ) from error
        finally:
            for parameter, flag in zip(module.parameters(), before, strict=True):
                parameter.requires_grad_(flag)


def _cuts_outputs_of(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels
    if _is_depthwise(layer):
        return tp.prune_depthwise_conv_out_channels
    return tp.prune_conv_out_channels


def _is_depthwise(layer: Any) -> bool:
    return bool(layer.groups > 1 and layer.groups == layer.out_channels)


def out_channels(layer: Any) -> int:
    """Of a convolution or a linear layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
