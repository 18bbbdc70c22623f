"""The reward prefers what the user asked for."""

from __future__ import annotations

import math

import pytest

from hwloop.search.problem import EpisodeLimits, Score
from hwloop.search.reward import FAILED_REWARD, Reward, linear_reward


def limits(*, budget_ms: float | None = None, max_drop: float | None = None) -> EpisodeLimits:
    return EpisodeLimits(baseline_ms=10.0, budget_ms=budget_ms, max_drop=max_drop, drop_scale=0.05)


def of(drop: float, latency_ms: float, asked: EpisodeLimits) -> float:
    return Reward()(Score(metric_drop=drop, latency_ms=latency_ms), asked)


def test_within_the_drop_the_faster_candidate_is_better_whatever_its_drop() -> None:
    asked = limits(max_drop=0.01)
    assert of(0.010, 4.0, asked) > of(0.0, 5.0, asked) > of(0.0, 10.0, asked) == 0.0


def test_a_drop_beyond_the_tolerance_cannot_be_bought_with_speed() -> None:
    asked = limits(max_drop=0.01)
    assert of(0.016, 0.1, asked) < of(0.0, 10.0, asked)
    assert of(0.05, 0.1, asked) < of(0.016, 9.0, asked)


def test_with_a_budget_only_accuracy_counts_and_only_excess_is_punished() -> None:
    asked = limits(budget_ms=5.0)
    assert of(0.02, 1.0, asked) == of(0.02, 5.0, asked) == pytest.approx(-0.4)
    assert of(0.02, 5.5, asked) == pytest.approx(-0.4 - 10 * math.log(1.1))


def test_with_both_limits_both_are_punished_and_speed_pays() -> None:
    asked = limits(budget_ms=5.0, max_drop=0.01)
    assert of(0.0, 4.0, asked) > of(0.0, 5.0, asked)
    assert of(0.0, 5.0, asked) > of(0.0, 6.0, asked)
    assert of(0.01, 4.0, asked) > of(0.03, 4.0, asked)


@pytest.mark.parametrize(
    "score",
    [
        Score(metric_drop=None, latency_ms=None, failed="build: no kernel"),
        Score(metric_drop=math.nan, latency_ms=1.0),
        Score(metric_drop=0.0, latency_ms=math.inf),
        Score(metric_drop=9.0, latency_ms=1.0),
    ],
)
def test_failed_and_hopeless_candidates_get_the_worst_reward(score: Score) -> None:
    assert Reward()(score, limits(max_drop=0.01)) == FAILED_REWARD


def test_linear_reward_weighs_latency_relative_to_the_baseline() -> None:
    reward = Reward(kind="linear", lam=0.2)
    score = Score(metric_drop=0.01, latency_ms=5.0)
    assert (
        reward(score, limits())
        == linear_reward(0.01, 0.5, lam=0.2, drop_scale=1.0)
        == pytest.approx(0.45)
    )


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_the_linear_reward_does_not_depend_on_the_metrics_unit(unit: float) -> None:
    asked = EpisodeLimits(baseline_ms=10.0, budget_ms=None, max_drop=None, drop_scale=0.05 * unit)
    for lam in (0.1 * unit, 0.0):
        reward = Reward(kind="linear", lam=lam)
        found = [
            reward(Score(metric_drop=drop * unit, latency_ms=ms), asked)
            for drop, ms in ((0.0, 10.0), (0.01, 5.0), (0.04, 5.0))
        ]
        wanted = [0.0, 0.4, 0.1] if lam else [0.0, -0.2, -0.8]
        assert found == pytest.approx(wanted)


def test_a_goal_without_a_limit_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        of(0.0, 1.0, limits())
    with pytest.raises(ValueError, match="goal or linear"):
        Reward(kind="best")
