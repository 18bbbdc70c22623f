"""The candidates of a run's search: each is evaluated once, stored, and the best stays loadable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hwloop.compress import space
from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.measure.progress import Progress
from hwloop.measure.store import Store
from hwloop.measure.table import Predictor
from hwloop.parsing import ANY_NUMBER, a_flag
from hwloop.records import Candidate, Trial, TrialState
from hwloop.run.evaluate import Evaluator
from hwloop.run.folder import RunFolder
from hwloop.run.result import USUAL_RECIPES
from hwloop.search.problem import BudgetSpent, Choices, Problem, Score
from hwloop.search.reward import Reward

SHIPPED = "shipped"
"""Set once a run has ended with a network: it may be given more evaluations after that."""

RECIPE = "recipe"
"""Source of the trials that are what people would try without a search."""


class Trials:
    """Answers the search from what is stored, and evaluates what is not.

    Args:
        evaluations: candidates to evaluate, besides the usual recipes.
        out_of_time: tells whether the search has to end.
        after: called after every new trial.
        save: keeps a network as the best so far, under its note.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: Store,
        folder: RunFolder,
        *,
        reward: Reward,
        evaluations: int,
        loop_max_drop: float | None,
        progress: Progress,
        out_of_time: Callable[[], bool],
        after: Callable[[], None],
        save: Callable[[Built, dict[str, Any]], None],
    ) -> None:
        self.evaluator = evaluator
        self.store = store
        self.folder = folder
        self.reward = reward
        self.evaluations = evaluations
        self.loop_max_drop = loop_max_drop
        self.progress = progress
        self._out_of_time = out_of_time
        self._after = after
        self._save = save
        self._known = {trial.candidate.digest(): trial for trial in store.trials()}
        for number, trial in enumerate(self._known.values()):
            self._check(number, trial)
        stored = store.get("run", "best_reward", ANY_NUMBER)
        self._best_reward = float("-inf") if stored is None else float(stored)

    def _check(self, number: int, trial: Trial) -> None:
        """A stored trial is about this network and this menu, and none is missing.

        Raises:
            UsageError: it is not, or the next one would get a number that is taken.
        """
        try:
            groups = len(self.evaluator.subject.network.groups)
            space.check_candidate(trial.candidate, groups)
            if trial.number != number:
                raise ValueError(f"it should have the number {number}")
        except ValueError as error:
            raise self.store.damaged("trial", str(trial.number), error) from error

    def all(self) -> list[Trial]:
        """Every trial, in the order in which they were evaluated."""
        return sorted(self._known.values(), key=lambda trial: trial.number)

    @property
    def searched(self) -> int:
        """How many were found by a search, whatever the recipes."""
        return sum(trial.source != RECIPE for trial in self._known.values())

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
        trial = self.find(space.candidate(choices))
        if trial is None:
            enough = source != RECIPE and self.searched >= self.evaluations
            if self._out_of_time() or enough:
                raise BudgetSpent
            trial = self._evaluated(choices, source, problem=problem, predictor=predictor)
        else:
            self._offer(trial, None, problem)  # a kill may have come between its end and this
        return score_of(trial)

    def _evaluated(
        self, choices: Choices, source: str, *, problem: Problem, predictor: Predictor
    ) -> Trial:
        candidate = space.candidate(choices)
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
        self.store.add_trial(trial)
        self._known[candidate.digest()] = trial
        self.folder.event("trial", number=number, source=source, state=trial.state)
        self._after()
        self._offer(trial, built, problem)
        total = self.evaluations + len(USUAL_RECIPES)
        self.progress.advance(len(self._known), total, self.best_so_far())
        return trial

    def _offer(self, trial: Trial, built: Built | None, problem: Problem) -> None:
        """Keep the best candidate so far loadable at any moment."""
        if trial.outcome is None or self.store.get("run", SHIPPED, a_flag):
            return  # what a finished run ships stays the best until other finalists are chosen
        value = self.reward(score_of(trial), problem)
        if value <= self._best_reward:
            return
        if built is None:  # every stage of it was stored before a kill
            try:
                built = self.evaluator.build(trial.candidate, self.evaluator.loop_recipe)
            except CandidateError as error:
                self.progress.say(f"trial {trial.number} cannot be built again: {error}")
                return
        self._best_reward = value
        self._save(built, {"stage": "search", "metric_drop": trial.outcome.metric_drop})
        self.store.put("run", "best_reward", value)

    def best_so_far(self) -> str:
        """The fastest candidate that may come within the goal, for the line of progress."""
        return describe_best(
            self.all(),
            loop_max_drop=self.loop_max_drop,
            baseline_ms=self.evaluator.baseline.latency_ms,
            mark=self.evaluator.source.mark,
        )


def describe_best(
    trials: list[Trial], *, loop_max_drop: float | None, baseline_ms: float, mark: str
) -> str:
    """The fastest trial whose drop may still be distilled away; empty when there is none."""
    found = [
        trial.outcome
        for trial in trials
        if trial.outcome is not None
        and (loop_max_drop is None or trial.outcome.metric_drop <= loop_max_drop)
    ]
    if not found:
        return ""
    best = min(found, key=lambda outcome: outcome.latency_ms)
    speedup = baseline_ms / best.latency_ms
    text = f"best {speedup:.2f}x{mark} at drop {best.metric_drop:+.4f}"
    return f"{text} (before full distillation)"


def score_of(trial: Trial) -> Score:
    """A trial as the search sees it."""
    if trial.outcome is None:
        return Score(metric_drop=None, latency_ms=None, failed=trial.reason)
    return Score(metric_drop=trial.outcome.metric_drop, latency_ms=trial.outcome.latency_ms)
