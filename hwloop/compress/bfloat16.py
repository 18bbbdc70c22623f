"""Products of bfloat16: where the host's processor is fast at them, and a network bears it.

Weights and their updates stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES

TRIED = 32
"""Inputs on which bfloat16 is tried."""

MOST_TEACHER_ROUNDING = 0.01
"""Of bfloat16 in a teacher's outputs, as a share of how far they differ from one another."""

MOST_ROUNDING = 0.1
"""Of bfloat16 in the outputs, as a share of how far they are from the teacher's."""


def suits_bfloat16(module: nn.Module, few: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether products of bfloat16 are fast here, run, and leave what there is to learn.

    Tried as in training: norms take their statistics from the batch, and gradients flow.

    Args:
        few: inputs, and the teacher's answers to them.
    """
    if not multiplies_bfloat16():
        return False
    inputs, teacher = few()
    tried = copy.deepcopy(module).train()
    try:
        tried.requires_grad_()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # of what is random in training, as dropout is
            exact = outputs_of(tried, inputs, bfloat16=False).detach()
            torch.manual_seed(0)
            rounded = outputs_of(tried, inputs, bfloat16=True)
        torch.autograd.backward((rounded - teacher).square().mean())
    except FAILURES:  # code of the network's own that mixes types
        return False
    rounding = torch.dist(rounded.detach(), exact)
    return bool(rounding <= MOST_ROUNDING * torch.dist(exact, teacher))


def rounds_little(module: nn.Module, inputs: Tensor) -> bool:
    """Whether bfloat16 is fast here, runs, and changes the answers to these inputs by little."""
    if not multiplies_bfloat16():
        return False
    module.eval()
    try:
        with torch.no_grad():
            exact = outputs_of(module, inputs, bfloat16=False)
            rounded = outputs_of(module, inputs, bfloat16=True)
    except FAILURES:
        return False
    spread = torch.dist(exact, exact.mean(0, keepdim=True))
    return bool(torch.dist(rounded, exact) <= MOST_TEACHER_ROUNDING * spread)


def outputs_of(module: nn.Module, inputs: Tensor, *, bfloat16: bool) -> Tensor:
    """What a network answers, in float32, however its products were multiplied."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs: Tensor = module(inputs)
    return outputs.float() if bfloat16 else outputs


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 matrices (AMX).

    Without them bfloat16 is the slower one.
    """
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("amx_bf16"))
