"""What layers have in common whose channels can only change together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hwloop.compress.slices import Side, Slice, folded, numbered_by

PARTS = (1, 2, 3, 4)
"""Equal ones that a tensor may be split into, which lose as many channels each."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Layers whose output channels can only change together.

    Attributes:
        layers: paths of the convolutions and linear layers.
        channels: output channels of the first; where some only go together, wherever they lie,
            as one of each equal part of a split do, they count as one.
        bundle: channels that can only go together, side by side: a head, say.
        fixed_by: in words, why the width cannot change; empty where it can.
        slices: where the channels lie; none where the width cannot change.
    """

    layers: tuple[str, ...]
    channels: int
    bundle: int = 1
    fixed_by: str = ""
    slices: tuple[Slice, ...] = field(default=(), repr=False, compare=False)

    @property
    def prunable(self) -> bool:
        return not self.fixed_by

    def in_parts(self, parts: int) -> Coupling | None:
        """The same of one channel of each equal part.

        None where parts cannot be equal, or a layer would not lose as many channels with each.
        """
        width = self.channels // parts
        if self.channels % (parts * self.bundle) or width <= self.bundle:
            return None
        found = replace(self, channels=width, slices=folded(self.slices, width))
        return found if all(map(_is_even, found.slices)) else None

    def numbered_by(self, path: str) -> Coupling:
        """The same, where channels have the numbers that they have in one of the layers.

        Bundles keep theirs: in another order they might lie apart.
        """
        if self.bundle > 1:
            return self
        return replace(self, slices=numbered_by(self.slices, path, self.channels))


def _is_even(each: Slice) -> bool:
    return each.side is not Side.OUTPUTS or len(set(map(len, each.places.values()))) == 1
