"""How a network's weights lie in memory while it is run on whole batches.

PyTorch's convolutions on a CPU are made for channels that lie side by side: in its own order a
forward and a backward pass take as long or up to a quarter longer (``benchmarks/layout.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES


def suits_channels_last(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a network has convolutions over images and learns with its channels last.

    Code that takes a tensor's order in memory for granted, as ``view`` does, does not.
    """
    if not _kernels(module):
        return False
    tried = copy.deepcopy(module).train().requires_grad_()
    tried.zero_grad()
    _lay(tried, torch.channels_last)
    try:
        with torch.random.fork_rng(devices=()):
            torch.autograd.backward(tried(inputs).square().mean())
    except FAILURES:
        return False
    return True


@contextmanager
def channels_last(module: nn.Module, *, suits: bool) -> Iterator[None]:
    """Lay the weights of convolutions so, where that suits, until the block ends."""
    if suits:
        _lay(module, torch.channels_last)
    try:
        yield
    finally:
        if suits:
            _lay(module, torch.contiguous_format)


def _kernels(module: nn.Module) -> list[nn.Parameter]:
    """Weights of two-dimensional convolutions, which is what the order is of."""
    return [parameter for parameter in module.parameters() if parameter.dim() == 4]


def _lay(module: nn.Module, order: torch.memory_format) -> None:
    """The same values in another order, in the same parameters."""
    for parameter in _kernels(module):
        parameter.data = parameter.data.contiguous(memory_format=order)
