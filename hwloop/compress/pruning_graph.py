"""torch-pruning's graph of a module, as it is built, and what it takes for a layer's outputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES
from hwloop.errors import UsageError


def traced(module: nn.Module, example: Tensor, *, opaque: Iterable[nn.Module] = ()) -> Any:
    """Its dependency graph.

    Args:
        opaque: parts of it through which no channel is followed.

    Raises:
        UsageError: torch-pruning cannot trace it.
    """
    handles = [part.register_forward_hook(_detached) for part in opaque]
    floats = [value for value in module.parameters() if value.is_floating_point()]
    before = [value.requires_grad for value in floats]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch-pruning traces through autograd, so every parameter must take part.
        for value in floats:
            value.requires_grad_(True)
        try:
            with torch.enable_grad():
                # With a function of ours it does not try a second time, and hide the first error.
                return tp.DependencyGraph().build_dependency(
                    module, (example,), forward_fn=lambda part, inputs: part(*inputs)
                )
        except FAILURES as error:
            raise UsageError(
                f"the network cannot be traced: {type(error).__name__}: {error}",
                "forward must take one tensor and return one, without data-dependent branches",
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            for value, flag in zip(floats, before, strict=True):
                value.requires_grad_(flag)


def cuts_outputs_of(layer: nn.Module) -> Any:
    """torch-pruning's function for that."""
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels
    if is_depthwise(layer):
        return tp.prune_depthwise_conv_out_channels
    return tp.prune_conv_out_channels


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution treats each channel alone."""
    return bool(1 < getattr(layer, "groups", 1) == layer.out_channels)


def out_channels(layer: Any) -> int:
    """Of a convolution or a linear layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _detached(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def in_channels_of(bundles: Sequence[int], size: int) -> list[int]:
    """The channels of numbered bundles."""
    return [size * index + offset for index in bundles for offset in range(size)]
