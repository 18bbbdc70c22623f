"""The planner against brute force."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from synthetic import problem

from hwloop.search.planner import Planner
from hwloop.search.problem import Choices, Problem


def everything(known: Problem) -> list[tuple[float, float, Choices]]:
    return [
        (known.predict_ms(choices), known.summed_damage(choices), choices)
        for choices in itertools.product(*known.menus)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_plans_are_as_good_as_brute_force(seed: int) -> None:
    known = problem(5, 4, seed=seed)
    planner, points = Planner(known), everything(known)
    for share in (0.5, 0.7, 0.9):
        budget_ms = share * known.baseline_ms
        plan = planner.solve(budget_ms)
        least = min(damage for latency, damage, _ in points if latency <= budget_ms)
        assert known.predict_ms(plan) <= budget_ms
        assert known.summed_damage(plan) <= 1.05 * least + 1e-12
    for drop in (0.003, 0.01, 0.02):
        plan = planner.fastest_within(drop)
        least = min(latency for latency, damage, _ in points if damage <= drop)
        assert known.summed_damage(plan) <= drop
        assert known.predict_ms(plan) <= 1.05 * least


def test_the_fastest_candidate_is_the_fastest_of_all() -> None:
    for seed in range(6):
        known = problem(5, 4, seed=seed)
        assert known.min_ms == pytest.approx(min(latency for latency, *_ in everything(known)))


def test_an_impossible_limit_gives_the_nearest_plan() -> None:
    known = problem(5, 4)
    planner = Planner(known)
    assert known.predict_ms(planner.solve(0.0)) == pytest.approx(known.min_ms)
    assert planner.fastest_within(-1.0) == known.dense


def test_the_front_holds_no_dominated_plan() -> None:
    known = problem(6, 6)
    front = Planner(known).front()
    latencies = [known.predict_ms(plan) for plan in front]
    damages = [known.summed_damage(plan) for plan in front]
    assert len(front) > 10
    assert (np.diff(latencies) >= 0).all()
    assert (np.diff(damages) < 0).all()


def test_complete_keeps_the_prefix_and_follows_the_price() -> None:
    known = problem(6, 6)
    planner = Planner(known)
    assert planner.complete((2, 3), 1e-9)[:2] == (2, 3)
    free, dear = planner.complete((2, 3), 1e-9), planner.complete((2, 3), 1e3)
    assert known.summed_damage(free) < known.summed_damage(dear)
    assert known.predict_ms(free) > known.predict_ms(dear)


def test_cost_to_go_is_a_lower_bound_on_additive_costs() -> None:
    known = problem(4, 4, seed=3)
    planner = Planner(known)
    for slack_ms in (0.1, 0.5, 2.0):
        bound = planner.damage_to_go(1, np.array([slack_ms]))[0]
        least = min(
            sum(known.damage[g + 1, a] for g, a in enumerate(rest))
            for rest in itertools.product(*known.menus[1:])
            if sum(planner.extra_ms[g + 1, a] for g, a in enumerate(rest)) <= slack_ms
        )
        assert bound <= least + 1e-9


def test_another_damage_table_gives_other_plans() -> None:
    known = problem(6, 6)
    budget_ms = 0.7 * known.baseline_ms
    plan = Planner(known).solve(budget_ms)
    changed = next(group for group, action in enumerate(plan) if action)
    spared = known.damage.copy()
    spared[changed] *= 100
    assert Planner(known, spared).solve(budget_ms)[changed] == 0


def test_planning_a_usual_network_takes_less_than_a_second() -> None:
    known = problem(13, 8)
    started = time.perf_counter()
    Planner(known).solve(0.6 * known.baseline_ms)
    assert time.perf_counter() - started < 1.0
