"""What the planner expects of each action, in units of reward: the anchor of the Q-values."""

from __future__ import annotations

import math

import numpy as np

from hwloop.search.planner import Planner
from hwloop.search.problem import Array, Problem
from hwloop.search.reward import BEST_REWARD, FAILED_REWARD, Reward


class Prior:
    """Negative cost-to-go of the relaxed knapsack, as the reward it would earn.

    Taking the greedy action of it in every step gives the planner's solution, up to the gap of the
    Lagrangian bound. Bounds are optimistic: an action's value is never underestimated by the
    relaxation itself.

    Args:
        planner: holds the damages to plan with.
        reward: what a drop and a latency are worth.
        limit: summed damage that fills ``max_drop``: the allowance times it, or exactly it when
            the planner's damages predict drops.
    """

    def __init__(self, planner: Planner, reward: Reward, limit: float | None = None) -> None:
        self.problem: Problem = planner.problem
        self.planner = planner
        self.reward = reward
        drop = self.problem.max_drop
        self.limit = limit if limit is not None or drop is None else self.problem.allowance * drop
        price = reward.lam / self.problem.baseline_ms
        legal = self.problem.legal  # what is not takes for ever, and for ever times no price is NaN
        cost = np.where(
            legal, planner.damage + price * np.where(legal, planner.extra_ms, 0), np.inf
        )
        self._linear_to_go = [*np.cumsum(cost.min(axis=1)[::-1])[::-1].tolist(), 0.0]

    def values(
        self, group: int, damage: Array, fast_ms: Array, *, budget_ms: float | None
    ) -> list[float]:
        """Expected reward of each action of a group.

        Args:
            group: the group that is decided, 0 to G - 1.
            damage: (A,) summed damage of the groups before and of the action.
            fast_ms: (A,) predicted latency with the action and the fastest choice for all groups
                after; finite.
            budget_ms: the budget of this episode, or None.

        Returns:
            A rewards in [-3, 2].
        """
        base_ms = self.problem.baseline_ms
        after = group + 1
        if self.reward.kind == "linear":
            rest = self._linear_to_go[after]
            drops = damage + rest
            latencies = fast_ms
        elif self.limit is not None and self.problem.max_drop is not None:
            left = self.limit - damage
            latencies = fast_ms + self.planner.extra_to_go(after, np.maximum(left, 0.0))
            latencies = np.minimum(latencies, max(base_ms, float(fast_ms.max())))
            scale = self.problem.max_drop / self.limit if self.limit > 0 else 1.0
            drops = self.problem.max_drop - np.minimum(left, 0.0) * scale
        else:
            budget = base_ms if budget_ms is None else budget_ms
            drops = damage + self.planner.damage_to_go(after, np.maximum(budget - fast_ms, 0.0))
            latencies = np.maximum(fast_ms, budget)
        limits = self.problem.limits(budget_ms)
        pairs = zip(drops.tolist(), latencies.tolist(), strict=True)
        return [_bounded(self.reward.unclipped(*pair, limits=limits)) for pair in pairs]


def _bounded(value: float) -> float:
    """Into [-3, 2] like a reward, but bad values approach -3 without ever losing their order."""
    return min(value, BEST_REWARD) if value > -2 else FAILED_REWARD + math.exp(value + 2)
