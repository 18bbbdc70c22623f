"""What a search knows and what it may ask: numbers only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwloop.search.reward import Reward

Array = NDArray[np.float64]
Choices = tuple[int, ...]
"""One action index per group, in forward order."""

PredictMs = Callable[[Sequence[int]], float]
"""End-to-end latency in ms for one action index per group."""

PREDICTIONS_KEPT = 1 << 16


class BudgetSpent(Exception):
    """No further candidate may be evaluated; raised by the caller's ``evaluate``."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What evaluating a candidate gave.

    Attributes:
        metric_drop: loss of the metric in its own unit, positive = worse; None when it failed.
        latency_ms: end-to-end latency; None when it failed.
        failed: why there are no numbers, or None.
    """

    metric_drop: float | None
    latency_ms: float | None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """A problem's limits with the budget of one episode; see :class:`Problem`."""

    baseline_ms: float
    budget_ms: float | None
    max_drop: float | None
    drop_scale: float


Evaluate = Callable[[Choices, str], Score]
"""(choices, label of their source) -> score. Costs seconds; the caller memoizes."""


class Method(Protocol):
    """A way to search.

    A method asks ``evaluate`` for candidates until that raises :class:`BudgetSpent`, until it has
    asked for ``evaluations`` distinct ones, or until it finds no new one; then it returns. For the
    same problem, scores and seed it asks for the same candidates in the same order, so that a
    killed run is resumed by calling the method again with the scores that are known.
    """

    def __call__(
        self, problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
    ) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """G groups with A actions each, and what is known before anything is evaluated.

    Attributes:
        network_features: (G, F) static features of the groups in [-1, 1].
        masks: (G, A) True where an action is legal; action 0 (keep) always is.
        predict_ms: end-to-end latency in ms for one action index per group; cheap (10-30 us).
        baseline_ms: latency of the dense network, above 0.
        damage: (G, A) estimated drop of the metric, in its unit, of that single action alone.
        budget_ms: the latency not to exceed, or None.
        max_drop: the largest loss of the metric, in its unit, or None.
        drop_scale: a drop that counts as one unit of reward.
        allowance: plans may sum up to ``allowance * max_drop`` of damage, because recovery
            training gives part of it back.
        menu_features: (A, K) what tells the actions apart, in [-1, 1], or nothing.
        known: candidates whose scores a method begins with; they count as asked for.

    Raises:
        ValueError: shapes disagree, a feature leaves [-1, 1] or keep is illegal somewhere.
    """

    network_features: Array
    masks: tuple[tuple[bool, ...], ...]
    predict_ms: PredictMs
    baseline_ms: float
    damage: Array
    budget_ms: float | None = None
    max_drop: float | None = None
    drop_scale: float = 0.05
    allowance: float = 2.0
    menu_features: tuple[tuple[float, ...], ...] = ()
    known: Mapping[Choices, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.group_count, self.action_count)
        if self.damage.shape != shape or any(len(mask) != shape[1] for mask in self.masks):
            raise ValueError(f"masks are {shape}, damage is {self.damage.shape}")
        if self.network_features.ndim != 2 or len(self.network_features) != shape[0]:
            raise ValueError(f"network_features need {shape[0]} rows")
        if not (np.abs(self.network_features) <= 1).all():
            raise ValueError("network_features must lie in [-1, 1]")
        if not all(mask[0] for mask in self.masks):
            raise ValueError("action 0 (keep) must be legal for every group")
        if not np.isfinite(self.damage[self.legal]).all() or not self.baseline_ms > 0:
            raise ValueError("damage of legal actions and baseline_ms must be finite, positive")

    @property
    def group_count(self) -> int:
        return len(self.masks)

    @property
    def action_count(self) -> int:
        return len(self.masks[0])

    @cached_property
    def legal(self) -> NDArray[np.bool_]:
        """(G, A) the masks as an array."""
        return np.asarray(self.masks, dtype=bool)

    @cached_property
    def menus(self) -> tuple[tuple[int, ...], ...]:
        """The legal action indices of each group."""
        return tuple(tuple(i for i, ok in enumerate(mask) if ok) for mask in self.masks)

    @cached_property
    def latency_ms(self) -> Callable[[Choices], float]:
        """``predict_ms`` that remembers its latest answers."""
        return functools.lru_cache(maxsize=PREDICTIONS_KEPT)(self.predict_ms)

    @property
    def dense(self) -> Choices:
        return (0,) * self.group_count

    def limits(self, budget_ms: float | None) -> EpisodeLimits:
        """The limits as they are in an episode with another budget."""
        return EpisodeLimits(
            baseline_ms=self.baseline_ms,
            budget_ms=budget_ms,
            max_drop=self.max_drop,
            drop_scale=self.drop_scale,
        )

    @cached_property
    def saved_ms(self) -> Array:
        """(G, A) predicted saving of each single action, all other groups dense; illegal: 0."""
        saved = np.zeros((self.group_count, self.action_count))
        dense_ms = self.latency_ms(self.dense)
        for group, menu in enumerate(self.menus):
            for action in menu:
                choices = replaced(self.dense, group, action)
                saved[group, action] = dense_ms - self.latency_ms(choices)
        return saved

    def fastest(self, group: int) -> int:
        """The legal action of one group that is fastest while all others are dense."""
        return max(self.menus[group], key=lambda action: (self.saved_ms[group, action], -action))

    @cached_property
    def fastest_choices(self) -> Choices:
        """The fastest candidate found by coordinate descent.

        It starts from the fastest single actions and from every uniform choice: an action that
        needs its neighbours (INT8, which pays for each change of precision) may be the fastest
        for all groups together without being it for any group alone.
        """
        starts = [tuple(self.fastest(group) for group in range(self.group_count))]
        starts += [self.uniform(action) for action in range(self.action_count)]
        return min((self._descend(start) for start in starts), key=self.latency_ms)

    @cached_property
    def min_ms(self) -> float:
        """Predicted latency of :attr:`fastest_choices`: no budget below it can be met."""
        return self.latency_ms(self.fastest_choices)

    def uniform(self, action: int) -> Choices:
        """The same action for all groups; where it is illegal, the one most like it.

        Of a kind of its own nothing is like it but to leave a group alone.
        """
        features = self.action_features
        wanted, whole = features[action], features[0][0]

        def unlike(other: int) -> float:
            return sum(abs(a - b) for a, b in zip(features[other], wanted, strict=True))

        def alike(menu: tuple[int, ...]) -> list[int]:
            same = [other for other in menu if features[other][2:] == wanted[2:]]
            return same or [other for other in menu if features[other][0] == whole]

        return tuple(
            action if action in menu else min(alike(menu), key=unlike) for menu in self.menus
        )

    def summed_damage(self, choices: Choices) -> float:
        """Sum of the groups' single-action damages, in units of the metric."""
        return float(sum(self.damage[group, action] for group, action in enumerate(choices)))

    @cached_property
    def action_features(self) -> tuple[tuple[float, ...], ...]:
        """(A, K) features of each action in [-1, 1].

        Where ``menu_features`` are not given, the menu is taken to be ordered by width.
        """
        if self.menu_features:
            return self.menu_features
        last = max(self.action_count - 1, 1)
        return tuple((1 - 2 * index / last, 0.0) for index in range(self.action_count))

    def _descend(self, choices: Choices) -> Choices:
        current = self.latency_ms(choices)
        improved = True
        while improved:
            improved = False
            for group, menu in enumerate(self.menus):
                for action in menu:
                    trial = replaced(choices, group, action)
                    trial_ms = self.latency_ms(trial)
                    if trial_ms < current:
                        choices, current, improved = trial, trial_ms, True
        return choices


def replaced(choices: Choices, group: int, action: int) -> Choices:
    """The same choices with another action for one group."""
    return (*choices[:group], action, *choices[group + 1 :])
