"""The DQN of the textbook as a search method: no seeds, no prior, no screening."""

from __future__ import annotations

from hwloop.search.dqn import DQN, DQNConfig
from hwloop.search.env import NetCompressEnv
from hwloop.search.ledger import Ledger
from hwloop.search.problem import BudgetSpent, Choices, Evaluate, Problem, Score
from hwloop.search.reward import Reward

PLAIN = DQNConfig(gamma=1.0)
"""Episodes are short and of fixed length: nothing is discounted."""

LAST_EPSILON = 0.05


def search_vanilla(
    problem: Problem, evaluate: Evaluate, *, evaluations: int, seed: int, reward: Reward
) -> None:
    """Search with the DQN of Mnih et al. 2015; see :class:`hwloop.search.problem.Method`.

    Epsilon falls linearly from 1 to 0.05 over the first half of the evaluations; one update per
    step.
    """
    ledger = Ledger(problem, evaluate, evaluations=evaluations, reward=reward)

    def scored(choices: Choices, source: str) -> Score:
        ledger.evaluate(choices, source)
        return ledger.scores[choices]

    env = NetCompressEnv(problem, scored, reward=reward, source="dqn-vanilla")
    agent = DQN(env.observation_size, problem.action_count, PLAIN, seed)
    try:
        while True:
            _episode(env, agent, epsilon=max(LAST_EPSILON, 1 - 1.9 * ledger.fresh_progress))
    except BudgetSpent:
        return


def _episode(env: NetCompressEnv, agent: DQN, *, epsilon: float) -> None:
    observation, info = env.reset()
    done = False
    while not done:
        action = agent.act(observation, info["action_mask"], epsilon=epsilon)
        following, value, done, _, info = env.step(action)
        agent.remember(
            observation,
            info["executed"],
            value,
            following,
            terminated=done,
            next_mask=info["action_mask"],
        )
        observation = following
        if len(agent.replay) >= agent.config.batch_size:
            agent.learn()
