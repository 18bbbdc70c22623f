"""Which candidate is recovered fully next, and what that teaches of the others.

Every full recovery is a lesson on how much a short one's drop shrinks. With it the search is told
what candidates are expected to lose in the end, and the next full recovery goes to the candidate
whose chance to meet the goal, times the speed that it would win, is largest for its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from statistics import median

from hwloop.compress.subject import Built
from hwloop.findings import Measurement
from hwloop.measure.trial import Trial
from hwloop.records import Candidate, Goal
from hwloop.run import choice
from hwloop.run.choice import Seen
from hwloop.run.distil import Distiller
from hwloop.run.front import drop_of, is_faster, outcome_of, seen_of
from hwloop.run.worth import Entry, Worth
from hwloop.search.foresight import Foreseen, Foresight, Lesson, unit_of
from hwloop.search.problem import PredictMs, Score

RUNGS, FINAL_RUNGS, MOST_RUNGS = 2, 4, 9
"""Full recoveries of one candidate, each of which goes on from the one before: what the search aims
at, what finals may spend, and what where the time decides."""

LEAST_VALUE = 0.001
"""A recovery is worth its time from this expected gain in log speed on, per rung."""

FIRST_MARGIN = 0.3
"""Of the goal: what the bound of a drop is taken to add to it until one was seen."""

NO_CHANCE = 0.002
MOST_ALLOWANCE = 50.0

OnRecovered = Callable[[Seen, Callable[[], Built]], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Race:
    """The full recoveries of a run, in the order in which they were decided.

    What was stored by an earlier process is not a lesson before this one decides on it as well, so
    that a run that goes on repeats its decisions.

    Attributes:
        rungs: of a candidate that is cut, at least 1.
        on_recovered: told of each recovered network, and how to get it if it is needed.
    """

    distiller: Distiller
    goal: Goal
    baseline_ms: float
    rungs: int = FINAL_RUNGS
    on_recovered: OnRecovered = lambda seen, build: None
    _recovered: dict[Candidate, Seen] = field(default_factory=dict)
    _lessons: list[Lesson] = field(default_factory=list)
    _failed: set[tuple[Candidate, int]] = field(default_factory=set)
    _retimed: dict[Candidate, Measurement] = field(default_factory=dict)

    @property
    def first_steps(self) -> int:
        return self.distiller.steps

    @property
    def most_steps(self) -> int:
        """Of the highest rung."""
        return self.first_steps * self.rungs

    @property
    def unit(self) -> float:
        """The drop that counts as one, in the metric's unit: the goal, or what was seen so far."""
        return unit_of(self.goal.max_drop, [lesson.drop for lesson in self._lessons])

    @property
    def foresight(self) -> Foresight:
        """What is known of full recoveries so far."""
        return _learned(self.unit, self.first_steps, tuple(self._lessons))

    def of(self, trial: Trial) -> Seen | None:
        """A trial's last full recovery, which is its longest."""
        return self._recovered.get(trial.candidate)

    @property
    def known(self) -> frozenset[tuple[Candidate, int]]:
        """What was recovered so far, each with its steps."""
        return frozenset((seen.candidate, seen.steps) for seen in self._recovered.values())

    def is_stored(self, trial: Trial, steps: int) -> bool:
        """Whether a full recovery of a trial was done in an earlier process."""
        schedule = self.distiller.schedule(steps)
        return self.distiller.evaluator.figures.finalist(trial.candidate, schedule) is not None

    def recover(
        self, trial: Trial, steps: int, *, predict_ms: PredictMs | None = None
    ) -> Seen | None:
        """Recover a trial fully, and learn from it; None where that fails.

        Args:
            predict_ms: where given, what it says to gain nothing is undone first.
        """
        found = self.distiller.distilled(trial, steps, predict_ms=predict_ms)
        if found is None:
            self._failed.add((trial.candidate, steps))
            return None
        self._recovered[trial.candidate] = found
        if found.candidate == trial.candidate and trial.candidate.is_cut:
            lesson = Lesson(
                short_drop=drop_of(trial),
                speedup=self.baseline_ms / found.latency_ms,
                steps=steps,
                drop=found.drop,
            )
            self._lessons.append(lesson)
        self.on_recovered(found, partial(self._built, found))
        return found

    def _built(self, seen: Seen) -> Built:
        return self.distiller.at_hand(seen) or self.distiller.rebuilt(seen)

    def retime(self, candidate: Candidate, measurement: Measurement) -> None:
        """From now on a candidate is as fast as it was measured here."""
        self._retimed[candidate] = measurement
        if candidate in self._recovered:
            self._recovered[candidate] = self.as_timed(self._recovered[candidate])

    def as_timed(self, seen: Seen) -> Seen:
        """What was seen, with its latest latency."""
        found = self._retimed.get(seen.candidate)
        if found is None:
            return seen
        return replace(seen, latency_ms=found.latency_ms, faster=choice.is_faster(found))

    def chance(self, trial: Trial) -> float:
        """Probability that a complete trial can be brought within the limit on the drop."""
        found = self.of(trial)
        if self._room is None or (found is not None and choice.within_drop(found, self.goal)):
            return 1.0
        return self._foreseen(trial, self.most_steps).chance_within(self._room)

    def may_meet(self, trial: Trial, steps: int) -> bool:
        """Whether a longer recovery has any chance to bring a trial within the limit."""
        found = self.of(trial)
        if found is None or not trial.candidate.is_cut or (trial.candidate, steps) in self._failed:
            return False
        if self._room is None:
            return True
        return self._foreseen(trial, steps).chance_within(self._room) >= NO_CHANCE

    def score(self, trial: Trial) -> Score:
        """A trial as the search is told of it: with the drop that a long recovery may leave.

        That is what ships when it is worth its time; told of a shorter one, a search would stop at
        candidates that a longer one leaves far within the goal. What is far from all that was
        recovered is told by what it may lose as well: told of the median alone, a search whose
        first lesson went well goes where nothing is left of a network.
        """
        if trial.outcome is None:
            return Score(metric_drop=None, latency_ms=None, failed=trial.reason)
        found = self.of(trial)
        if found is None:
            drop = self._foreseen(trial, self._aimed_steps).cautious
        else:
            drop = self._in_the_end(found)
        return Score(metric_drop=drop, latency_ms=trial.outcome.latency_ms)

    @property
    def aimed_rungs(self) -> int:
        """Of the recovery that the search aims at.

        The same whatever the finals may spend, which a run that goes on may be told anew.
        """
        return min(self.rungs, RUNGS)

    @property
    def _aimed_steps(self) -> int:
        return self.first_steps * self.aimed_rungs

    def _in_the_end(self, seen: Seen) -> float:
        """The drop that a long recovery may leave of one that was recovered.

        More steps make nothing better than the dense network that was not so before.
        """
        if not seen.candidate.is_cut or not 0 < seen.steps < self._aimed_steps:
            return seen.drop
        foreseen = self.foresight.longer(
            seen.drop, steps_before=seen.steps, steps=self._aimed_steps
        )
        return max(foreseen.drop, min(seen.drop, 0.0))

    @property
    def limit(self) -> float | None:
        """The drop that leaves room for its own bound within the goal; None without a goal."""
        return None if self._room is None else max(self._room, 0.0)

    def allowance(self, damages: dict[Candidate, float]) -> float:
        """Summed damage for each unit of final drop, by the recovered candidates; at least 1.

        Args:
            damages: summed damage of candidates, in the metric's unit.
        """
        pairs = [
            (damages[candidate], self._in_the_end(seen))
            for candidate, seen in self._recovered.items()
            if candidate in damages
        ]
        products = sum(damage * drop for damage, drop in pairs)
        if products <= 0:
            return MOST_ALLOWANCE if pairs else MOST_ALLOWANCE / 5
        return min(max(sum(damage**2 for damage, _ in pairs) / products, 1.0), MOST_ALLOWANCE)

    def next(self, trials: Sequence[Trial], *, left: int, rungs: int | None = None) -> Entry | None:
        """The full recovery that pays most, or None where none is worth its time.

        While nothing meets the goal, whatever has a chance is worth it.

        Args:
            left: how many rungs may still be spent.
            rungs: of one candidate, where they are fewer than the race's.
        """
        recovered = self._recovered.values()  # a lucky score on few samples is no best
        best = choice.best(recovered, self.goal, baseline_ms=self.baseline_ms)
        most = self.rungs if rungs is None else rungs
        entries = [
            entry for trial in trials for entry in self._entries(trial, best, left=left, most=most)
        ]
        found = max(entries, key=lambda entry: entry.value, default=None)
        least = LEAST_VALUE if best is not None else NO_CHANCE * LEAST_VALUE
        return found if found is not None and found.value >= least else None

    def _entries(self, trial: Trial, best: Seen | None, *, left: int, most: int) -> Iterable[Entry]:
        if not is_faster(trial) and trial.candidate not in self._retimed:
            return
        timed = self.as_timed(seen_of(trial, steps=0))
        if not timed.faster:
            return
        found = self.of(trial)
        if found is not None:
            meets = choice.meets(found, self.goal, baseline_ms=self.baseline_ms)
            if meets and self.goal.max_drop is not None:
                return
        latency_ms = timed.latency_ms if found is None else found.latency_ms
        rungs = self._rungs(trial, left=left, most=most)
        if not rungs:
            return
        values = [
            self._worth.of(self._foreseen(trial, self.first_steps * rung), latency_ms, best) / count
            for count, rung in enumerate(rungs, 1)
        ]
        yield Entry(trial=trial, steps=self.first_steps * rungs[0], value=max(values))

    def _rungs(self, trial: Trial, *, left: int, most: int) -> range:
        """Those that a trial may still go through; nothing is trained of what was not cut."""
        if any(candidate == trial.candidate for candidate, _ in self._failed):
            return range(0)
        found = self.of(trial)
        done = 0 if found is None else max(found.steps // max(self.first_steps, 1), 1)
        last = most if trial.candidate.is_cut and self.first_steps else 1
        return range(done + 1, min(last, done + left) + 1)

    def _foreseen(self, trial: Trial, steps: int) -> Foreseen:
        """What so many steps leave, by its own full recovery where it had one."""
        found = self.of(trial)
        if found is not None:
            longer = max(steps, found.steps) if trial.candidate.is_cut else found.steps
            return self.foresight.longer(found.drop, steps_before=found.steps, steps=longer)
        outcome = outcome_of(trial)
        if not trial.candidate.is_cut:  # nothing of it is trained: it stays as it is
            return self.foresight.longer(outcome.metric_drop, steps_before=1, steps=1)
        return self.foresight.of(
            short_drop=outcome.metric_drop,
            speedup=self.baseline_ms / outcome.latency_ms,
            steps=steps,
        )

    @property
    def _worth(self) -> Worth:
        return Worth(goal=self.goal, baseline_ms=self.baseline_ms, room=self._room, unit=self.unit)

    @property
    def _room(self) -> float | None:
        """The drop whose bound is just within the goal; below 0 where samples are few."""
        return None if self.goal.max_drop is None else self.goal.max_drop - self._margin

    @property
    def _margin(self) -> float:
        found = [
            s.upper_drop - s.drop for s in self._recovered.values() if s.upper_drop is not None
        ]
        return median(found) if found else FIRST_MARGIN * (self.goal.max_drop or 0.0)


@lru_cache(maxsize=1)
def _learned(unit: float, first_steps: int, lessons: tuple[Lesson, ...]) -> Foresight:
    """Fitted once for the same lessons: every candidate of a round is asked about."""
    return Foresight(unit=unit, first_steps=first_steps, lessons=lessons)
