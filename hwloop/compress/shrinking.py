"""A network that shrinks its image before it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from hwloop.errors import CandidateError

LEAST_UNITS = 7
"""Sides are multiples of a power of two, of which the whole side has at least so many."""


@runtime_checkable
class OfOneSize(Protocol):
    """A network that has weights for each position of its image."""

    def take_sides(self, sides: Sequence[int]) -> None:
        """From now on images have other sides. Raises ValueError for such as it cannot have."""


def sides(shape: Sequence[int], share: float) -> tuple[int, int]:
    """Of a smaller image, (height, width).

    Args:
        shape: of the whole one, (N, C, H, W).
    """
    height, width = shape[2:]
    return _less(height, share), _less(width, share)


def _less(side: int, share: float) -> int:
    unit = 1
    while 2 * unit * LEAST_UNITS <= side:
        unit *= 2
    return max(round(side * share / unit), 1) * unit


def shrink(module: nn.Module, example: Tensor, share: float) -> None:
    """Change a network in place so that it shrinks its image first.

    Not a module around it: every layer keeps its path, by which groups and weights know it.

    Args:
        example: an input of the size that it is given, (N, C, H, W).

    Raises:
        CandidateError: stage ``compress``: it has weights for each position, and cannot.
    """
    size = sides(example.shape, share)
    if isinstance(module, OfOneSize):
        try:
            module.take_sides(size)
        except ValueError as error:
            raise CandidateError("compress", f"no image of {size}: {error}") from error
    module.register_forward_pre_hook(_Shrinks(size))


def shrunk(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, C, *size) of (N, C, H, W)."""
    return nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class _Shrinks:
    """A hook that is copied and stored with its network."""

    size: tuple[int, ...]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        image, *others = inputs
        return (shrunk(image, self.size), *others)
