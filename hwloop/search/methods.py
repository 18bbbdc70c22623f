"""Who can search, by name. Importing this does not import torch."""

from __future__ import annotations

from hwloop.search import baselines
from hwloop.search.problem import Evaluate, Method, Problem
from hwloop.search.reward import Reward


def _dqn(
    problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
) -> None:
    from hwloop.search.agent import search_dqn

    search_dqn(problem, evaluate, evaluations=evaluations, seed=seed, reward=reward)


def _vanilla(
    problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
) -> None:
    from hwloop.search.vanilla import search_vanilla

    search_vanilla(problem, evaluate, evaluations=evaluations, seed=seed, reward=reward)


METHODS: dict[str, Method] = {
    "dqn": _dqn,
    "dqn-vanilla": _vanilla,
    "random": baselines.search_random,
    "greedy": baselines.search_greedy,
    "uniform": baselines.search_uniform,
    "planner": baselines.search_planner,
    "local": baselines.search_local,
}
