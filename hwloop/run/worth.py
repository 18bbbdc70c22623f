"""What a full recovery is expected to win, before it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwloop.measure.trial import Trial
from hwloop.records import Goal
from hwloop.run import choice
from hwloop.run.choice import Seen
from hwloop.search.foresight import Foreseen

MOST_VALUE = 1e6
MOST_GAIN = math.log(2.0)
"""In log speed, over the best so far. Of what is many times as fast nothing is known from there:
its chance is wide and its gain is large, so that recoveries would go to what is hopeless."""

HOPE = -0.5
"""Standard deviations: where only accuracy counts, half of one is hoped for."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A full recovery that may be worth its time.

    Attributes:
        steps: of the recovery, with what it goes on from.
        value: what it is expected to win, for each rung up to where that is most.
    """

    trial: Trial
    steps: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Worth:
    """By the goal of a run.

    Attributes:
        baseline_ms: of the dense network.
        room: the drop whose bound is just within the goal; None without a limit on the drop.
        unit: the drop that counts as one, above 0.
    """

    goal: Goal
    baseline_ms: float
    room: float | None
    unit: float

    def of(self, foreseen: Foreseen, latency_ms: float, best: Seen | None) -> float:
        """What it is expected to win over the best so far, in log speed; as good as equal is none.

        Where the drop has no limit it is the drop that is won, in its unit, within the budget.
        """
        if self.room is None:
            return self._in_time(foreseen, latency_ms, best)
        before_ms = self.baseline_ms if best is None else best.latency_ms
        if latency_ms * (1 + choice.ALIKE) > before_ms:
            return 0.0
        gain = math.log(before_ms / latency_ms)
        most = math.inf if best is None else MOST_GAIN
        return min(gain, most) * foreseen.chance_within(self.room)

    def _in_time(self, foreseen: Foreseen, latency_ms: float, best: Seen | None) -> float:
        budget_ms = self.goal.budget_ms(self.baseline_ms) or math.inf
        if latency_ms > budget_ms:
            # Only where nothing is in time, the fastest is the best that can be had.
            return self.baseline_ms / latency_ms if best is None else 0.0
        if best is None or best.latency_ms > budget_ms:
            return MOST_VALUE - foreseen.middle
        return max(0.0, (best.drop - foreseen.at(HOPE)) / self.unit)
