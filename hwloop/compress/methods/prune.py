"""Structured pruning: a group of coupled layers loses whole channels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.records import Action, Group, Layer

SHARES = (0.75, 0.5, 0.25, 0.125)
"""Of the channels that stay. Every one more costs rows of the table by the square."""


class Prune(Method):
    """Cuts a group to a share of its channels: those that can be done without most easily go.

    Widths are rounded up to multiples of what the target's kernels like.
    """

    kind = "prune"
    told_by_amount = True

    def actions(self) -> tuple[Action, ...]:
        return tuple(Action(kind=self.kind, amount=share) for share in SHARES)

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        return group.prunable and self.channels(action, group, rules) < group.channels

    def effect(self, action: Action, group: Group, rules: SpaceRules) -> Hashable:
        return self.kind, self.channels(action, group, rules)

    def channels(self, action: Action, group: Group, rules: SpaceRules) -> int:
        wanted, step = round(group.channels * action.amount), _step(group, rules.align)
        return min(group.channels, max(step, -(-wanted // step) * step))

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        from hwloop.compress.cut import cut

        widths = {
            group.name: self.channels(action, group, work.rules) for group, action in chosen.items()
        }
        lost = cut(work.module, work.example, widths, dense=work.dense, moments=work.moments)
        work.lost.update(lost)

    def describe(self, action: Action) -> str:
        return f"{self.kind} to {100 * action.amount:g}%"


def _step(group: Group, align: int) -> int:
    """Widths are multiples of it: whole bundles, aligned where that leaves a choice."""
    both = math.lcm(group.bundle, align)
    return both if 2 * both <= group.channels else group.bundle if group.bundle > 1 else align
