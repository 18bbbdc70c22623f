"""What hwloop itself costs: one environment step, and the share of a run that is not real work.

python benchmarks/overhead.py RUN      # RUN: folder of a finished `hwloop optimize`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from common import prepared_demo, print_table, write_result

from hwloop.search.env import NetCompressEnv
from hwloop.search.planner import Planner
from hwloop.search.prior import Prior
from hwloop.search.problem import Choices, Score
from hwloop.search.reward import Reward

STEPS = 5_000
WORK = ("measure", "train", "score", "export")


def main(run: Path) -> None:
    started = time.monotonic()
    step_ms = environment_step_ms()
    report = json.loads((run / "report.json").read_text())
    wall_s = report["search"]["wall_s"]
    stages = report["search"]["seconds_by_stage"]
    work_s = sum(stages.get(name, 0.0) for name in WORK)
    share = 1 - work_s / wall_s
    rows = [
        ["figure", "value"],
        ["environment step, median", f"{np.median(step_ms):.3f} ms"],
        ["environment step, 99th percentile", f"{np.percentile(step_ms, 99):.3f} ms"],
        ["run", f"{wall_s:.0f} s"],
        ["outside measuring, training, scoring, exporting", f"{share:.1%}"],
    ]
    print_table(rows)
    write_result(
        "overhead",
        {
            "step_ms_median": float(np.median(step_ms)),
            "step_ms_p99": float(np.percentile(step_ms, 99)),
            "steps": len(step_ms),
            "run_wall_s": wall_s,
            "run_seconds_by_stage": stages,
            "share_outside": share,
        },
        started=started,
    )


def environment_step_ms() -> list[float]:
    """Milliseconds of single steps with a warm table, the demo's groups and random actions."""

    def known(choices: Choices, source: str) -> Score:
        return Score(metric_drop=0.01, latency_ms=1.0)

    reward = Reward()
    with prepared_demo("overhead") as bench:
        problem = bench.problem(max_drop=0.04)
        env = NetCompressEnv(problem, known, reward=reward, prior=Prior(Planner(problem), reward))
        rng = np.random.default_rng(0)
        _, info = env.reset(seed=0)
        found: list[float] = []
        while len(found) < STEPS:
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            before = time.perf_counter()
            _, _, done, _, info = env.step(action)
            found.append((time.perf_counter() - before) * 1000)
            if done:
                _, info = env.reset()
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
