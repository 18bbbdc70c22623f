"""The algorithm on tasks whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hwloop.search.dqn import DQN, DQNConfig

PLAIN = DQNConfig(hidden=(32,), batch_size=32, learning_rate=3e-3, target_every=20)
SWITCHES: tuple[dict[str, Any], ...] = (
    {},
    {"double": True},
    {"dueling": True},
    {"double": True, "dueling": True, "n_step": 3, "lower_bound": True},
    {"n_step": None},
)


def identity_agent(config: DQNConfig, *, seed: int = 0, episodes: int = 300) -> DQN:
    """Trained on: say which entry of the one-hot observation is set, four times per episode."""
    agent = DQN(4, 4, config, seed)
    rng = np.random.default_rng(seed)
    for episode in range(episodes):
        shown = rng.integers(4, size=5)
        states = np.eye(4, dtype=np.float32)[shown]
        for step in range(4):
            action = agent.act(states[step], epsilon=max(0.1, 1 - episode / 150))
            agent.remember(
                states[step],
                action,
                float(action == shown[step]),
                states[step + 1],
                terminated=step == 3,
            )
        if episode > 10:
            agent.learn()
            agent.learn()
    return agent


@pytest.mark.parametrize("switches", SWITCHES)
def test_it_learns_to_repeat_the_observation(switches: dict[str, Any]) -> None:
    agent = identity_agent(replace(PLAIN, gamma=0.5, **switches))
    assert [agent.act(state) for state in np.eye(4, dtype=np.float32)] == [0, 1, 2, 3]


def test_equal_seeds_give_equal_agents_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (identity_agent(PLAIN, seed=seed, episodes=40) for seed in (3, 3, 4))
    state = np.eye(4, dtype=np.float32)[0]
    assert one.q_values(state).tolist() == same.q_values(state).tolist()
    assert one.q_values(state).tolist() != other.q_values(state).tolist()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_masked_action_is_never_chosen() -> None:
    agent = DQN(4, 6, PLAIN, 0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(6) < 0.4
        mask[rng.integers(6)] = True
        assert mask[agent.act(rng.normal(size=4), mask, epsilon=float(rng.random()))]


def test_masked_next_actions_do_not_enter_the_target() -> None:
    """All next actions of value 10 are masked: the learned value is the legal one's, 1."""
    agent = DQN(2, 2, replace(PLAIN, gamma=1.0, prior=True, target_every=1000), 0)
    state, following = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    agent.remember(
        state,
        0,
        0.0,
        following,
        terminated=False,
        next_mask=np.array([True, False]),
        next_prior=np.array([1.0, 10.0]),
    )
    for _ in range(200):
        agent.learn()
    assert agent.q_values(state)[0] == pytest.approx(1.0, abs=0.1)


def test_the_target_network_is_refreshed_every_c_updates() -> None:
    agent = identity_agent(replace(PLAIN, target_every=1000), episodes=20)
    agent.config = replace(agent.config, target_every=5)
    agent.updates = 0
    frozen = [weight.clone() for weight in agent.target.parameters()]
    for _ in range(4):
        agent.learn()
        pairs = zip(agent.target.parameters(), frozen, strict=True)
        assert all(torch.equal(now, then) for now, then in pairs)
    agent.learn()
    pairs = zip(agent.target.parameters(), agent.online.parameters(), strict=True)
    assert all(torch.equal(now, online) for now, online in pairs)


@pytest.mark.parametrize("switches", SWITCHES[1:])
def test_each_switch_changes_what_is_learned(switches: dict[str, Any]) -> None:
    state = np.eye(4, dtype=np.float32)[0]
    plain = identity_agent(PLAIN, episodes=60).q_values(state)
    other = identity_agent(replace(PLAIN, **switches), episodes=60).q_values(state)
    assert not np.allclose(plain, other)


def test_with_a_prior_the_untrained_agent_follows_it() -> None:
    agent = DQN(3, 4, replace(PLAIN, prior=True, dueling=True), 0)
    prior = np.array([-1.0, -0.2, -3.0, -0.5])
    assert agent.q_values(np.ones(3), prior).tolist() == pytest.approx(prior.tolist())
    assert agent.act(np.ones(3), None, prior) == 1


@pytest.mark.parametrize(
    ("n_step", "rewards", "discounts"),
    [
        (1, [1, 2, 4], [0.5, 0.5, 0]),
        (2, [2, 4, 4], [0.25, 0, 0]),
        (None, [3, 4, 4], [0, 0, 0]),
    ],
)
def test_returns_are_summed_over_n_steps(
    n_step: int | None, rewards: list[float], discounts: list[float]
) -> None:
    agent = DQN(1, 2, replace(PLAIN, gamma=0.5, n_step=n_step), 0)
    for step, reward in enumerate((1.0, 2.0, 4.0)):
        agent.remember(np.array([step]), 0, reward, np.array([step + 1]), terminated=step == 2)
    assert len(agent.replay) == 3
    batch = agent.replay.sample(200)
    found = {
        (float(s), float(r), float(d))
        for s, r, d in zip(batch.state[:, 0], batch.reward, batch.discount, strict=True)
    }
    assert found == set(zip([0.0, 1.0, 2.0], rewards, discounts, strict=True))


def test_a_truncated_episode_still_bootstraps() -> None:
    agent = DQN(1, 2, replace(PLAIN, gamma=0.5, n_step=2, lower_bound=True), 0)
    agent.remember(np.zeros(1), 0, 1.0, np.ones(1), terminated=False, truncated=True)
    batch = agent.replay.sample(1)
    assert batch.discount[0] == 0.5
    assert batch.bound[0] == -np.inf


def test_the_pool_overwrites_the_oldest() -> None:
    agent = DQN(1, 2, replace(PLAIN, capacity=3), 0)
    for step in range(5):
        agent.remember(np.array([step]), 0, 0.0, np.zeros(1), terminated=True)
    assert len(agent.replay) == 3
    assert set(agent.replay.sample(100).state[:, 0].tolist()) == {2.0, 3.0, 4.0}
