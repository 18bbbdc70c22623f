"""Whether groups of channels are what they seem: by cutting them, and by moving them about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hwloop.compress import slices
from hwloop.compress.calls import FAILURES, shapes, sharing_copy
from hwloop.compress.pruning_graph import in_channels_of
from hwloop.compress.slices import Slice
from hwloop.compress.standins import make_norms_scales
from hwloop.compress.tracing import Scope
from hwloop.errors import CandidateError

MOST_TRIALS = 32
"""Of one part of a network. What is not settled then may still be, within smaller parts."""

ALIKE = 1e-3
"""Of the largest output: another order of sums changes less, a channel in a wrong place more."""

LEAST_SHARE, SHARES = 0.3, 0.4


class Item(Protocol):
    """A group: how many channels it has, how many only go together, and where they lie."""

    @property
    def channels(self) -> int: ...

    @property
    def bundle(self) -> int: ...

    @property
    def slices(self) -> tuple[Slice, ...]: ...


@dataclass(kw_only=True, eq=False)
class Trials:
    """Trials within one part.

    Attributes:
        probe: an input of the part, of values that are not all alike.
        compares: whether a network without some channels must answer as the whole one does where
            nobody reads them: channels that are followed by what forward does are told so from
            those that only seem to fit.
    """

    module: nn.Module
    scope: Scope
    probe: Tensor
    compares: bool = False
    left: int = MOST_TRIALS

    def __post_init__(self) -> None:
        self._before = self._answer(self.module)
        self._is_steady = alike(self._before, self._answer(self.module))

    def surviving(self, items: Sequence[Item]) -> list[int]:
        """Positions of those that stand; all are tried together, and halves where that fails."""
        return self._surviving(items, range(len(items)))

    def _surviving(self, items: Sequence[Item], chosen: Sequence[int]) -> list[int]:
        if not chosen or self.left <= 0:
            return []
        self.left -= 1
        tried = [items[index] for index in chosen]
        if self._can_be_cut(tried) and self._can_be_moved(tried):
            return list(chosen)
        middle = len(chosen) // 2
        if not middle:
            return []
        first = self._surviving(items, chosen[:middle])
        return [*first, *self._surviving(items, chosen[middle:])]

    def _can_be_cut(self, items: Sequence[Item]) -> bool:
        """Whether they can lose channels, each another share, and nobody else notices.

        A reshape to sizes that forward computes itself is seen only so.
        """
        generator = torch.Generator().manual_seed(0)

        def removed(item: Item) -> list[int]:
            bundles = _in_any_order(item, generator)
            share = LEAST_SHARE + SHARES * float(torch.rand(1, generator=generator))
            return in_channels_of(bundles[max(round(len(bundles) * share), 1) :], item.bundle)

        lost = [(item.slices, removed(item)) for item in items]
        after = self._after(lambda trial: slices.cut(trial, lost))
        whole = not self.scope.path  # its own outputs may be among them
        if after is None or not (whole or shapes(after) == shapes(self._before)):
            return False
        return not self.compares or self._answers_as_unread(lost)

    def _answers_as_unread(self, lost: Sequence[slices.Loss]) -> bool:
        """Whether those who stay answer as if nobody read what went; norms apart, which see it."""

        def cut(trial: nn.Module) -> None:
            slices.cut(trial, lost)
            make_norms_scales(trial)

        def unread(trial: nn.Module) -> None:
            slices.unread(trial, lost)
            make_norms_scales(trial)

        expected = self._after(unread)
        return expected is not None and (not self._is_steady or alike(expected, self._after(cut)))

    def _can_be_moved(self, items: Sequence[Item]) -> bool:
        """Whether the answers stay when their channels change places: all who read them are known.

        A shuffle that reads channels in another order than it seems is seen only so.
        """
        generator = torch.Generator().manual_seed(1)

        def move(trial: nn.Module) -> None:
            for item in items:
                bundles = _in_any_order(item, generator)
                slices.reorder(trial, item.slices, in_channels_of(bundles, item.bundle))

        after = self._after(move)
        return after is not None and (not self._is_steady or alike(self._before, after))

    def _after(self, change: Callable[[nn.Module], None]) -> Any | None:
        """What a copy answers after a change; None where it fails."""
        try:
            trial = sharing_copy(self.module)
            change(trial)
            return self._answer(trial)
        except (CandidateError, *FAILURES):
            return None

    def _answer(self, module: nn.Module) -> Any:
        with torch.no_grad():
            return module.get_submodule(self.scope.path)(self.probe.clone())


def _in_any_order(item: Item, generator: torch.Generator) -> list[int]:
    """A group's bundles."""
    count = item.channels // item.bundle
    found: list[int] = torch.randperm(count, generator=generator).tolist()
    return found


def alike(first: Any, second: Any) -> bool:
    """Whether two answers are equal but for rounding."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or not first.is_floating_point():
            return first.shape == second.shape
        scale = float(first.abs().nan_to_num().max()) if first.numel() else 0.0
        return torch.allclose(first, second, rtol=0, atol=ALIKE * scale, equal_nan=True)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(alike(v, second[k]) for k, v in first.items())
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=True)
        return len(first) == len(second) and all(alike(a, b) for a, b in pairs)
    return True
