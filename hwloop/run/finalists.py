"""From a finished search to the network that ships: which trials are distilled, which one wins.

Nothing here looks at the test split; see :mod:`hwloop.run.final` for the one time that it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwloop.compress.recover import Schedule
from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.measure.progress import Progress
from hwloop.records import Goal, Trial
from hwloop.run import choice
from hwloop.run.choice import Seen
from hwloop.run.distil import Distiller
from hwloop.run.evaluate import Evaluator
from hwloop.run.front import drop_of, outcome_of, pareto_front

SPACING = 0.98
"""Neighbours on the front must differ by 2 % in latency to be worth two distillations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """The network that ships, with its figures on the search split."""

    built: Built
    seen: Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Finals:
    """Distils a few candidates and picks the one that ships, of everything that was seen.

    Attributes:
        count: how many trials may be distilled.
    """

    evaluator: Evaluator
    distiller: Distiller
    goal: Goal
    count: int
    progress: Progress

    def choose(self, trials: Sequence[Trial], *, loop_max_drop: float | None) -> Finalist | None:
        """The best network that was seen, or None when the dense one is.

        With a limit on the drop, the Pareto front is walked from the fastest trial within
        ``loop_max_drop``: to a faster one after a success, to a slower one after a failure. The
        last finalist is the safest one, unless one was within the goal before. Without such a
        limit, the trials with the smallest drops within the latency budget are distilled.
        What ships is chosen by :mod:`hwloop.run.choice`.
        """
        front = pareto_front([trial for trial in trials if _is_faster(trial)])
        budget_ms = self.goal.budget_ms(self.baseline_ms)
        if budget_ms is not None:
            in_time = [trial for trial in front if outcome_of(trial).latency_ms <= budget_ms]
            front = in_time or front
        if self.goal.max_drop is None:
            for trial in sorted(front, key=drop_of)[: self.count]:
                self.distiller.distilled(trial)
        else:
            self._walk(_thinned(front), limit=loop_max_drop or 0.0)
        return self._best(trials)

    @property
    def baseline_ms(self) -> float:
        return self.evaluator.baseline.latency_ms

    def seen(self, trials: Sequence[Trial]) -> list[Seen]:
        """Everything that was recovered, measured and scored: finalists of all times, trials."""
        dense = self.evaluator.subject.dense_candidate
        kept = self.evaluator.figures.finalists(
            menu=self.evaluator.subject.menu,
            groups=len(dense.actions),
            most_steps=self.distiller.schedule.steps,
        )
        found = [finalist.seen for finalist in kept]
        steps = self.evaluator.loop_schedule.steps
        for trial in trials:
            if trial.outcome is not None and trial.candidate != dense:
                found.append(_seen_of(trial, steps=steps))
        return found

    def summary(self, trials: Sequence[Trial]) -> str:
        """What was seen, for a run that ships the dense network."""
        failures = [trial.reason for trial in trials if trial.reason is not None]
        return choice.summary(self.seen(trials), self.goal, failures=failures)

    def _walk(self, front: list[Trial], *, limit: float) -> None:
        within = [index for index, trial in enumerate(front) if drop_of(trial) <= limit]
        position = within[0] if within else len(front) - 1
        low, high = -1, len(front)
        met = False
        tried: list[Trial] = []
        for attempt in range(self.count):
            last = attempt == self.count - 1 and not met
            if last or not low < position < high:
                break
            tried.append(front[position])
            found = self.distiller.distilled(front[position])
            if found is not None and choice.meets(found, self.goal, baseline_ms=self.baseline_ms):
                met = True
                high, position = position, position - 1
            else:
                low, position = position, position + 1
        safest = min(front, key=drop_of, default=None)
        if not met and safest is not None and safest not in tried:
            self.distiller.distilled(safest)

    def _best(self, trials: Sequence[Trial]) -> Finalist | None:
        """The best of everything seen whose rebuilt network still keeps the rule."""
        pool = self.seen(trials)
        while True:
            chosen = choice.best(pool, self.goal, baseline_ms=self.baseline_ms)
            if chosen is None:
                self.progress.say(f"the dense network ships: {self.summary(trials)}")
                return None
            finalist = self._shipped(chosen)
            if finalist is not None:
                return finalist
            pool.remove(chosen)

    def _shipped(self, chosen: Seen) -> Finalist | None:
        """The network itself; one that was not just distilled is built and scored once more."""
        schedule = Schedule(steps=chosen.steps)
        built = self.distiller.at_hand(chosen.candidate, schedule)
        if built is not None:
            return Finalist(built=built, seen=chosen)
        if chosen.steps != self.distiller.schedule.steps:
            self.progress.say(
                f"the best that was seen had {chosen.steps} distillation steps, at drop "
                f"{chosen.drop:+.4f}: it ships"
            )
        try:
            built = self.distiller.rebuilt(chosen.candidate, schedule)
            with self.evaluator.session.holding(built.model):
                scored = self.evaluator.scorer.scored(built.model)
        except CandidateError as error:
            self.progress.say(f"it cannot be built again: {error}")
            return None
        again = replace(chosen, drop=scored.drop, upper_drop=scored.upper_drop)
        if not choice.within_drop(again, self.goal):
            self.progress.say(f"built again it loses {scored.drop:+.4f}, more than allowed")
            return None
        return Finalist(built=built, seen=again)


def _seen_of(trial: Trial, *, steps: int) -> Seen:
    outcome = outcome_of(trial)
    return Seen(
        candidate=trial.candidate,
        steps=steps,
        latency_ms=outcome.latency_ms,
        faster=_is_faster(trial),
        drop=outcome.metric_drop,
        upper_drop=outcome.upper_drop,
    )


def _thinned(front: list[Trial]) -> list[Trial]:
    """Drop trials that are hardly slower than the one before and hardly better."""
    kept: list[Trial] = []
    for trial in front:
        if kept and outcome_of(kept[-1]).latency_ms > SPACING * outcome_of(trial).latency_ms:
            kept[-1] = trial
        else:
            kept.append(trial)
    return kept


def _is_faster(trial: Trial) -> bool:
    measurement = None if trial.outcome is None else trial.outcome.measurement
    return measurement is not None and choice.is_faster(measurement)
