"""The environment keeps Gymnasium's contract and its own."""

from __future__ import annotations

import sys
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from synthetic import problem, scorer

from hwloop.search.env import ENV_ID, NetCompressEnv, register
from hwloop.search.planner import Planner
from hwloop.search.prior import Prior
from hwloop.search.problem import Problem, Score
from hwloop.search.reward import Reward

LIMITS: tuple[dict[str, Any], ...] = (
    {"max_drop": 0.01},
    {"budget_share": 0.6},
    {"max_drop": 0.01, "budget_share": 0.6},
)


def environment(known: Problem, *, prior: bool = False) -> NetCompressEnv:
    expected = Prior(Planner(known), Reward()) if prior else None
    return NetCompressEnv(known, scorer(known), prior=expected)


def greedy_on_prior(env: NetCompressEnv) -> dict[str, Any]:
    _, info = env.reset()
    done = False
    while not done:
        allowed = np.where(info["action_mask"], info["prior"], -np.inf)
        _, _, done, _, info = env.step(int(allowed.argmax()))
    return info


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("prior", [False, True])
def test_it_passes_the_checker_of_gymnasium(limit: dict[str, Any], prior: bool) -> None:
    check_env(environment(problem(5, 8, **limit), prior=prior), skip_render_check=True)


def test_it_is_registered_under_its_name() -> None:
    register()
    register()
    known = problem(5, 8, max_drop=0.01)
    env = gymnasium.make(ENV_ID, problem=known, evaluate=scorer(known))
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info["action_mask"].tolist() == list(known.masks[0])


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_behind_the_wall_every_episode_meets_its_budget(share: float) -> None:
    known = problem(8, 8, budget_share=share)
    env = environment(known)
    rng = np.random.default_rng(0)
    for _ in range(20):
        env.reset()
        done = False
        while not done:
            _, _, done, _, info = env.step(int(rng.integers(8)))
        assert known.predict_ms(info["candidate"]) <= share * known.baseline_ms
        assert all(known.masks[group][action] for group, action in enumerate(info["candidate"]))


def test_an_illegal_action_becomes_the_fastest_legal_one_and_is_reported() -> None:
    known = problem(5, 8, max_drop=0.01)
    env = environment(known)
    env.reset()
    _, _, _, _, info = env.step(1)
    assert not known.masks[0][1]
    assert info["executed"] == 7
    legal = environment(known)
    legal.reset()
    _, _, _, _, same = legal.step(2)
    assert same["executed"] == 2


def test_the_budget_of_an_episode_is_an_option_of_reset() -> None:
    known = problem(6, 8, budget_share=0.9)
    env = environment(known)
    _, loose = env.reset()
    _, tight = env.reset(options={"budget_ms": 1.02 * known.min_ms})
    assert tight["action_mask"].sum() < loose["action_mask"].sum()
    _, again = env.reset()
    assert again["action_mask"].tolist() == loose["action_mask"].tolist()


def test_a_budget_that_nothing_meets_leaves_one_action() -> None:
    known = problem(6, 8, budget_ms=0.01)
    env = environment(known)
    _, info = env.reset()
    done = False
    while not done:
        assert info["action_mask"].sum() == 1
        _, _, done, _, info = env.step(0)
    assert known.predict_ms(info["candidate"]) == pytest.approx(known.min_ms)


def test_only_the_last_step_is_rewarded_and_only_it_evaluates() -> None:
    known = problem(5, 8, max_drop=0.01)
    asked = []

    def evaluate(choices: tuple[int, ...], source: str) -> Score:
        asked.append((choices, source))
        return Score(metric_drop=0.0, latency_ms=known.baseline_ms / 2)

    env = NetCompressEnv(known, evaluate, source="test")
    env.reset()
    steps = [env.step(0) for _ in range(5)]
    assert [step[1] for step in steps] == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert [step[2] for step in steps] == [False] * 4 + [True]
    assert asked == [(known.dense, "test")]
    assert steps[-1][4]["reward"] == 0.5
    assert steps[-1][4]["score"].metric_drop == 0.0
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_greedy_episode_on_the_prior_is_about_the_plan(limit: dict[str, Any]) -> None:
    known = problem(10, 8, allowance=1.0, **limit)
    choices = greedy_on_prior(environment(known, prior=True))["candidate"]
    planner = Planner(known)
    if known.max_drop is None and known.budget_ms is not None:
        plan = planner.solve(known.budget_ms)
        assert known.summed_damage(choices) <= 1.2 * known.summed_damage(plan)
    elif known.budget_ms is None and known.max_drop is not None:
        plan = planner.fastest_within(known.max_drop)
        assert known.predict_ms(choices) <= 1.05 * known.predict_ms(plan)
    else:
        assert known.budget_ms is not None
        assert known.predict_ms(choices) <= known.budget_ms


def test_a_step_costs_less_than_half_a_millisecond() -> None:
    known = problem(13, 8, max_drop=0.01)
    env = environment(known, prior=True)
    rng = np.random.default_rng(0)
    seconds = []
    tracer = sys.gettrace()
    sys.settrace(None)  # it takes as long as the step
    try:
        for _ in range(20):
            env.reset()
            for _ in range(13):
                started = time.thread_time()
                env.step(int(rng.integers(8)))
                seconds.append(time.thread_time() - started)
    finally:
        sys.settrace(tracer)
    assert np.median(seconds) < 0.5e-3
