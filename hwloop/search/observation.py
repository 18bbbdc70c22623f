"""What an agent is shown of a problem while it decides, and what it remembers of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwloop.search.problem import Choices, Problem

Observation = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition:
    """One step of an episode, as an agent remembers it.

    Attributes:
        prior: expected reward of the action; 0 where there is no prior.
        next_mask, next_prior: of the observation that follows; see :class:`NetCompressEnv`.
    """

    observation: Observation
    action: int
    reward: float
    following: Observation
    terminated: bool
    prior: float
    next_mask: NDArray[np.bool_]
    next_prior: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Where an episode stands, before its next group is decided.

    Attributes:
        prefix: the actions so far.
        budget_ms: of the episode, or None.
        dense_ms, fast_ms: predicted with all groups that are left dense, and with the fastest.
        damage: summed so far.
        best: the best prior value, divided by 3.
        menu_ms: predicted for each action, the fastest behind it.
        mask: which of them are legal.
    """

    prefix: Choices
    budget_ms: float | None
    dense_ms: float
    fast_ms: float
    damage: float
    best: float
    menu_ms: Sequence[float]
    mask: Sequence[bool]


class View:
    """Turns a standing into an observation; its entries are those of NetCompressEnv's table.

    Attributes:
        size: entries of an observation.
        damage: (G, A) of each action, as plain lists; 0 where it is illegal.
    """

    def __init__(self, problem: Problem) -> None:
        """Plain lists: numpy costs a microsecond per access, and a step makes a hundred."""
        self.problem = problem
        self.damage: list[list[float]] = np.where(problem.legal, problem.damage, 0.0).tolist()
        self._features = problem.network_features.tolist()
        self._no_action = (0.0,) * len(problem.action_features[0])
        self.size = len(self._features[0]) + len(self._no_action) + 8 + 3 * problem.action_count
        planned = problem.allowance * problem.max_drop if problem.max_drop else 0.0
        self._damage_scale = planned or problem.drop_scale
        self._saving_scale = float(np.abs(problem.saved_ms).max()) or problem.baseline_ms

    def __call__(self, at: Standing) -> Observation:
        problem, group = self.problem, len(at.prefix)
        shown = min(group, problem.group_count - 1)
        base_ms = problem.baseline_ms
        budget_ms = base_ms if at.budget_ms is None else at.budget_ms
        row = list(self._features[shown])
        row += (
            2 * group / problem.group_count - 1,
            at.dense_ms / base_ms - 1,
            at.fast_ms / base_ms - 1,
            at.dense_ms / budget_ms - 1,
            at.fast_ms / budget_ms - 1,
            (budget_ms - at.fast_ms) / base_ms,
            at.damage / self._damage_scale - 1,
            at.best,
            *(problem.action_features[at.prefix[-1]] if at.prefix else self._no_action),
        )
        keep_ms, scale = at.menu_ms[0], self._saving_scale
        row += [(keep_ms - menu_ms) / scale for menu_ms in at.menu_ms]
        row += [damage / self._damage_scale - 1 for damage in self.damage[shown]]
        row += [1.0 if ok else -1.0 for ok in at.mask]
        bounded: Observation = np.minimum(np.maximum(np.array(row, dtype=np.float32), -1.0), 1.0)
        return bounded
