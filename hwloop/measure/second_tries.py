"""Whether a measurement that was disturbed is worth another try."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

REMEMBERED = 8
"""Second tries that tell whether the next one is worth its time."""


@dataclass
class SecondTries:
    """Those of one stage, which pay while the last ones were calmer.

    Where others use a machine all the time most of them are as disturbed as the first; one in four
    is made in any case, so that it is noticed when they have ended.
    """

    _asked: int = 0
    _calmer: deque[bool] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def pay(self) -> bool:
        """Asked before each one."""
        self._asked += 1
        few = len(self._calmer) < REMEMBERED
        return few or 2 * sum(self._calmer) >= REMEMBERED or self._asked % 4 == 0

    def note(self, *, calmer: bool) -> None:
        """What became of one."""
        self._calmer.append(calmer)
