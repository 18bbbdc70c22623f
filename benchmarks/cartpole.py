"""Is the DQN a DQN? CartPole-v1, solved with the package's own agent.

    python benchmarks/cartpole.py [--seed S] [--seeds N]

CartPole-v1 counts as solved at a mean return of 475 over 100 episodes. The episodes that decide are
played greedily after training, on starts that training never saw. Writes results/cartpole.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import torch

from hwloop.search.dqn import DQN, DQNConfig

SOLVED = 475.0
EVALUATION_EPISODES = 100
MAX_STEPS = 100_000
WARMUP_STEPS = 1_000
COLLECT_STEPS = 256
UPDATES = 128
CHECK_EVERY = 2_048
CHECK_EPISODES = 20
EPSILON_STEPS = 8_000
FINAL_EPSILON = 0.04
CONFIG = DQNConfig(
    hidden=(128, 128),
    learning_rate=1e-3,
    batch_size=64,
    capacity=100_000,
    gamma=0.99,
    target_every=50,
    double=True,
    dueling=True,
    n_step=3,
)


def train(seed: int) -> tuple[DQN, int, int]:
    """An agent that held 490 over the check episodes, with the steps and episodes it took."""
    env = gymnasium.make("CartPole-v1")
    agent = DQN(4, 2, CONFIG, seed)
    observation, _ = env.reset(seed=seed)
    episodes = 0
    for step in range(1, MAX_STEPS + 1):
        epsilon = max(FINAL_EPSILON, 1 - step / EPSILON_STEPS)
        action = agent.act(observation, epsilon=epsilon)
        following, reward, terminated, truncated, _ = env.step(action)
        agent.remember(
            observation,
            action,
            float(reward),
            following,
            terminated=terminated,
            truncated=truncated,
        )
        observation = following
        if terminated or truncated:
            episodes += 1
            observation, _ = env.reset()
        if step >= WARMUP_STEPS and step % COLLECT_STEPS == 0:
            for _ in range(UPDATES):
                agent.learn()
        if step >= EPSILON_STEPS and step % CHECK_EVERY == 0:
            check = play(agent, CHECK_EPISODES, first_seed=1_000_000 + seed * 1_000)
            print(f"seed {seed}, step {step}: {statistics.fmean(check):.1f}", file=sys.stderr)
            if statistics.fmean(check) >= SOLVED + 20:
                return agent, step, episodes
    return agent, MAX_STEPS, episodes


def play(agent: DQN, episodes: int, first_seed: int) -> list[float]:
    """Returns of greedy episodes, one per start."""
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=first_seed + episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    return returns


def run(seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    agent, steps, episodes = train(seed)
    train_s = time.perf_counter() - started
    returns = play(agent, EVALUATION_EPISODES, first_seed=2_000_000 + seed * 1_000)
    mean = statistics.fmean(returns)
    return {
        "seed": seed,
        "steps": steps,
        "episodes": episodes,
        "updates": agent.updates,
        "train_s": round(train_s, 1),
        "wall_s": round(time.perf_counter() - started, 1),
        "mean_return": mean,
        "solved": mean >= SOLVED,
        "returns": returns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(seed) for seed in range(options.seed, options.seed + options.seeds)]
    print(f"{'seed':>4} {'steps':>7} {'episodes':>8} {'wall s':>7} {'mean return':>11}  solved")
    for row in runs:
        print(
            f"{row['seed']:>4} {row['steps']:>7} {row['episodes']:>8} {row['wall_s']:>7} "
            f"{row['mean_return']:>11.1f}  {'yes' if row['solved'] else 'no'}"
        )
    result = {
        "command": " ".join(["python", "benchmarks/cartpole.py", *sys.argv[1:]]),
        "environment": "CartPole-v1",
        "solved_at": SOLVED,
        "evaluation_episodes": EVALUATION_EPISODES,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
        "runs": runs,
    }
    path = Path(__file__).parent / "results" / "cartpole.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
