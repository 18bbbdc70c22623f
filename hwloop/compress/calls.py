"""A network on trial: which layers with weights it runs, in order, and copies to try things on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError),
)
"""What a network's own code raises where it is run in another way than it knows."""

WEIGHTED_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def weighted_calls(module: nn.Module, example: Tensor) -> list[str]:
    """Paths of the convolutions and linear layers, in the order in which forward calls them."""
    return calls_and_outputs(module, example)[0]


def calls_and_outputs(module: nn.Module, example: Tensor) -> tuple[list[str], Tensor]:
    """:func:`weighted_calls`, and what the network answers in the same run."""
    calls: list[str] = []
    handles = []
    for path, child in module.named_modules():
        if isinstance(child, WEIGHTED_TYPES):
            handles.append(
                child.register_forward_hook(lambda *unused, path=path: calls.append(path))
            )
    try:
        with torch.no_grad():
            outputs: Tensor = module(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls, outputs


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy with the same weights in memory: for trials that replace some and change none."""
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    copied: nn.Module = copy.deepcopy(module, shared)
    return copied
