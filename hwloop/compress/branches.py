"""Residual blocks that a network also works without: modules that compute x + f(x)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def residual_blocks(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Paths of the modules whose output is their input once all their parameters are zero.

    Then f(x) is nothing, and leaving it out is to replace the module by an identity; also where a
    rectifier follows the sum, on what it has rectified before. Of blocks within blocks, those that
    hold no other.

    Args:
        module: the dense network, in eval mode.
        example: (N, ...) an input of the deployed shape; its values do not matter.
    """
    found: list[str] = []
    for path, (inputs, output) in _calls(module, _noise_like(example)).items():
        if _is_residual(module.get_submodule(path), inputs, output):
            found.append(path)
    return tuple(path for path in found if not any(within(other, path) for other in found))


def within(path: str, block: str) -> bool:
    """Whether a layer is one of a block's."""
    return path.startswith(f"{block}.")


def leave_out(module: nn.Module, path: str) -> None:
    """Replace a block by an identity, in place."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())


def _noise_like(example: Tensor) -> Tensor:
    """The same for each example of a shape: of zeros, or of one image, too much would be alike."""
    if not example.is_floating_point():
        return example
    return torch.randn(example.shape, generator=torch.Generator().manual_seed(0))


def _calls(module: nn.Module, example: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each module that maps one tensor to one of its shape, and does it once.

    What a module is given may be changed in place by it: a copy is kept.
    """
    given: dict[str, list[Tensor | None]] = {}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def enter(path: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        single = len(inputs) == 1 and not named and isinstance(inputs[0], Tensor)
        given.setdefault(path, []).append(inputs[0].clone() if single else None)

    def leave(path: str, output: Any) -> None:
        value = given[path][0]
        if value is not None and isinstance(output, Tensor) and output.shape == value.shape:
            found[path] = value, output.clone()

    handles: list[Any] = []
    for path, child in module.named_modules():
        if path and any(True for _ in child.children()):
            handles += [
                child.register_forward_pre_hook(
                    lambda child, inputs, named, path=path: enter(path, inputs, named),
                    with_kwargs=True,
                ),
                child.register_forward_hook(
                    lambda child, inputs, output, path=path: leave(path, output)
                ),
            ]
    try:
        with torch.no_grad():
            module.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return {path: both for path, both in found.items() if len(given[path]) == 1}


def _is_residual(block: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    if torch.equal(inputs, output):  # nothing to leave out
        return False
    without = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in without.parameters():
            parameter.zero_()
        return bool(torch.equal(without(inputs.clone()), inputs))
