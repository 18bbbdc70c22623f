"""Structured pruning of coupled channels, by torch-pruning (Fang et al., CVPR 2023).

The only file that knows torch-pruning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.errors import CandidateError, UsageError

PRUNABLE_TYPES = (nn.Conv2d, nn.Linear)
TRACING_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError),
)
"""What torch-pruning raises on networks that it does not understand."""
NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


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
    graph = _dependencies(module, example)
    names = {child: path for path, child in module.named_modules()}
    seen: set[str] = set()
    found = []
    for path, child in module.named_modules():
        if path not in layers or path in seen:
            continue
        members, clean, reshaped = _members(graph, child, names)
        coupled = tuple(dict.fromkeys([path, *members]))
        seen.update(coupled)
        prunable = clean and not set(coupled) & set(fixed)
        if prunable and reshaped:
            prunable = _survives_a_cut(module, example, path)
        found.append(Coupling(layers=coupled, channels=_out_channels(child), prunable=prunable))
    return tuple(found)


def _survives_a_cut(module: nn.Module, example: Tensor, path: str) -> bool:
    """Whether a group can lose half of its channels alone.

    A reshape to sizes that forward computes itself, as in an attention with heads, is seen only so.
    """
    trial = copy.deepcopy(module)
    channels = _out_channels(dict(trial.named_modules())[path])
    try:
        prune(trial, example, {path: max(channels // 2, 1)}, scores=module)
    except CandidateError:
        return False
    return True


def prune(
    module: nn.Module, example: Tensor, widths: Mapping[str, int], *, scores: nn.Module
) -> None:
    """Cut groups to fewer channels, in place: the channels with the smallest weights go.

    A channel's importance is the mean over the coupled layers of the squared norm of its weights
    (Fang et al., CVPR 2023, section 3.3), each layer's normalised by its mean.

    Args:
        widths: path of a group's first layer → channels that stay.
        scores: network whose weights decide; the dense one, so that the choice does not depend
            on the order of the groups.

    Raises:
        CandidateError: stage ``compress``: the group cannot be cut to that width.
    """
    layers = dict(module.named_modules())
    kept = {path: _keep(scores, example, path, width) for path, width in widths.items()}
    for path, indices in kept.items():
        try:
            graph = _dependencies(module, example)
        except UsageError as error:  # the dense network could be traced
            raise CandidateError(
                "compress", f"the pruned layers do not fit: {error.message}"
            ) from error
        layer = layers[path]
        remove = sorted(set(range(_out_channels(layer))) - set(indices))
        group = graph.get_pruning_group(layer, _prune_out(layer), idxs=remove)
        if not graph.check_pruning_group(group):
            raise CandidateError("compress", f"group {path!r} cannot be cut to {len(indices)}")
        group.prune()
    _check_shapes(module, example)


def _check_shapes(module: nn.Module, example: Tensor) -> None:
    """Dependencies that torch-pruning misses (a flattened concatenation, say) show here."""
    try:
        with torch.no_grad():
            module.eval()(example)
    except TRACING_ERRORS as error:
        raise CandidateError("compress", f"the pruned layers do not fit: {error}") from error


def _keep(scores: nn.Module, example: Tensor, path: str, width: int) -> list[int]:
    graph = _dependencies(scores, example)
    layer = dict(scores.named_modules())[path]
    everything = list(range(_out_channels(layer)))
    group = graph.get_pruning_group(layer, _prune_out(layer), idxs=everything)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")(group)
    best: list[int] = torch.argsort(importance, descending=True, stable=True)[:width].tolist()
    return sorted(best)


def _members(
    graph: Any, layer: nn.Module, names: Mapping[nn.Module, str]
) -> tuple[list[str], bool, bool]:
    """Paths of the layers coupled to ``layer``, whether all its dependencies are handled, and
    whether something between them changes shapes.
    """
    everything = list(range(_out_channels(layer)))
    group = graph.get_pruning_group(layer, _prune_out(layer), idxs=everything)
    members, clean, reshaped = [], True, False
    for dependency, indices in group:
        target = dependency.target.module
        if not isinstance(target, PRUNABLE_TYPES):
            handled = isinstance(target, NORM_TYPES) or "OPTYPE.ELEMENTWISE" in str(
                dependency.target.type
            )
            clean = clean and (handled or _is_reshaping(target))
            reshaped = reshaped or not handled
            continue
        cuts_outputs = graph.is_out_channel_pruning_fn(dependency.handler)
        if cuts_outputs:
            members.append(names[target])
            clean = clean and sorted(indices) == list(range(_out_channels(target)))
        grouped = getattr(target, "groups", 1)
        clean = clean and (grouped == 1 or grouped == getattr(target, "out_channels", 0))
    return members, clean, reshaped


def _is_reshaping(target: Any) -> bool:
    """torch-pruning's own placeholder operations: reshape, concat, split, element-wise."""
    return type(target).__module__.startswith("torch_pruning")


def _dependencies(module: nn.Module, example: Tensor) -> Any:
    before = [parameter.requires_grad for parameter in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch-pruning traces through autograd, so every parameter must take part.
        module.requires_grad_(True)
        try:
            with torch.enable_grad():
                return tp.DependencyGraph().build_dependency(module, example)
        except TRACING_ERRORS as error:
            raise UsageError(
                f"the network cannot be traced: {type(error).__name__}: {error}",
                "forward must take one tensor and return one, without data-dependent branches",
            ) from error
        finally:
            for parameter, flag in zip(module.parameters(), before, strict=True):
                parameter.requires_grad_(flag)


def _prune_out(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels
    if _is_depthwise(layer):
        return tp.prune_depthwise_conv_out_channels
    return tp.prune_conv_out_channels


def _is_depthwise(layer: Any) -> bool:
    return bool(layer.groups > 1 and layer.groups == layer.out_channels)


def _out_channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
