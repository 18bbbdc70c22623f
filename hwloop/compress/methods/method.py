"""What a compression method is, and the one that does nothing.

A method is one file in this folder and one line in :data:`hwloop.compress.methods.METHODS`. It
brings its actions, says where they are legal and what a layer costs under them, applies them, and
has words for them. Importing a method imports no framework; :meth:`Method.apply` does.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Group, Layer, LayerConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwloop.compress.moments import InputMoments, Moments


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a method is given to apply its actions to.

    Attributes:
        module: the network so far, a copy: it is changed in place.
        dense: the network that nothing was done to; what decides is read from it, so that no
            choice depends on the order of methods.
        example: an input of the deployed shape.
        moments: what the dense network's layers are given; None where there is no data at hand, as
            when only the shapes count.
        lost: path of a layer with moments → its inputs that a method before has cut.
    """

    module: nn.Module
    dense: nn.Module
    example: Tensor
    rules: SpaceRules
    moments: InputMoments | None = None
    lost: dict[str, Collection[int]] = field(default_factory=dict)

    def given(self, path: str) -> Moments | None:
        """What a layer is given of the inputs that it still has, where that is known."""
        known = (self.moments or {}).get(path)
        return None if known is None else known.without(self.lost.get(path, ()))


class Method:
    """A way to make groups of layers cheaper; as it stands here, it leaves them alone.

    A method overrides what it changes. What it says of rows is held against the graphs that its
    :meth:`apply` leads to, by tests/method_contract.py.

    Attributes:
        kind: of its actions; the word that profiles list under ``[space] kinds``.
        told_by_amount: a search tells its actions from leaving a group alone by their amount;
            every other kind is a feature of its own.
        leaves_out: the residual block goes that a group is the first within, with all its layers:
            they cost nothing then, and nobody decides about them.
        usual: searched where a profile does not say which kinds are.
    """

    kind = KEEP.kind
    told_by_amount = False
    leaves_out = False
    usual = True

    def actions(self) -> tuple[Action, ...]:
        """Its actions in base precision, gentlest first; the menu has each in every precision."""
        return (KEEP,)

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        """Whether the action is possible for a group and changes anything.

        Args:
            layers: the group's convolutions and linear layers; empty where they are not known.
        """
        return True

    def effect(self, action: Action, group: Group, rules: SpaceRules) -> Hashable:
        """What the action comes to: of several with equal effects the first one is offered."""
        return self.kind, action.amount

    def channels(self, action: Action, group: Group, rules: SpaceRules) -> int:
        """Channels of the group that stay."""
        return group.channels

    def size(self, action: Action) -> float:
        """Share of the input's sides at which the network computes; 1 for all but a resize."""
        return 1.0

    def rows(
        self, config: LayerConfig, action: Action, rules: SpaceRules
    ) -> tuple[LayerConfig, ...]:
        """What a layer of the group costs, in forward order.

        Args:
            config: the layer with the channels and precisions that it has in the candidate.
        """
        return (config,)

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        """Change ``work.module`` in place.

        Args:
            chosen: the action of each group that has one of this method.

        Raises:
            CandidateError: stage ``compress``.
        """

    def describe(self, action: Action) -> str:
        """A few words for people, without the precision."""
        return self.kind


class Keep(Method):
    """Leaves a group as it is."""
