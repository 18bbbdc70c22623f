"""What a full recovery will leave of a candidate's drop, learned from the few that were given one.

A short recovery ranks candidates of one latency roughly as a full one does, but its level says
little: tens of points there are one point at the end. So the final drop is regressed on the short
one, on the speedup and on the steps, all on a scale that is linear near zero and logarithmic far
from it; a Gaussian prior on the coefficients (Bishop 2006, section 3.3) stands in until a run has
lessons of its own. Numbers only, and of no metric: the unit is the goal's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwloop.search.problem import Array

PRIOR = np.array([-0.6, 0.4, 0.1, -0.3])
"""Of an intercept, the short drop, octaves of speedup, and octaves of steps beyond the first
rung. Wide: a run's own lessons take over."""

PRIOR_SD = np.array([0.6, 0.2, 0.3, 0.15])
NOISE = 0.25
"""Standard deviation of what the line does not explain, on the squashed scale."""

FARTHEST = 100.0
"""On the squashed scale: beyond it a drop is no number any more."""

LEAST_UNIT = 1e-9

DEGREES = 4.0
"""What the noise's prior weighs, in lessons."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One candidate seen twice.

    Attributes:
        short_drop: after the search's recovery, in the metric's unit, positive = worse.
        speedup: over the dense network, above 0.
        steps: of the full recovery.
        drop: after it.
    """

    short_drop: float
    speedup: float
    steps: int
    drop: float


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A predicted drop on the squashed scale: normal there.

    Attributes:
        middle, sd: of the squashed drop.
        doubt: standard deviation of the middle itself: what lessons leave unknown, at most ``sd``.
        unit: what counts as one, in the metric's unit.
    """

    middle: float
    sd: float
    doubt: float
    unit: float

    @property
    def drop(self) -> float:
        """The median, in the metric's unit."""
        return self.at(0.0)

    @property
    def cautious(self) -> float:
        """A standard deviation above the median, by what few or far lessons leave unknown of it."""
        return self._unsquashed(self.middle + self.doubt)

    def at(self, deviations: float) -> float:
        """A quantile: so many standard deviations above the median, in the metric's unit."""
        return self._unsquashed(self.middle + deviations * self.sd)

    def _unsquashed(self, squashed: float) -> float:
        return self.unit * math.sinh(min(max(squashed, -FARTHEST), FARTHEST))

    def chance_within(self, limit: float) -> float:
        """Probability that the drop is at most ``limit``."""
        z = (math.asinh(limit / self.unit) - self.middle) / self.sd
        return 0.5 * math.erfc(-z / math.sqrt(2))


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Predicts drops after full recovery.

    Attributes:
        unit: the drop that counts as one, above 0: the goal, or what a run's own figures spread.
        first_steps: steps of the first full rung; longer ones are told by octaves above it.
        lessons: candidates that were recovered fully so far.
    """

    unit: float
    first_steps: int
    lessons: tuple[Lesson, ...] = ()

    def __post_init__(self) -> None:
        if not (self.unit > 0 and math.isfinite(self.unit)):
            raise ValueError(f"a drop of {self.unit} cannot count as one")

    def of(self, *, short_drop: float, speedup: float, steps: int) -> Foreseen:
        """What a full recovery of so many steps is expected to leave.

        Args:
            short_drop: after the search's recovery, in the metric's unit.
            speedup: over the dense network, above 0.
        """
        weights, covariance, noise = self._posterior
        row = self._row(short_drop, speedup, steps)
        unknown = float(row @ covariance @ row)
        return Foreseen(
            middle=float(row @ weights),
            sd=math.sqrt(noise**2 + unknown),
            doubt=math.sqrt(unknown),
            unit=self.unit,
        )

    def longer(self, drop: float, *, steps_before: int, steps: int) -> Foreseen:
        """What is expected of a longer recovery of a candidate that had one already.

        Its own figure stands for all that is particular about it.
        """
        weights, covariance, noise = self._posterior
        octaves = math.log2(max(steps, 1) / max(steps_before, 1))
        unknown = float(covariance[3, 3]) * octaves**2
        return Foreseen(
            middle=self._squashed(drop) + float(weights[3]) * octaves,
            sd=math.sqrt(noise**2 / 2 + unknown),
            doubt=math.sqrt(unknown),
            unit=self.unit,
        )

    @cached_property
    def _posterior(self) -> tuple[Array, Array, float]:
        """Coefficients, their covariance, and the noise."""
        prior = np.diag(PRIOR_SD**-2)
        if not self.lessons:
            return PRIOR, np.diag(PRIOR_SD**2), NOISE
        rows = np.array(
            [self._row(each.short_drop, each.speedup, each.steps) for each in self.lessons]
        )
        found = np.array([self._squashed(each.drop) for each in self.lessons])
        noise = NOISE
        for _ in range(3):  # the noise from the residuals, and again with it
            precision = prior + rows.T @ rows / noise**2
            covariance = np.linalg.inv(precision)
            weights = covariance @ (prior @ PRIOR + rows.T @ found / noise**2)
            squares = float(((found - rows @ weights) ** 2).sum())
            noise = math.sqrt((DEGREES * NOISE**2 + squares) / (DEGREES + len(found)))
        return weights, covariance, noise

    def _row(self, short_drop: float, speedup: float, steps: int) -> Array:
        longer = math.log2(max(steps, 1) / max(self.first_steps, 1))
        return np.array([1.0, self._squashed(short_drop), math.log2(speedup), longer])

    def _squashed(self, drop: float) -> float:
        return math.asinh(drop / self.unit)


def unit_of(max_drop: float | None, drops: Sequence[float]) -> float:
    """The drop that counts as one: the goal's, or else the spread of what was seen.

    Without either it is 1.
    """
    if max_drop:
        return max(max_drop, LEAST_UNIT)
    seen = [abs(drop) for drop in drops if math.isfinite(drop) and drop]
    return max(float(np.median(seen)), LEAST_UNIT) if seen else 1.0
