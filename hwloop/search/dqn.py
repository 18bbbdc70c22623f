"""Deep Q-learning, from top to bottom.

The plain algorithm is Mnih et al. 2015 (Nature 518, p. 535, algorithm 1): a replay pool D, a target
network refreshed every C updates, epsilon-greedy actions and y = r + gamma max Q'. Each extension
is a switch of :class:`DQNConfig`: double Q-learning (van Hasselt et al. 2016), dueling heads (Wang
et al. 2016, eq. 9), n-step returns (Sutton & Barto 2018, eq. 7.1), the achieved return as a lower
bound of the target (He et al. 2017), and a prior: Q(s, a) = prior(s, a) + residual(s, a), where the
residual starts at zero, so that the first greedy episode follows the prior exactly.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .replay import Bools, Floats, Replay

ILLEGAL = -1e9


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Switches and numbers of the algorithm; the defaults are the plain one.

    Attributes:
        hidden: widths of the hidden layers.
        learning_rate: of Adam.
        batch_size: transitions per update.
        capacity: transitions that the replay pool holds.
        gamma: discount per step, in (0, 1].
        target_every: C, updates between refreshes of the target network.
        double: choose the next action with the online network, value it with the target network.
        dueling: separate heads for the state's value and the actions' advantages.
        n_step: rewards summed before bootstrapping; None = to the end of the episode.
        lower_bound: never let a target fall below the return that was achieved. Only sound where
            transitions are deterministic.
        prior: a prior is given with every observation; the network starts as its zero residual.
        gradient_clip: largest norm of the gradient.
    """

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    batch_size: int = 64
    capacity: int = 50_000
    gamma: float = 0.99
    target_every: int = 100
    double: bool = False
    dueling: bool = False
    n_step: int | None = 1
    lower_bound: bool = False
    prior: bool = False
    gradient_clip: float = 10.0


class QNetwork(nn.Module):
    """Observation (B, S) -> values (B, A)."""

    def __init__(self, observation_size: int, action_count: int, config: DQNConfig) -> None:
        super().__init__()
        sizes = (observation_size, *config.hidden)
        self._layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        self.hidden = nn.ModuleList(self._layers)
        self.advantage = nn.Linear(sizes[-1], action_count)
        self.value = nn.Linear(sizes[-1], 1) if config.dueling else None
        if config.prior:
            for head in (self.advantage, self.value):
                if head is not None:
                    nn.init.zeros_(head.weight)
                    nn.init.zeros_(head.bias)

    def forward(self, observation: Tensor) -> Tensor:
        # Layers that are called cost more than they compute: a search learns thousands of times.
        features = observation
        for layer in self._layers:
            features = torch.relu(nn.functional.linear(features, layer.weight, layer.bias))
        advantage = nn.functional.linear(features, self.advantage.weight, self.advantage.bias)
        if self.value is None:
            return advantage
        value = nn.functional.linear(features, self.value.weight, self.value.bias)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


def _clip(gradients: Sequence[Tensor | None], largest: float) -> None:
    """``clip_grad_norm_``, without what that looks after elsewhere (devices, types, DTensor)."""
    found = [gradient for gradient in gradients if gradient is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found)))
    torch._foreach_mul_(found, torch.clamp(largest / (norm + 1e-6), max=1.0))


@dataclass(kw_only=True)
class _Step:
    """One step of the running episode, until its n-step return is known."""

    state: Floats
    action: int
    reward: float
    next_state: Floats
    next_mask: Bools | None
    prior: float
    next_prior: Floats | None


class DQN:
    """An agent that acts, remembers and learns; deterministic under its seed.

    Args:
        observation_size: S, length of an observation.
        action_count: A.
        config: the algorithm's switches.
        seed: of the initial weights, the exploration and the replay; no global state is used.
    """

    def __init__(self, observation_size: int, action_count: int, config: DQNConfig, seed: int):
        self.config = config
        self.action_count = action_count
        self.updates = 0
        self._rng = np.random.default_rng([seed, 1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.online = QNetwork(observation_size, action_count, config)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.replay = Replay(
            config.capacity, observation_size, action_count=action_count, seed=seed
        )
        self._weights = list(self.online.parameters())
        self._optimizer = torch.optim.Adam(self._weights, lr=config.learning_rate, fused=True)
        self._huber = nn.SmoothL1Loss()
        self._pending: list[_Step] = []

    # -------------------------------------------------------------------------------- acting

    def q_values(
        self, observation: NDArray[Any], prior: NDArray[Any] | None = None
    ) -> NDArray[np.float32]:
        """(A,) values of the actions: the network's output, plus the prior where given."""
        with torch.inference_mode():
            row = torch.from_numpy(np.asarray(observation, np.float32)[None])
            values: NDArray[np.float32] = self.online(row)[0].numpy()
        return values if prior is None else values + np.asarray(prior, np.float32)

    def act(
        self,
        observation: NDArray[Any],
        mask: NDArray[Any] | None = None,
        prior: NDArray[Any] | None = None,
        epsilon: float = 0.0,
    ) -> int:
        """A legal action: random with probability epsilon, else the one of the highest value.

        Args:
            observation: (S,).
            mask: (A,) True where an action is legal, at least one; None = all are.
            prior: (A,) in units of reward.
            epsilon: probability in [0, 1] of a random legal action.
        """
        if epsilon > 0 and self._rng.random() < epsilon:
            legal = np.arange(self.action_count) if mask is None else np.flatnonzero(mask)
            return int(self._rng.choice(legal))
        values = self.q_values(observation, prior)
        if mask is not None:
            values = np.where(mask, values, -np.inf)
        return int(values.argmax())

    # ----------------------------------------------------------------------------- remembering

    def remember(
        self,
        observation: NDArray[Any],
        action: int,
        reward: float,
        next_observation: NDArray[Any],
        *,
        terminated: bool,
        truncated: bool = False,
        next_mask: NDArray[Any] | None = None,
        prior: float = 0.0,
        next_prior: NDArray[Any] | None = None,
    ) -> None:
        """Add one step of an episode, in order; it reaches the pool when its return is known.

        Args:
            observation, next_observation: (S,).
            action: the action that was executed.
            reward: of this step.
            terminated: the episode ended here, nothing follows.
            truncated: the episode was cut off here; the next state has a value still.
            next_mask: (A,) actions that are legal in the next state; None = all.
            prior: prior value of ``action``.
            next_prior: (A,) prior values in the next state; None = 0.
        """
        self._pending.append(
            _Step(
                state=observation,
                action=action,
                reward=reward,
                next_state=next_observation,
                next_mask=next_mask,
                prior=prior,
                next_prior=next_prior,
            )
        )
        if terminated or truncated:
            self._flush(terminated)
        elif not self.config.lower_bound and len(self._pending) == self.config.n_step:
            self._store(0, len(self._pending), terminated=False)
            del self._pending[0]

    def _flush(self, terminated: bool) -> None:
        """Store all steps of an episode that has ended, the last first: returns add up."""
        achieved = 0.0
        length = len(self._pending)
        for start in reversed(range(length)):
            achieved = self._pending[start].reward + self.config.gamma * achieved
            end = length if self.config.n_step is None else min(start + self.config.n_step, length)
            bound = achieved if terminated and self.config.lower_bound else -np.inf
            self._store(start, end, terminated=terminated and end == length, bound=bound)
        self._pending.clear()

    def _store(self, start: int, end: int, *, terminated: bool, bound: float = -np.inf) -> None:
        steps = self._pending[start:end]
        first, last = steps[0], steps[-1]
        gamma = self.config.gamma
        self.replay.add(
            state=first.state,
            action=first.action,
            reward=sum(gamma**i * step.reward for i, step in enumerate(steps)),
            next_state=last.next_state,
            next_mask=True if last.next_mask is None else last.next_mask,
            discount=0.0 if terminated else gamma ** len(steps),
            bound=bound,
            prior=first.prior,
            next_prior=0.0 if last.next_prior is None else last.next_prior,
        )

    # -------------------------------------------------------------------------------- learning

    def learn(self) -> float:
        """One update on a batch from the pool; returns the Huber loss.

        Raises:
            ValueError: the pool is empty.
        """
        batch = self.replay.sample(self.config.batch_size)
        state, next_state = torch.from_numpy(batch.state), torch.from_numpy(batch.next_state)
        next_mask = torch.from_numpy(batch.next_mask)
        next_prior = torch.from_numpy(batch.next_prior)
        with torch.no_grad():
            next_values = (self.target(next_state) + next_prior).masked_fill(~next_mask, ILLEGAL)
            if self.config.double:
                chooser = (self.online(next_state) + next_prior).masked_fill(~next_mask, ILLEGAL)
                best = next_values.gather(1, chooser.argmax(1, keepdim=True))[:, 0]
            else:
                best = next_values.max(1).values
            target = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * best
            target = torch.maximum(target, torch.from_numpy(batch.bound))
            target -= torch.from_numpy(batch.prior)
        chosen = self.online(state).gather(1, torch.from_numpy(batch.action)[:, None])[:, 0]
        loss: Tensor = self._huber(chosen, target)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _clip([weight.grad for weight in self._weights], self.config.gradient_clip)
        self._optimizer.step()
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.target.load_state_dict(self.online.state_dict())
        return float(loss.detach())
