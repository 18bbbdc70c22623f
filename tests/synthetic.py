"""Search problems made of numbers: known damages, latencies and interactions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import menu, menu_features
from hwloop.search.problem import Choices, Evaluate, Problem, Score

RULES = SpaceRules()


def problem(groups: int, actions: int, *, seed: int = 0, **limits: Any) -> Problem:
    """Random damages and latencies; where neighbours differ in precision, latency has a toll.

    A limit ``budget_share`` is turned into ``budget_ms`` as a share of the baseline.
    """
    rng = np.random.default_rng(seed)
    costs = rng.uniform(0.5, 2.0, (groups, 1)) * np.linspace(1, 0.3, actions)
    damage = np.abs(rng.normal(0, 0.0015, (groups, actions))).cumsum(axis=1)
    damage[:, 0] = 0
    rows = costs.tolist()

    def predict_ms(choices: Sequence[int]) -> float:
        halves = [choice >= actions // 2 for choice in choices]
        toll = 0.1 * sum(a != b for a, b in itertools.pairwise(halves))
        return float(sum(row[choice] for row, choice in zip(rows, choices, strict=True)) + toll)

    baseline_ms = predict_ms((0,) * groups)
    if "budget_share" in limits:
        limits["budget_ms"] = limits.pop("budget_share") * baseline_ms
    masks = [[True] * actions for _ in range(groups)]
    if actions > 1:
        masks[0][1] = False
    return Problem(
        network_features=rng.uniform(-1, 1, (groups, 3)),
        masks=tuple(tuple(mask) for mask in masks),
        predict_ms=predict_ms,
        baseline_ms=baseline_ms,
        damage=damage,
        menu_features=menu_features(RULES) if actions == len(menu(RULES)) else (),
        **limits,
    )


def scorer(known: Problem, *, seed: int = 0) -> Evaluate:
    """The truth behind a problem: trust differs from group to group and neighbours interact."""
    rng = np.random.default_rng([seed, 7])
    trust = rng.uniform(0.05, 1.2, known.group_count)
    pairs = rng.uniform(0, 1, known.group_count - 1)

    def evaluate(choices: Choices, source: str) -> Score:
        single = np.array([known.damage[group, action] for group, action in enumerate(choices)])
        drop = (trust * single).sum() + (pairs * np.sqrt(single[1:] * single[:-1])).sum()
        return Score(metric_drop=float(drop), latency_ms=known.predict_ms(choices))

    return evaluate
