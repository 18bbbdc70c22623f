"""Resolution: the network computes with a smaller image of what it is given."""

from __future__ import annotations

from collections.abc import Mapping

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.records import Action, Group, Layer

SHARES = (0.86, 0.72)
"""Of the input's sides, rounded to what strides divide: 192 and 160 of 224, 24 and 20 of 28."""


class Resize(Method):
    """Shrinks the image in front of the first layer, within the graph: callers see no difference.

    Time goes with the square of the side. What a trained network loses is mostly that objects
    appear smaller than it knows them (Touvron et al., NeurIPS 2019, section 3); renewed batch norms
    and distillation from the network at its full size give that back.
    """

    kind = "resize"
    usual = False

    def actions(self) -> tuple[Action, ...]:
        return tuple(Action(kind=self.kind, amount=share) for share in SHARES)

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        return action.amount in group.sizes

    def size(self, action: Action) -> float:
        return action.amount

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        from hwloop.compress.shrinking import shrink

        for action in chosen.values():
            shrink(work.module, work.example, action.amount)

    def describe(self, action: Action) -> str:
        return f"image of {100 * action.amount:g}% of its sides"
