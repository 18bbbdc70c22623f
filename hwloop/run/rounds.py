"""The search of a run: rounds of candidates, and a full recovery after each that teaches the next.

What a candidate loses after the search's short recovery says little of what it will lose in the
end. So a method is told what :mod:`hwloop.run.race` expects, and after every round that is known
better. So are latencies: what a round has measured is in the fit of the next. For its seed a run
decides the same again, also where a limit on the time had ended it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwloop.compress import space
from hwloop.compress.space import Masks
from hwloop.measure.predict import Predictor
from hwloop.measure.trial import Trial
from hwloop.run import calibrate, features
from hwloop.run.race import Race
from hwloop.run.trials import Trials
from hwloop.run.usual import UsualSettings, may_recover
from hwloop.search.methods import METHODS
from hwloop.search.planner import Planner
from hwloop.search.problem import (
    BudgetSpent,
    Choices,
    Evaluate,
    PredictMs,
    Problem,
    Score,
)
from hwloop.search.reward import Reward

ROUNDS = (16, 8, 4, 4, 4, 4, 4, 4)
"""Candidates that a method asks for before each full recovery, over and over: many while little is
known of where the goal lies, then few, so that what the last recoveries taught finds candidates in
the gap between the best that is within the goal and the next that is not."""

PLAN = "plan"
PLANNED = (5.0, 10.0)
"""Summed damage, in goals, of the plans that a search begins with: a careful one and a bold one."""

SCALE = 5.0
"""A reward of one is lost with so many goals: a tenth of it is half the goal, and fades speed."""


def lessons_in(evaluations: int) -> int:
    """Full recoveries of a search: that of a plan, and one for each round that is filled."""
    ends = itertools.accumulate(itertools.cycle(ROUNDS))
    return 1 + sum(1 for _ in itertools.takewhile(lambda end: end <= evaluations, ends))


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """One search.

    Attributes:
        usual: have been evaluated, and teach the first round.
        masks: what may be chosen: legal, and not known to gain nothing.
        damage: (groups, actions) of each action alone, in the metric's unit.
        predictor: of latencies, as it was fitted before the search.
    """

    trials: Trials
    race: Race
    usual: UsualSettings
    masks: Masks
    damage: NDArray[np.float64]
    predictor: Predictor
    _asked: dict[Choices, Trial] = field(default_factory=dict)

    def search(self) -> None:
        """Round after round, until the evaluations or the time is up.

        The fastest of the usual settings has taught the first round. The others, which take as long
        as the search itself, have their turn when that has led to something.
        """
        work, settings = self.trials.work, self.trials.work.settings
        work.stage("search")
        self._asked.update(self.usual.asked)
        reward = Reward(kind=settings.reward, lam=settings.lam)
        for number, size in enumerate(itertools.cycle(ROUNDS)):
            before = len(self._asked)
            if number == 0:
                self._begin_with_plans()
            problem = self._problem()
            METHODS[settings.agent](
                problem,
                self._scorer(problem.predict_ms),
                evaluations=len(problem.known) + before + size - len(self._asked),
                seed=settings.seed,
                reward=reward,
            )
            enough = len(self._asked) >= before + size
            if enough:
                self._teach()
            if (number == 0 and not self.usual.finish()) or not enough:
                return
            work.progress.stage("search")

    def _begin_with_plans(self) -> None:
        """What table and probes answer by themselves is evaluated, and the bolder one recovered.

        With as many steps as what ships it is within the goal more often than not, and the best
        that a person would find: so the search begins near the goal, with that in its hands.
        """
        limit = self.race.goal.max_drop
        if not limit:
            return
        problem = self._problem()
        score, planner = self._scorer(problem.predict_ms), Planner(problem)
        plans = [planner.fastest_within(goals * limit) for goals in PLANNED]
        with contextlib.suppress(BudgetSpent):
            for choices in plans:
                score(choices, PLAN)
        bold = self._asked.get(plans[-1])
        if bold is not None:
            self._recover_one_of([bold], rungs=1)

    def _teach(self) -> None:
        """The full recovery that pays most, by what its candidate may come to in the end."""
        self._recover_one_of(list(self._asked.values()), rungs=self.race.aimed_rungs)

    def _recover_one_of(self, trials: Sequence[Trial], *, rungs: int) -> None:
        entry = self.race.next(trials, left=rungs, rungs=rungs)
        if entry is None:
            return
        if may_recover(entry.trial, entry.steps, trials=self.trials, race=self.race):
            self.race.recover(entry.trial, entry.steps)

    def _scorer(self, predict_ms: PredictMs) -> Evaluate:
        """What a method asks; each answer is kept."""

        def score(choices: Choices, source: str) -> Score:
            trial = self.trials.evaluate(choices, source, predict_ms=predict_ms)
            self._asked[choices] = trial
            return self.race.score(trial)

        return score

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
            predict_ms=calibrate.taught(self.predictor, self._asked.values(), subject),
            baseline_ms=baseline_ms,
            damage=self.damage,
            budget_ms=goal.budget_ms(baseline_ms),
            max_drop=self.race.limit,
            drop_scale=SCALE * self.race.unit,
            allowance=self.race.allowance(damages),
            menu_features=space.menu_features(subject.rules),
            known=known,
        )
