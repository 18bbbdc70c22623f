"""The replay pool: a ring of transitions in numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B transitions, one per row.

    Attributes:
        state, next_state: (B, S) observations.
        action: (B,) the action that was executed.
        reward: (B,) sum of the discounted rewards between the two states.
        discount: (B,) factor of the next state's value; 0 where the episode ended.
        next_mask: (B, A) which actions are legal in the next state.
        bound: (B,) a known lower bound of the action's value; -inf where there is none.
        prior, next_prior: (B,) and (B, A) prior values of the action and of the next actions.
    """

    state: Floats
    action: Ints
    reward: Floats
    next_state: Floats
    next_mask: Bools
    discount: Floats
    bound: Floats
    prior: Floats
    next_prior: Floats


class Replay:
    """Keeps the latest ``capacity`` transitions; the oldest is overwritten first.

    Args:
        capacity: rows, at least 1.
        observation_size: S.
        action_count: A.
        seed: of the sampling.
    """

    def __init__(self, capacity: int, observation_size: int, *, action_count: int, seed: int):
        self.capacity = capacity
        self.size = 0
        self._next = 0
        self._rng = np.random.default_rng(seed)
        wide = (capacity, observation_size)
        menu = (capacity, action_count)
        self._columns: dict[str, NDArray[Any]] = {
            "state": np.zeros(wide, np.float32),
            "action": np.zeros(capacity, np.int64),
            "reward": np.zeros(capacity, np.float32),
            "next_state": np.zeros(wide, np.float32),
            "next_mask": np.ones(menu, np.bool_),
            "discount": np.zeros(capacity, np.float32),
            "bound": np.full(capacity, -np.inf, np.float32),
            "prior": np.zeros(capacity, np.float32),
            "next_prior": np.zeros(menu, np.float32),
        }

    def __len__(self) -> int:
        return self.size

    def add(self, **transition: Any) -> None:
        """Store one transition: a value for each field of :class:`Batch`, without the B axis."""
        for name, value in transition.items():
            self._columns[name][self._next] = value
        self._next = (self._next + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def clear(self) -> None:
        """Forget all transitions; the random state stays."""
        self.size = self._next = 0

    def sample(self, count: int) -> Batch:
        """``count`` transitions, drawn uniformly with replacement.

        Raises:
            ValueError: the pool is empty.
        """
        rows = self._rng.integers(self.size, size=count)
        return Batch(**{name: column[rows] for name, column in self._columns.items()})
