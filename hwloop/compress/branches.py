"""Residual blocks that a network also works without: modules that compute x + f(x)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.compress.calls import (
    FAILURES,
    calls_and_outputs,
    sharing_copy,
    single_inputs,
    within,
)
from hwloop.compress.noise import noise_like
from hwloop.compress.tracing import tracing_input
from hwloop.errors import UsageError
from hwloop.records import Group


def residual_blocks(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Paths of the modules that can be left out. Of blocks within blocks, those that hold no other.

    Their output is their input once all their parameters are zero: then f(x) is nothing, and an
    identity does the same; also where a rectifier follows the sum, on what it has rectified before.
    And the network runs, and can be trained, without them, as it did but for their layers: it does
    not where its code looks into a block, or finds it by another name.

    Args:
        module: the dense network, in eval mode.
        example: (N, ...) an input of the deployed shape; its values do not matter.
    """
    noise = noise_like(example)
    found = [
        path
        for path, inputs in single_inputs(module, noise, keep=_changes).items()
        if _is_residual(module.get_submodule(path), inputs)
    ]
    innermost = [path for path in found if not any(within(other, path) for other in found)]
    if not innermost:
        return ()
    try:
        small = tracing_input(module, example)
    except UsageError:
        small = noise
    whole = calls_and_outputs(module, noise)
    found = [path for path in innermost if _runs_without(module, path, noise, whole)]
    if not _trains_without(module, found, small):  # mostly all together do
        found = [path for path in found if _trains_without(module, [path], small)]
    return tuple(found)


def with_branches(groups: tuple[Group, ...], blocks: Iterable[str]) -> tuple[Group, ...]:
    """Each block goes with the first group that lies within it.

    One without any stays, and so does one with the first layer of a group that goes on after it,
    which is known by that layer.
    """
    found = list(groups)
    for block in blocks:
        inner = [
            (index, all(within(path, block) for path in group.layers))
            for index, group in enumerate(groups)
            if within(group.name, block)
        ]
        if inner and all(whole for _, whole in inner):
            first = inner[0][0]
            found[first] = replace(groups[first], branch=block)
    return tuple(found)


def holder(paths: Sequence[str], groups: tuple[Group, ...]) -> int | None:
    """The group with which all these layers go."""
    for index, group in enumerate(groups):
        if group.branch and paths and all(within(path, group.branch) for path in paths):
            return index
    return None


def leave_out(module: nn.Module, path: str) -> None:
    """Replace a block by an identity, in place."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())


def _changes(inputs: Tensor, output: Any) -> bool:
    """Whether a module makes another tensor of the same shape of what it is given."""
    same = isinstance(output, Tensor) and output.shape == inputs.shape
    return same and not torch.equal(inputs, output)


def _is_residual(block: nn.Module, inputs: Tensor) -> bool:
    without = copy.deepcopy(block)
    try:
        with torch.no_grad():
            for parameter in without.parameters():
                parameter.zero_()
            return bool(torch.equal(without(inputs.clone()), inputs))
    except FAILURES:  # code of its own that zeros are no weights for
        return False


def _runs_without(
    module: nn.Module, path: str, noise: Tensor, whole: tuple[list[str], Tensor]
) -> bool:
    """Whether the network runs as it did but for the block's layers.

    Args:
        whole: the calls and the outputs of the network with it, for ``noise``.
    """
    trial = sharing_copy(module)
    leave_out(trial, path)
    left = [call for call in whole[0] if not within(call, path)]
    try:
        calls, answered = calls_and_outputs(trial, noise)
    except FAILURES:
        return False
    # Equal outputs: the block is still there, by another name.
    return bool(left) and calls == left and not torch.equal(answered, whole[1])


def _trains_without(module: nn.Module, paths: Sequence[str], small: Tensor) -> bool:
    trial = sharing_copy(module)
    for path in paths:
        leave_out(trial, path)
    try:
        with torch.enable_grad():
            outputs = trial(small)
            weights = [value for value in trial.parameters() if value.requires_grad]
            if weights:
                torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    except FAILURES:
        return False
    return True
