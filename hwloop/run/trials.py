"""The candidates of a run's search: each is evaluated once, stored, and the best stays loadable."""

from __future__ import annotations

import time
from typing import Any

from hwloop.compress import space
from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.measure.predict import Predictor
from hwloop.records import Candidate, Trial, TrialState
from hwloop.run.best import Best
from hwloop.run.evaluate import Evaluator
from hwloop.run.front import describe_best
from hwloop.run.result import BY_HAND
from hwloop.run.work import Work
from hwloop.search.problem import BudgetSpent, Choices, Problem, Score
from hwloop.search.reward import Reward

USUAL = "recipe"
"""Source of the trials that are what people would try without a search."""


class Trials:
    """Answers the search from what is stored, and evaluates what is not.

    Args:
        reward: decides which network is the best so far.
        best: keeps it.

    Raises:
        UsageError: a stored trial is not of this run.
    """

    def __init__(self, work: Work, evaluator: Evaluator, *, reward: Reward, best: Best) -> None:
        self.work = work
        self.evaluator = evaluator
        self.reward = reward
        self.best = best
        self._known = {trial.candidate.digest(): trial for trial in work.notes.trials()}
        for number, trial in enumerate(self._known.values()):
            self._check(number, trial)
        self._best_reward = work.notes.best_reward()

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

    def find(self, candidate: Candidate) -> Trial | None:
        return self._known.get(candidate.digest())

    def evaluate(
        self, choices: Choices, source: str, *, problem: Problem, predictor: Predictor
    ) -> Score:
        """The score of a candidate; what is stored costs nothing.

        Raises:
            BudgetSpent: the time is up, or as many candidates as asked for were evaluated: a run
                that is given more evaluations later searches again, and goes on from there.
        """
        trial = self.find(self.evaluator.subject.candidate(choices))
        if trial is None:
            wanted = self.work.settings.evaluations
            if self.work.out_of_time or (source != USUAL and self.searched >= wanted):
                raise BudgetSpent
            trial = self._evaluated(choices, source, problem=problem, predictor=predictor)
        else:
            self._offer(trial, None, problem)  # a kill may have come between its end and this
        return score_of(trial)

    def _evaluated(
        self, choices: Choices, source: str, *, problem: Problem, predictor: Predictor
    ) -> Trial:
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
            predicted_ms=predictor(choices),
            wall_s=time.monotonic() - started,
            **values,
        )
        work = self.work
        work.notes.add_trial(trial)
        self._known[candidate.digest()] = trial
        work.folder.event("trial", number=number, source=source, state=trial.state)
        work.clock.keep()
        self._offer(trial, built, problem)
        total = work.settings.evaluations + len(BY_HAND)
        work.progress.advance(len(self._known), total, self.best_so_far())
        return trial

    def _offer(self, trial: Trial, built: Built | None, problem: Problem) -> None:
        """Keep the best candidate so far loadable at any moment."""
        if trial.outcome is None or self.work.notes.shipped():
            return  # what a finished run ships stays the best until other finalists are chosen
        value = self.reward(score_of(trial), problem)
        if value <= self._best_reward:
            return
        if built is None:  # every stage of it was stored before a kill
            try:
                evaluator = self.evaluator
                built = evaluator.builder.build(trial.candidate, evaluator.loop_schedule)
            except CandidateError as error:
                self.work.progress.say(f"trial {trial.number} cannot be built again: {error}")
                return
        self._best_reward = value
        self.best.keep(built, {"stage": "search", "metric_drop": trial.outcome.metric_drop})
        self.work.notes.put_best_reward(value)

    def best_so_far(self) -> str:
        """The fastest candidate that may come within the goal, for the line of progress."""
        return describe_best(
            self.all(),
            loop_max_drop=self.work.settings.loop_max_drop,
            baseline_ms=self.evaluator.baseline.latency_ms,
            mark=self.evaluator.source.mark,
        )


def score_of(trial: Trial) -> Score:
    """A trial as the search sees it."""
    if trial.outcome is None:
        return Score(metric_drop=None, latency_ms=None, failed=trial.reason)
    return Score(metric_drop=trial.outcome.metric_drop, latency_ms=trial.outcome.latency_ms)
