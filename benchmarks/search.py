"""Who finds the best candidate with the same number of real evaluations?

    python benchmarks/search.py prepare
    python benchmarks/search.py work 0 2      # share 0 of 2; shares may run side by side
    python benchmarks/search.py report

Every method gets the same problem (the demo), the same knowledge (table, sensitivities), the same
recovery (batch-norm recalibration) and the same number of evaluations. Accuracy is evaluated for
real: compressed, exported, quantized, run by ONNX Runtime on the search split. Latency is the
fitted table's prediction, frozen, so that methods may run side by side; results/table_error_demo
has its error. Scores are kept by candidate, so a candidate that two methods ask for is the same.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from common import CACHE, prepared_demo, print_table, write_result

from hwloop import stats
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.measure.store import Store
from hwloop.search.methods import METHODS
from hwloop.search.problem import Choices, Score
from hwloop.search.reward import Reward

EVALUATIONS = 60
SEEDS = (0, 1, 2)
RIVALS = ("dqn", "random", "dqn-vanilla", "planner", "greedy", "uniform")
MAX_DROP = 0.02
MIN_SPEEDUP = 2.6
GOALS = ("drop",)
RECALIBRATION = Schedule(steps=0, recalibration_batches=8)


def limits(goal: str, baseline_ms: float) -> dict[str, float]:
    """The two tasks: fastest within a drop, and most accurate within a latency budget."""
    return {"max_drop": MAX_DROP} if goal == "drop" else {"budget_ms": baseline_ms / MIN_SPEEDUP}


def work(share: int, shares: int) -> None:
    """Run a share of all (goal, method, seed); resumable."""
    torch.set_num_threads(1)
    jobs = [(goal, name, seed) for goal in GOALS for seed in SEEDS for name in RIVALS]
    with prepared_demo("search") as bench:
        for goal, name, seed in jobs[share::shares]:
            key = f"run/{goal}/{name}/{seed}"
            if bench.store.get("search", key) is not None:
                continue
            problem = bench.problem(**limits(goal, bench.evaluator.baseline.latency_ms))
            found: dict[Choices, Score] = {}

            def evaluate(choices: Choices, source: str, found: Any = found) -> Score:
                if choices not in found:
                    found[choices] = _score(bench, choices)
                return found[choices]  # type: ignore[no-any-return]

            started = time.monotonic()
            reward = Reward()
            METHODS[name](problem, evaluate, evaluations=EVALUATIONS, seed=seed, reward=reward)
            curve: list[float] = []
            for score in found.values():
                value = float(reward(score, problem))
                curve.append(max(value, curve[-1]) if curve else value)
            best = max(found.items(), key=lambda item: reward(item[1], problem))
            result = {
                "curve": curve,
                "evaluations": len(found),
                "best": [list(best[0]), best[1].metric_drop, best[1].latency_ms],
                "seconds": time.monotonic() - started,
            }
            bench.store.add("search", key, result)
            print(key, f"{curve[-1]:.3f}", len(found), f"{result['seconds']:.0f} s", flush=True)


def _score(bench: Any, choices: Choices) -> Score:
    key = "/".join(map(str, choices))
    stored = bench.store.get("search-score", key)
    if stored is None:
        try:
            built = bench.evaluator.builder.build(bench.subject.candidate(choices), RECALIBRATION)
            scorer = bench.evaluator.scorer
            metric = scorer.split.score(partial(bench.session.infer, built.model))
            bench.session.forget(built.model)
            stored = {"drop": scorer.dense_metric - metric, "failed": None}
        except CandidateError as error:
            stored = {"drop": None, "failed": str(error)}
        bench.store.add("search-score", key, stored)
    latency_ms = bench.predictor(choices) if stored["failed"] is None else None
    return Score(metric_drop=stored["drop"], latency_ms=latency_ms, failed=stored["failed"])


def report() -> None:
    """Medians and ranges of the best reward over the seeds, and what it means in figures."""
    started = time.monotonic()
    with Store(CACHE / "search.sqlite") as store:
        runs = {k: v for k, v in store.all("search").items() if k.startswith("run/")}
        baseline_ms = float(np.median(store.get("baseline", "latency")["reference_ms"]))
    goals: dict[str, Any] = {}
    for goal in GOALS:
        goals[goal] = summary(goal, runs, baseline_ms)
        asked = f"drop <= {MAX_DROP}" if goal == "drop" else f"speedup >= {MIN_SPEEDUP}"
        print(f"\ngoal: {asked}")
        print_table(table(goals[goal]))
    value = {
        "evaluations": EVALUATIONS,
        "seeds": SEEDS,
        "max_drop": MAX_DROP,
        "min_speedup": MIN_SPEEDUP,
        "latency_source": "table",
        "recovery": "batch-norm recalibration, "
        f"{RECALIBRATION.recalibration_batches} batches of {RECALIBRATION.batch_size}",
        "goals": goals,
        "curves": {key: run["curve"] for key, run in runs.items()},
    }
    write_result("search", value, started=started)


def summary(goal: str, runs: dict[str, Any], baseline_ms: float) -> dict[str, Any]:
    """Each method's figures for a goal, seed by seed; methods that were not run are left out."""
    found = {}
    for name in RIVALS:
        keys = [f"run/{goal}/{name}/{seed}" for seed in SEEDS]
        own = [runs[key] for key in keys if key in runs]
        if own:
            found[name] = {
                "best_reward": [run["curve"][-1] for run in own],
                "after_30": [run["curve"][min(29, len(run["curve"]) - 1)] for run in own],
                "speedup": [baseline_ms / run["best"][2] for run in own],
                "drop": [run["best"][1] for run in own],
                "evaluations": [run["evaluations"] for run in own],
                "search_seconds": [run["seconds"] for run in own],
            }
    return found


def table(methods: dict[str, Any]) -> list[list[str]]:
    """A line for each method."""
    rows = [["method", "reward, median (range)", "after 30", "speedup", "drop", "evaluations"]]
    for name, own in methods.items():
        last = own["best_reward"]
        rows.append(
            [
                name,
                f"{stats.median(last):.3f} ({min(last):.3f} to {max(last):.3f})",
                f"{stats.median(own['after_30']):.3f}",
                f"{stats.median(own['speedup']):.2f}x",
                f"{stats.median(own['drop']):+.4f}",
                str(int(stats.median(own["evaluations"]))),
            ]
        )
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        with prepared_demo("search") as prepared:
            prepared.problem(max_drop=MAX_DROP)
    elif sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["report"]:
        report()
    else:
        sys.exit(__doc__)
