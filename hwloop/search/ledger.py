"""What a method has asked for so far, and when it has to stop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from hwloop.search.problem import BudgetSpent, Choices, Evaluate, Method, Problem, Score
from hwloop.search.reward import Reward

MISSES_PER_EVALUATION = 50


class Ledger:
    """Asks for scores, once per candidate, and keeps them with their rewards.

    Args:
        problem: to value the scores.
        evaluate: the caller's.
        evaluations: distinct candidates that may be known in the end.
        reward: what a score is worth.
    """

    def __init__(
        self, problem: Problem, evaluate: Evaluate, *, evaluations: int, reward: Reward
    ) -> None:
        self.problem = problem
        self.evaluations = evaluations
        self.scores: dict[Choices, Score] = dict(problem.known)
        self.rewards: dict[Choices, float] = {
            choices: float(reward(score, problem)) for choices, score in self.scores.items()
        }
        self._evaluate = evaluate
        self._reward = reward
        self._possible = math.prod(len(menu) for menu in problem.menus)
        self._misses = 0

    @property
    def progress(self) -> float:
        """Share of the evaluations that is spent, in [0, 1]."""
        return min(1.0, len(self.scores) / self.evaluations)

    @property
    def fresh_progress(self) -> float:
        """The same of what this method may ask for itself, in [0, 1]."""
        known = len(self.problem.known)
        return min(1.0, (len(self.scores) - known) / max(self.evaluations - known, 1))

    def evaluate(self, choices: Choices, source: str) -> float:
        """Reward of a candidate; one that is known costs nothing.

        Raises:
            BudgetSpent: as many candidates as allowed are known, or all that exist, or nothing
                new was asked for in a long time.
        """
        if choices in self.rewards:
            self.miss()
            return self.rewards[choices]
        if len(self.scores) >= min(self.evaluations, self._possible):
            raise BudgetSpent
        self._misses = 0
        score = self._evaluate(choices, source)
        self.scores[choices] = score
        self.rewards[choices] = float(self._reward(score, self.problem))
        return self.rewards[choices]

    def miss(self) -> None:
        """Note that no new candidate was found; raises BudgetSpent after too many in a row."""
        self._misses += 1
        exhausted = len(self.scores) >= min(self.evaluations, self._possible)
        if exhausted or self._misses > MISSES_PER_EVALUATION * max(self.evaluations, 20):
            raise BudgetSpent

    def elites(self, count: int) -> list[Choices]:
        """The best candidates so far, best first; ties by the order of evaluation."""
        return sorted(self.rewards, key=lambda choices: -self.rewards[choices])[:count]


def until_spent(search: Callable[[Ledger, int], None]) -> Method:
    """Make a :class:`Method` of a search that runs on a ledger and a seed until BudgetSpent."""

    @functools.wraps(search)
    def method(
        problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
    ) -> None:
        try:
            search(Ledger(problem, evaluate, evaluations=evaluations, reward=reward), seed)
        except BudgetSpent:
            return

    return method


def random_choices(problem: Problem, rng: np.random.Generator) -> Choices:
    """Uniformly random legal actions behind the action wall: the budget can always be met."""
    prefix: Choices = ()
    for group, menu in enumerate(problem.menus):
        rest = problem.fastest_choices[group + 1 :]
        options = [a for a in menu if fits(problem, (*prefix, a, *rest))]
        prefix = (*prefix, int(rng.choice(options or [problem.fastest_choices[group]])))
    return prefix


def mutated(problem: Problem, choices: Choices, rng: np.random.Generator) -> Choices:
    """The same choices with one random legal change (none where no group has an alternative)."""
    movable = [group for group, menu in enumerate(problem.menus) if len(menu) > 1]
    if not movable:
        return choices
    group = int(rng.choice(movable))
    action = int(rng.choice([a for a in problem.menus[group] if a != choices[group]]))
    return (*choices[:group], action, *choices[group + 1 :])


def fits(problem: Problem, choices: Choices) -> bool:
    """Is the predicted latency within the budget?"""
    return problem.budget_ms is None or problem.latency_ms(choices) <= problem.budget_ms
