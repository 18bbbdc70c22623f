"""Who can search, by name. Each is imported when it starts, and nothing before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwloop.search.problem import Evaluate, Method, Problem
    from hwloop.search.reward import Reward


def _later(load: Callable[[], Method]) -> Method:
    def search(
        problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
    ) -> None:
        load()(problem, evaluate, evaluations=evaluations, seed=seed, reward=reward)

    return search


def _dqn() -> Method:
    from hwloop.search.agent import search_dqn

    return search_dqn


def _vanilla() -> Method:
    from hwloop.search.vanilla import search_vanilla

    return search_vanilla


def _baselines() -> Any:
    from hwloop.search import baselines

    return baselines


METHODS: dict[str, Method] = {
    "dqn": _later(_dqn),
    "dqn-vanilla": _later(_vanilla),
    "random": _later(lambda: _baselines().search_random),
    "greedy": _later(lambda: _baselines().search_greedy),
    "uniform": _later(lambda: _baselines().search_uniform),
    "planner": _later(lambda: _baselines().search_planner),
    "local": _later(lambda: _baselines().search_local),
}
