"""The candidates of a run's search: each is evaluated once, stored, and the best stays loadable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hwloop.compress import space
from hwloop.compress.subject import Built, Subject
from hwloop.errors import CandidateError
from hwloop.measure.trial import Trial, TrialState
from hwloop.records import Candidate
from hwloop.run import choice
from hwloop.run.best import Best
from hwloop.run.choice import Seen
from hwloop.run.evaluate import Evaluator
from hwloop.run.front import described, seen_of
from hwloop.run.result import USUAL, Usual, tried_by_hand
from hwloop.run.work import Work
from hwloop.search.problem import BudgetSpent, Choices, PredictMs


class Trials:
    """Answers the search from what is stored, and evaluates what is not.

    The best network so far, by the rule by which one ships, stays loadable at any moment.

    Args:
        best: keeps it.

    Attributes:
        usual: the usual settings on the network, by name; the dense one where one comes to nothing.

    Raises:
        UsageError: a stored trial is not of this run.
    """

    def __init__(self, work: Work, evaluator: Evaluator, *, best: Best) -> None:
        self.work = work
        self.evaluator = evaluator
        self.best = best
        self._known = {trial.candidate.digest(): trial for trial in work.notes.trials()}
        for number, trial in enumerate(self._known.values()):
            self._check(number, trial)
        self._leader = work.notes.best_so_far()
        self.usual = usual_candidates(evaluator.subject)

    def _check(self, number: int, trial: Trial) -> None:
        """A stored trial is about this network and this menu, and none is missing.

        Raises:
            UsageError: it is not, or the next one would get a number that is taken.
        """
        try:
            groups = len(self.evaluator.subject.network.groups)
            space.check_candidate(trial.candidate, groups, self.evaluator.subject.menu)
            if trial.number != number:
                raise ValueError(f"it should have the number {number}")
        except ValueError as error:
            raise self.work.notes.damaged_trial(trial.number, error) from error

    def all(self) -> list[Trial]:
        """Every trial, in the order in which they were evaluated."""
        return sorted(self._known.values(), key=lambda trial: trial.number)

    @property
    def searched(self) -> int:
        """How many were found by a search, whatever the usual settings."""
        return sum(trial.source != USUAL for trial in self._known.values())

    def by_hand(self) -> dict[str, Trial]:
        """Trials of the usual settings by name, each network once and never the dense one."""
        dense = self.evaluator.subject.dense_candidate
        found: dict[str, Trial] = {}
        for name, candidate in self.usual.items():
            trial = self.find(candidate)
            # Where a recipe has no legal action anywhere, it is the dense network under its name.
            if trial is None or trial.candidate == dense:
                continue
            if all(trial.candidate != other.candidate for other in found.values()):
                found[name] = trial
        return found

    def find(self, candidate: Candidate) -> Trial | None:
        return self._known.get(candidate.digest())

    def evaluate(
        self, choices: Choices, source: str, *, predict_ms: PredictMs | None = None
    ) -> Trial:
        """The trial of a candidate; what is stored costs nothing.

        Args:
            predict_ms: gives the latency that is expected, kept beside what is measured.

        Raises:
            BudgetSpent: the time is up, or as many candidates as asked for were evaluated: a run
                that is given more evaluations later searches again, and goes on from there.
        """
        trial = self.find(self.evaluator.subject.candidate(choices))
        if trial is None:
            wanted = self.work.settings.evaluations
            if self.work.out_of_time or (source != USUAL and self.searched >= wanted):
                raise BudgetSpent
            trial = self._evaluated(choices, source, predict_ms=predict_ms)
        elif trial.outcome is not None:  # a kill may have come between its end and this
            self._offer_trial(trial, None)
        return trial

    def _evaluated(self, choices: Choices, source: str, *, predict_ms: PredictMs | None) -> Trial:
        candidate = self.evaluator.subject.candidate(choices)
        number = len(self._known)
        started = time.monotonic()
        values: dict[str, Any] = {}
        built = None
        try:
            outcome, built = self.evaluator.outcome(candidate)
            values = {"state": TrialState.COMPLETE, "outcome": outcome}
        except CandidateError as error:
            values = {"state": TrialState.FAILED, "reason": str(error)}
        trial = Trial(
            number=number,
            candidate=candidate,
            source=source,
            predicted_ms=None if predict_ms is None else predict_ms(choices),
            wall_s=time.monotonic() - started,
            **values,
        )
        work = self.work
        work.notes.add_trial(trial)
        self._known[candidate.digest()] = trial
        work.folder.event("trial", number=number, source=source, state=trial.state)
        work.clock.keep()
        if trial.outcome is not None:
            self._offer_trial(trial, built)
        total = work.settings.evaluations + len(set(self.usual.values()))
        work.progress.advance(len(self._known), total, self.best_so_far())
        return trial

    def _offer_trial(self, trial: Trial, built: Built | None) -> None:
        schedule = self.evaluator.loop_schedule

        def build() -> Built:
            return built or self.evaluator.builder.build(trial.candidate, schedule)

        self.offer(seen_of(trial, steps=schedule.steps), build)

    def offer(self, seen: Seen, build: Callable[[], Built]) -> None:
        """Keep a network loadable if it is better than the best so far.

        Args:
            build: gives the network, if it is needed; it may raise CandidateError.
        """
        if self.work.notes.shipped():
            return  # what a finished run ships stays the best until another one is chosen
        goal, baseline_ms = self.work.settings.goal, self.evaluator.baseline.latency_ms
        if not choice.is_better(seen, self._leader, goal, baseline_ms=baseline_ms):
            return
        try:
            built = build()
        except CandidateError as error:
            self.work.progress.say(f"the best so far cannot be built again: {error}")
            return
        self.best.keep(built, {"stage": "search", "metric_drop": seen.drop})
        self._leader = seen
        self.work.notes.put_best_so_far(seen)

    def best_so_far(self) -> str:
        """The best network so far, for the line of progress."""
        return described(
            self._leader,
            self.work.settings.goal,
            baseline_ms=self.evaluator.baseline.latency_ms,
            mark=self.evaluator.source.mark,
        )


def usual_candidates(subject: Subject) -> dict[str, Candidate]:
    """The usual settings on a network, by name; two of them may come to the same."""
    tried = tried_by_hand(subject.rules.precisions)
    return {name: _usual_candidate(subject, usual) for name, usual in tried.items()}


def usual_count(subject: Subject) -> int:
    """How many candidates the usual settings come to."""
    return len(set(usual_candidates(subject).values()))


def _usual_candidate(subject: Subject, usual: Usual) -> Candidate:
    if usual.without_every:
        return subject.shallow(usual.action, every=usual.without_every)
    return subject.uniform(usual.action)
