"""The knapsack solution: which actions buy a latency for the least summed damage.

Damage is additive by construction, latency nearly so: a change of precision between neighbours
costs a row of its own. So the knapsack is relaxed with a Lagrange multiplier (Everett 1963), and
each relaxed problem, min damage + price * latency, is solved by coordinate descent on the full
prediction, which sees the neighbours. Every plan met on the way is a point of the front.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TypeAlias

import numpy as np

from hwloop.search.problem import Array, Choices, Problem, replaced

PRICES = 20
MAX_SWEEPS = 8
POLISHED = 3
POLISH_ROUNDS = 20
EXCHANGES_TRIED = 64

Point: TypeAlias = tuple[float, float, Choices]
"""A plan's latency in ms, its damage in metric units, and the plan."""


class Planner:
    """Plans for one problem and one table of damages.

    Args:
        problem: groups, masks and the latency prediction.
        damage: (G, A) damages in metric units to plan with; the problem's own by default.
    """

    def __init__(self, problem: Problem, damage: Array | None = None) -> None:
        self.problem = problem
        self.damage = problem.damage if damage is None else damage
        self._rows = [[float(value) for value in row] for row in self.damage]

    # ------------------------------------------------------------------------------ plans

    def front(self) -> list[Choices]:
        """Plans that no other known plan beats in latency and damage, fastest first."""
        return [choices for _, _, choices in self._front]

    def solve(self, budget_ms: float) -> Choices:
        """The least summed damage found within a latency budget.

        When nothing fits, the fastest plan known is returned.
        """
        fitting = [point for point in self._front if point[0] <= budget_ms]
        if not fitting:
            return self._front[0][2]
        plans = [self._polish(point[2], budget_ms=budget_ms) for point in fitting[-POLISHED:]]
        return min(plans, key=lambda plan: (self.damage_of(plan), self.problem.latency_ms(plan)))

    def fastest_within(self, drop: float) -> Choices:
        """The least latency found with a summed damage of at most ``drop`` (metric units).

        When nothing fits, the least damaging plan known is returned.
        """
        fitting = [point for point in self._front if point[1] <= drop]
        if not fitting:
            return self._front[-1][2]
        plans = [self._polish(point[2], drop=drop) for point in fitting[:POLISHED]]
        return min(plans, key=lambda plan: (self.problem.latency_ms(plan), self.damage_of(plan)))

    def complete(self, prefix: Choices, lam: float) -> Choices:
        """A full plan that keeps ``prefix`` and pays ``lam`` metric units per ms for the rest."""
        rest = range(len(prefix), self.problem.group_count)
        start = prefix + tuple(self._cheapest(group, lam) for group in rest)
        return self._descend(start, lam, first=len(prefix))

    def damage_of(self, choices: Choices) -> float:
        """Summed damage of a plan, metric units, under this planner's table."""
        return sum(row[action] for row, action in zip(self._rows, choices, strict=True))

    # --------------------------------------------------- additive tables for a cost-to-go

    @cached_property
    def extra_ms(self) -> Array:
        """(G, A) additive latency of an action above the group's fastest choice; illegal: inf.

        The mean of the changes seen around the dense network and around the fastest candidate
        (they differ by changes of precision), scaled so that the sum of all groups spans the
        predicted range from fastest to dense.
        """
        problem = self.problem
        fastest = problem.fastest_choices
        extra = np.full(problem.damage.shape, np.inf)
        for group, menu in enumerate(problem.menus):
            saved = problem.saved_ms[group]
            for action in menu:
                around_fast = problem.latency_ms(replaced(fastest, group, action))
                around_dense = saved[fastest[group]] - saved[action]
                extra[group, action] = (around_fast - problem.min_ms + around_dense) / 2
        total = float(extra[:, 0].sum())
        span = problem.latency_ms(problem.dense) - problem.min_ms
        return extra * (span / total) if total > 0 and span > 0 else extra

    @cached_property
    def prices(self) -> Array:
        """(P,) grid of multipliers in metric units per ms, from "free" to "at any price"."""
        extra, damage, legal = self.extra_ms, self.damage, self.problem.legal
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (damage - damage[:, :1]) / (extra[:, :1] - extra)
        useful = ratio[legal & np.isfinite(ratio) & (ratio > 0)]
        if not useful.size:
            return np.array([1.0])
        return np.geomspace(useful.min() / 2, useful.max() * 2, PRICES)

    @cached_property
    def to_go(self) -> Array:
        """(G + 1, P) least sum of damage + price * extra_ms over the groups from g on."""
        price = self.prices[:, None, None]
        cost = np.where(self.problem.legal, self.damage, np.inf) + price * self.extra_ms
        suffix = np.cumsum(cost.min(axis=2)[:, ::-1], axis=1)[:, ::-1].T
        return np.vstack([suffix, np.zeros(len(self.prices))])

    def damage_to_go(self, group: int, slack_ms: Array) -> Array:
        """Lower bound on the damage of the groups from ``group`` on (Lagrangian dual).

        Args:
            group: first undecided group, 0 to G.
            slack_ms: (A,) latency left above the fastest completion.
        """
        bound: Array = (self.to_go[group] - self.prices * slack_ms[:, None]).max(axis=1)
        return bound

    def extra_to_go(self, group: int, damage_left: Array) -> Array:
        """Lower bound on the ms above the fastest completion when (A,) ``damage_left`` remains."""
        bound: Array = ((self.to_go[group] - damage_left[:, None]) / self.prices).max(axis=1)
        return np.asarray(np.maximum(bound, 0.0))

    # --------------------------------------------------------------------------- internals

    @cached_property
    def _front(self) -> list[Point]:
        met: dict[Choices, tuple[float, float]] = {}
        # Up from dense and down from the fastest: where neighbours must change together (a run of
        # INT8 groups), the two directions stop in different places.
        for start, prices in (
            (self.problem.dense, self.prices),
            (self.problem.fastest_choices, self.prices[::-1]),
        ):
            plan = start
            met[plan] = (self.problem.latency_ms(plan), self.damage_of(plan))
            for price in prices:
                plan = self._descend(plan, float(price), met=met)
        return _undominated([(*figures, plan) for plan, figures in met.items()])

    def _cheapest(self, group: int, price: float) -> int:
        extra, row = self.extra_ms[group], self._rows[group]
        return min(self.problem.menus[group], key=lambda a: row[a] + price * float(extra[a]))

    def _descend(
        self,
        plan: Choices,
        price: float,
        *,
        first: int = 0,
        met: dict[Choices, tuple[float, float]] | None = None,
    ) -> Choices:
        """Change one group at a time for the better until none helps; groups before stay."""
        latency_of = self.problem.latency_ms
        damage = self.damage_of(plan)
        current = damage + price * latency_of(plan)
        for _ in range(MAX_SWEEPS):
            improved = False
            for group in range(first, len(plan)):
                row = self._rows[group]
                for action in self.problem.menus[group]:
                    if action == plan[group]:
                        continue
                    trial = replaced(plan, group, action)
                    trial_ms = latency_of(trial)
                    trial_damage = damage + row[action] - row[plan[group]]
                    if met is not None:
                        met[trial] = (trial_ms, trial_damage)
                    if trial_damage + price * trial_ms < current - 1e-12:
                        plan, damage = trial, trial_damage
                        current, improved = damage + price * trial_ms, True
            if not improved:
                break
        return plan

    def _polish(
        self, plan: Choices, *, budget_ms: float = math.inf, drop: float = math.inf
    ) -> Choices:
        """Use up the slack that the multiplier leaves: single changes, then exchanges of two.

        One of the two limits is given; the other quantity is made as small as possible.
        """
        by_latency = budget_ms == math.inf

        def value(choices: Choices) -> tuple[float, float]:
            latency_ms, damage = self.problem.latency_ms(choices), self.damage_of(choices)
            if latency_ms > budget_ms or damage > drop:
                return math.inf, math.inf
            return (latency_ms, damage) if by_latency else (damage, latency_ms)

        for _ in range(POLISH_ROUNDS):
            singles = [replaced(plan, *move) for move in self._changes(plan)]
            trials = [plan, *singles, *self._exchanges(plan, by_latency)]
            found = min(trials, key=value)
            if found == plan:
                break
            plan = found
        return plan

    def _changes(self, plan: Choices) -> list[tuple[int, int]]:
        """Every (group, action) that a plan leaves out."""
        menus = enumerate(self.problem.menus)
        return [(group, a) for group, menu in menus for a in menu if a != plan[group]]

    def _exchanges(self, plan: Choices, by_latency: bool) -> list[Choices]:
        """Pairs of changes that gain in what is minimised, those that cost least elsewhere."""
        moves = self._changes(plan)
        if len(moves) < 2:
            return []
        ms = np.array([self.extra_ms[g, a] - self.extra_ms[g, plan[g]] for g, a in moves])
        damage = np.array([self._rows[g][a] - self._rows[g][plan[g]] for g, a in moves])
        gain, cost = (ms, damage) if by_latency else (damage, ms)
        pairs = _useful_pairs(np.array([g for g, _ in moves]), gain, cost)
        return [replaced(replaced(plan, *moves[i]), *moves[j]) for i, j in pairs]


def _undominated(points: list[Point]) -> list[Point]:
    """Those that no other beats in latency and damage, fastest first."""
    front: list[Point] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _useful_pairs(groups: Array, gain: Array, cost: Array) -> list[tuple[int, int]]:
    """Pairs of moves in two groups that gain together (below 0), the cheapest first.

    Args:
        groups, gain, cost: (M,) of each move: its group, and by how much it changes what is
            minimised and what is limited.
    """
    first, second = np.triu_indices(len(groups), 1)
    pair_gain, pair_cost = gain[first] + gain[second], cost[first] + cost[second]
    useful = (groups[first] != groups[second]) & (pair_gain < 0)
    order = np.argsort(np.where(useful, pair_cost, np.inf), kind="stable")[:EXCHANGES_TRIED]
    return [(int(first[i]), int(second[i])) for i in order if useful[i]]
