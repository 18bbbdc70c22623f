"""The search of a run: rounds of candidates, and a full recovery after each that teaches the next.

What a candidate loses after the search's short recovery says little of what it will lose in the
end. So a method is told what :mod:`hwloop.run.race` expects, and after every round that is known
better. For its seed a run decides the same again, also where a limit on the time had ended it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwloop.compress import space
from hwloop.compress.space import Masks
from hwloop.measure.predict import Predictor
from hwloop.measure.trial import Trial
from hwloop.run import features
from hwloop.run.front import outcome_of
from hwloop.run.race import LONG, Race
from hwloop.run.result import BY_HAND, USUAL
from hwloop.run.trials import Trials, usual_candidate
from hwloop.search.methods import METHODS
from hwloop.search.problem import BudgetSpent, Choices, Problem, Score
from hwloop.search.reward import Reward

ROUND = 16
"""Candidates that a method asks for before the next full recovery."""

FIRST_LESSONS = 2
"""Usual settings that are recovered before anything is searched: INT8 as it is, and the fastest."""

SCALE = 5.0
"""A reward of one is lost with so many goals: a tenth of it is half the goal, and fades speed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """One search.

    Attributes:
        masks: what may be chosen: legal, and not known to gain nothing.
        damage: (groups, actions) of each action alone, in the metric's unit.
        predictor: of latencies.
    """

    trials: Trials
    race: Race
    masks: Masks
    damage: NDArray[np.float64]
    predictor: Predictor
    _asked: dict[Choices, Trial] = field(default_factory=dict)

    def search(self) -> None:
        """The usual settings, then round after round, until the evaluations or the time is up.

        The fastest of the usual settings teaches the first round. The others, which take as long
        as the search itself, have their turn when that has led to something.
        """
        trials, settings = self.trials, self.trials.work.settings
        trials.work.stage("search")
        usual = self._usual()
        if usual is None or not self._recovered(usual[:FIRST_LESSONS]):
            return
        later = usual[FIRST_LESSONS:]
        reward = Reward(kind=settings.reward, lam=settings.lam)
        while True:
            before = len(self._asked)
            problem = self._problem()
            METHODS[settings.agent](
                problem,
                self._scorer(),
                evaluations=len(problem.known) + ROUND,
                seed=settings.seed,
                reward=reward,
            )
            enough = len(self._asked) >= before + ROUND
            if enough:
                self._teach(long=not later)
            if not self._recovered(later) or not enough:
                return
            later = []

    def _usual(self) -> list[Trial] | None:
        """What people try without a search, evaluated: what is not trained first, then the fastest.

        None if the time is up.
        """
        subject = self.trials.evaluator.subject
        try:
            for usual in BY_HAND.values():
                self._evaluated(subject.choices(usual_candidate(subject, usual)), USUAL)
        except BudgetSpent:
            return None
        found = [trial for trial in self.trials.by_hand().values() if trial.outcome is not None]
        return sorted(
            found, key=lambda trial: (trial.candidate.is_cut, outcome_of(trial).latency_ms)
        )

    def _recovered(self, usual: Sequence[Trial]) -> bool:
        """Recover them fully; False if the time is up."""
        for trial in usual:
            if not self._may_recover(trial, self.race.first_steps):
                return False
            self.race.recover(trial, self.race.first_steps, revert=False)
        if usual:
            self.trials.work.progress.stage("search")
        return True

    def _teach(self, *, long: bool) -> None:
        """The full recovery that pays most.

        Args:
            long: whether it may be of the second rung, which only lessons can tell.
        """
        units = LONG if long else 1
        entry = self.race.next(list(self._asked.values()), units=units, long=long)
        if entry is not None and self._may_recover(entry.trial, entry.steps):
            self.race.recover(entry.trial, entry.steps, revert=False)
            self.trials.work.progress.stage("search")

    def _may_recover(self, trial: Trial, steps: int) -> bool:
        """Whether there is time for it, or it was done before the time was up."""
        return not self.trials.work.out_of_time or self.race.is_stored(trial, steps)

    def _evaluated(self, choices: Choices, source: str) -> Trial:
        trial = self.trials.evaluate(choices, source, predictor=self.predictor)
        self._asked[choices] = trial
        return trial

    def _scorer(self) -> Callable[[Choices, str], Score]:
        return lambda choices, source: self.race.score(self._evaluated(choices, source))

    def _summed(self, choices: Choices) -> float:
        return float(self.damage[np.arange(len(choices)), choices].sum())

    def _in_space(self, choices: Choices) -> bool:
        """Whether a search may choose it: a usual setting may do what gains nothing."""
        return all(mask[choice] for mask, choice in zip(self.masks, choices, strict=True))

    def _problem(self) -> Problem:
        """What the search is told: numbers only, drops as they are expected in the end."""
        evaluator, goal = self.trials.evaluator, self.trials.work.settings.goal
        subject, baseline_ms = evaluator.subject, evaluator.baseline.latency_ms
        asked = {
            choices: trial for choices, trial in self._asked.items() if self._in_space(choices)
        }
        known = {choices: self.race.score(trial) for choices, trial in asked.items()}
        dense = subject.choices(subject.dense_candidate)
        known.setdefault(dense, Score(metric_drop=0.0, latency_ms=baseline_ms))
        damages = {
            trial.candidate: self._summed(subject.choices(trial.candidate))
            for trial in asked.values()
        }
        return Problem(
            network_features=features.features(subject.network),
            masks=self.masks,
            predict_ms=self.predictor,
            baseline_ms=baseline_ms,
            damage=self.damage,
            budget_ms=goal.budget_ms(baseline_ms),
            max_drop=self.race.limit,
            drop_scale=SCALE * self.race.unit,
            allowance=self.race.allowance(damages),
            menu_features=space.menu_features(subject.rules),
            known=known,
        )
