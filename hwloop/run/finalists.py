"""From a finished search to the network that ships: what is recovered fully, which one wins.

Nothing here looks at the test split; see :mod:`hwloop.run.final` for the one time that it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.measure.progress import Progress
from hwloop.measure.trial import Trial
from hwloop.records import Goal
from hwloop.run import choice
from hwloop.run.choice import Seen
from hwloop.run.clock import FinalsClock
from hwloop.run.contenders import Contenders
from hwloop.run.evaluate import Evaluator
from hwloop.run.front import seen_of
from hwloop.run.race import MOST_RUNGS, Race
from hwloop.run.result import USUAL
from hwloop.search.problem import PredictMs


@dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """The network that ships, with its figures on the search split."""

    built: Built
    seen: Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Finals:
    """Recovers the most promising candidates and picks the one that ships, of all that was seen.

    Attributes:
        predict_ms: says what a finalist's changes gain.
        contenders: whose latencies are taken again first.
        count: full recoveries that it may spend; each rung of a candidate is one.
        clock: where the time decides instead, however many those are.
    """

    evaluator: Evaluator
    race: Race
    goal: Goal
    count: int
    predict_ms: PredictMs
    contenders: Contenders
    progress: Progress
    clock: FinalsClock | None = None

    def choose(self, trials: Sequence[Trial], *, by_hand: Sequence[Trial]) -> Finalist | None:
        """The best network that was seen, or None when the dense one is.

        What may be the fastest is timed anew, for longer. Then one recovery after the other goes
        where it pays most (:mod:`hwloop.run.race`), until ``count`` are spent, the time is up, or
        none is worth its time. Then the usual settings are put on equal terms: each that could ship
        instead, if only it became accurate enough, gets as many steps as what would ship had. A
        slower one would not ship however accurate it became, and one without a chance to come
        within the goal is left where it is. What ships is chosen by :mod:`hwloop.run.choice`.

        Args:
            by_hand: trials of the usual settings.
        """
        self.contenders.retime(trials)
        self._recover(trials)
        while True:
            chosen = self._best(trials)
            behind = [] if chosen is None else self._behind(chosen.seen, by_hand)
            if chosen is None or not behind:
                return chosen
            for trial in behind:
                self.race.recover(trial, chosen.seen.steps)

    def _recover(self, trials: Sequence[Trial]) -> None:
        spent, done = 0, 0
        while self.clock is None or self.clock.allows(done):
            left = self.count - spent if self.clock is None else self.race.rungs
            entry = self.race.next(trials, left=left)
            if entry is None:
                return
            before = self.race.known
            predict_ms = None if entry.trial.source == USUAL else self.predict_ms
            found = self.race.recover(entry.trial, entry.steps, predict_ms=predict_ms)
            # Of two that differ in what earns nothing, only the first one costs anything.
            free = found is not None and (found.candidate, found.steps) in before
            spent, done = spent + (0 if free else 1), done + 1
            if self.clock is not None:
                self.clock.keep(done)

    @property
    def baseline_ms(self) -> float:
        return self.evaluator.baseline.latency_ms

    def seen(self, trials: Sequence[Trial]) -> list[Seen]:
        """Everything that was recovered, measured and scored: finalists of all times, other trials.

        A trial counts by its full recovery alone where that is within the goal: it was scored on
        more samples.
        """
        steps = self.evaluator.loop_schedule.steps
        dense = self.evaluator.subject.dense_candidate
        kept = self.evaluator.figures.finalists(
            menu=self.evaluator.subject.menu,
            groups=len(dense.actions),
            most_steps=max(self.race.first_steps * MOST_RUNGS, steps),
        )
        found = [self.race.as_timed(finalist.seen) for finalist in kept]
        better = {seen.candidate for seen in found if choice.within_drop(seen, self.goal)}
        for trial in trials:
            if trial.outcome is not None and trial.candidate not in (dense, *better):
                found.append(self.race.as_timed(seen_of(trial, steps=steps)))
        return found

    def summary(self, trials: Sequence[Trial]) -> str:
        """What was seen, for a run that ships the dense network."""
        failures = [trial.reason for trial in trials if trial.reason is not None]
        return choice.summary(self.seen(trials), self.goal, failures=failures)

    def _behind(self, chosen: Seen, by_hand: Sequence[Trial]) -> list[Trial]:
        """Usual settings that would ship instead if more steps brought them within the goal."""
        found = []
        for trial in by_hand:
            seen = self.race.of(trial)
            if seen is None or seen.candidate == chosen.candidate:
                continue
            if self._may_win(seen, chosen) and self.race.may_meet(trial, chosen.steps):
                found.append(trial)
        return found

    def _may_win(self, seen: Seen, chosen: Seen) -> bool:
        """Whether more steps alone could make it ship: it is faster, or in time for accuracy."""
        if self.goal.max_drop is None:
            rival = choice.meets(seen, self.goal, baseline_ms=self.baseline_ms)
        else:
            rival = seen.latency_ms < chosen.latency_ms
        return rival and seen.steps < chosen.steps

    def _best(self, trials: Sequence[Trial]) -> Finalist | None:
        """The best of everything seen, by what it scores once more when it is built again.

        A candidate of the search was scored on fewer samples: a lucky one gives way to the next.
        """
        pool, scored = self.seen(trials), set[Seen]()
        while True:
            chosen = choice.best(pool, self.goal, baseline_ms=self.baseline_ms)
            if chosen is None:
                self.progress.say(f"the dense network ships: {self.summary(trials)}")
                return None
            finalist = self._built(chosen, is_scored=chosen in scored)
            if finalist is not None and finalist.seen == chosen:
                self._say_if_short(chosen)
                return finalist
            pool.remove(chosen)
            if finalist is not None:
                pool.append(finalist.seen)
                scored.add(finalist.seen)

    def _built(self, chosen: Seen, *, is_scored: bool) -> Finalist | None:
        """The network itself; one that was neither just distilled nor scored is scored once more.

        None where it cannot be built, or is beyond the goal.
        """
        distiller = self.race.distiller
        built = distiller.at_hand(chosen)
        if built is not None:
            return Finalist(built=built, seen=chosen)
        try:
            built = distiller.rebuilt(chosen)
            if is_scored:
                return Finalist(built=built, seen=chosen)
            with self.evaluator.session.holding(built.model):
                found = self.evaluator.scorer.scored(built.model)
        except CandidateError as error:
            self.progress.say(f"it cannot be built again: {error}")
            return None
        again = replace(chosen, drop=found.drop, upper_drop=found.upper_drop)
        if not choice.within_drop(again, self.goal):
            self.progress.say(f"built again it loses {found.drop:+.4f}, more than allowed")
            return None
        return Finalist(built=built, seen=again)

    def _say_if_short(self, chosen: Seen) -> None:
        if chosen.steps < self.race.first_steps:
            self.progress.say(
                f"the best that was seen had {chosen.steps} distillation steps, at drop "
                f"{chosen.drop:+.4f}: it ships"
            )
