"""Shallower networks: a residual block is left out."""

from __future__ import annotations

from collections.abc import Mapping

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.errors import CandidateError
from hwloop.records import Action, Group, Layer


class Drop(Method):
    """Leaves out the residual block that a group is the first within: x + f(x) becomes x.

    The block's other groups have nothing to decide then (Veit et al., NeurIPS 2016, section 4.1:
    residual networks work on without one of their blocks).
    """

    kind = "drop"
    leaves_out = True

    def actions(self) -> tuple[Action, ...]:
        return (Action(kind=self.kind),)

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        return bool(group.branch) and action.precision == "base"

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        from hwloop.compress.branches import leave_out
        from hwloop.compress.calls import check_fits

        for group in chosen:
            if not group.branch:
                raise CandidateError("compress", f"{group.name} is the first within no block")
            leave_out(work.module, group.branch)
        check_fits(work.module, work.example)

    def describe(self, action: Action) -> str:
        return "leave out its block"
