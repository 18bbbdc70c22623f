"""Which layers with weights a network runs, in the order in which forward calls them."""

from __future__ import annotations

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
    calls: list[str] = []
    handles = []
    for path, child in module.named_modules():
        if isinstance(child, WEIGHTED_TYPES):
            handles.append(
                child.register_forward_hook(lambda *unused, path=path: calls.append(path))
            )
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls
