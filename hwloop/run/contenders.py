"""Candidates that may be the fastest are timed for longer before one of them is chosen.

Of many that were timed shortly the fastest is the luckiest: what looked 2 % faster than the others
is as fast as they are. A long measurement costs a tenth of a distillation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwloop.errors import CandidateError
from hwloop.findings import LatencySource, Protocol
from hwloop.measure.progress import Progress
from hwloop.measure.trial import Trial
from hwloop.run.evaluate import Evaluator
from hwloop.run.front import is_faster, outcome_of
from hwloop.run.race import Race

CLOSE = 0.05
"""Relative: a candidate so much slower than the fastest may in truth be as fast."""

MOST = 8
"""Of those that were not recovered fully yet; what they are held against is timed in any case."""

LIKELY = 0.05
"""Chance to meet the limit on the drop."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contenders:
    """Times them anew, once.

    Attributes:
        protocol: of the long measurement.
    """

    evaluator: Evaluator
    race: Race
    protocol: Protocol
    progress: Progress

    def retime(self, trials: Sequence[Trial]) -> None:
        """Tell the race the latencies of those that may ship."""
        if self.evaluator.source is LatencySource.SIMULATED:
            return
        chosen = self._chosen(trials)
        for number, trial in enumerate(chosen):
            self.progress.advance(number, len(chosen), "timed anew")
            try:
                measurement = self.evaluator.timed_for_long(trial.candidate, self.protocol)
            except CandidateError as error:
                self.progress.say(f"a candidate could not be timed anew: {error}")
                continue
            self.race.retime(trial.candidate, measurement)

    def _chosen(self, trials: Sequence[Trial]) -> list[Trial]:
        faster = [trial for trial in trials if is_faster(trial)]
        budget_ms = self.race.goal.budget_ms(self.race.baseline_ms)
        if self.race.goal.max_drop is None and budget_ms is not None:
            return self._first(self._about(faster, budget_ms))
        likely = [trial for trial in faster if self.race.chance(trial) >= LIKELY]
        likely.sort(key=lambda trial: outcome_of(trial).latency_ms)
        if not likely:
            return []
        limit_ms = outcome_of(likely[0]).latency_ms * (1 + CLOSE)
        chosen = self._first([t for t in likely if outcome_of(t).latency_ms <= limit_ms])
        return chosen if len(chosen) > 1 else []

    def _about(self, trials: Sequence[Trial], budget_ms: float) -> list[Trial]:
        """Those that may or may not be in time, the most accurate first: one of them ships."""
        close = [
            trial
            for trial in trials
            if abs(outcome_of(trial).latency_ms - budget_ms) <= CLOSE * budget_ms
        ]
        return sorted(close, key=lambda trial: self.race.score(trial).metric_drop or 0.0)

    def _first(self, trials: Sequence[Trial]) -> list[Trial]:
        recovered = [trial for trial in trials if self.race.of(trial) is not None]
        others = [trial for trial in trials if self.race.of(trial) is None]
        return [*recovered, *others[:MOST]]
