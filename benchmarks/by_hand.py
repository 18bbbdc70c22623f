"""Does a person with an hour beat `hwloop optimize`?

    python benchmarks/by_hand.py work demo 0    # one network and seed; resumable, 10 to 40 minutes
    python benchmarks/by_hand.py report

The person tries uniform widths, half the residual blocks and none of them, in float and in INT8,
whole-network INT8, torch-pruning's global ranking at hwloop's latency, and the plan that the
latency table and the probes give by themselves. Each is timed, and from the fastest on they get the
training, the samples and the rule that hwloop's own network had, with as many steps of
distillation; the first that is within the goal is the person's. hwloop's network and that one are
then timed in turns. The test split is read at the end and decides nothing.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from by_hand_networks import NETWORKS, Trained
from by_hand_rivals import rivals
from common import CACHE, Bench, prepared, print_table, read_result, write_result

import hwloop
from hwloop.compress.recover import NO_RECOVERY
from hwloop.compress.training import Schedule, in_cycles
from hwloop.device import state
from hwloop.errors import CandidateError
from hwloop.measure import paired
from hwloop.measure.progress import ConsoleProgress
from hwloop.records import Candidate
from hwloop.run.versions import RESULTS
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit

FOLDER = CACHE / "by_hand"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and one seed."""

    name: str
    seed: int

    @property
    def run(self) -> Path:
        return FOLDER / f"run-{self.name}-{self.seed}"


def work(case: Case) -> None:
    """The run, then the rivals; the case goes into results/by_hand.json."""
    trained = NETWORKS[case.name](FOLDER)
    started = time.monotonic()
    report = hwloop.optimize(
        None if trained.shipped else trained.network,
        task=trained.shipped or trained.task,
        target=trained.target,
        run=case.run,
        max_drop=trained.max_drop,
        seed=case.seed,
        final_steps=trained.steps,
        progress=ConsoleProgress(),
    )
    found = {
        "network": case.name,
        "seed": case.seed,
        "max_drop": trained.max_drop,
        "steps": trained.steps,
        "metric": report["metric_name"],
        "run_wall_s": report["search"]["wall_s"],
        "baseline": report["baseline"],
        "hwloop": report["best"],
        "in_its_report": report["comparisons"],
        **beside(trained, case, report["best"]),
        "wall_s": round(time.monotonic() - started, 1),
        "cpu": state.cpu_model(),
        "isa": state.isa(),
        "results": RESULTS,
    }
    keep(found)


def beside(trained: Trained, case: Case, best: dict[str, Any]) -> dict[str, Any]:
    """What people would try, and the best of it against hwloop's network, in turns."""
    steps = best["recovery_steps"] or trained.steps
    goal = trained.max_drop
    with reopened(trained, case) as bench:
        test = ScoredSplit(trained.task, trained.task.test())
        dense_test = test.score(partial(bench.session.infer, bench.evaluator.latencies.dense))
        candidates = rivals(
            bench,
            max_drop=goal,
            latency_ms=bench.evaluator.baseline.latency_ms / best["speedup"],
        )
        schedule = in_cycles(steps, trained.steps)
        found, rival_model = tried(bench, candidates, test, dense_test, schedule)
        by_hand = next((name for name, rival in found.items() if rival.get("within")), "dense")
        rival_model = rival_model or bench.evaluator.latencies.dense
        ours = OnnxModel((case.run / "best" / "model.onnx").read_bytes())
        with bench.session.holding(ours), bench.session.holding(rival_model):
            ratio = paired.against(
                bench.session,
                ours,
                rival_model,
                protocol=bench.protocols.final,
                reference_latency_ms=0.0,
            )
    return {
        "rivals": found,
        "best_by_hand": by_hand,
        "ratio": ratio.speedup,
        "ratio_ci95": list(ratio.speedup_ci95),
        "ratio_unstable": list(ratio.unstable),
    }


def reopened(trained: Trained, case: Case) -> AbstractContextManager[Bench]:
    """What a case's run had at hand, from its own store."""
    return prepared(
        trained.task,
        trained.network,
        case.name,
        max_drop=trained.max_drop,
        seed=case.seed,
        target=trained.target,
        path=case.run / "hwloop.sqlite",
    )


def tried(
    bench: Bench,
    candidates: dict[str, Candidate],
    test: ScoredSplit,
    dense_test: float,
    schedule: Schedule,
) -> tuple[dict[str, Any], OnnxModel | None]:
    """The fastest first, until one is within the goal: what is slower cannot be the best."""
    found = {name: timed(bench, candidate) for name, candidate in candidates.items()}
    faster = [name for name, rival in found.items() if rival.get("speedup", 0.0) > 1]
    for name in sorted(faster, key=lambda name: -found[name]["speedup"]):
        print(name, flush=True)
        try:
            judgement, model = judged(bench, candidates[name], test, dense_test, schedule)
        except CandidateError as error:
            found[name] = {"failed": str(error)}
            continue
        found[name] |= judgement
        if judgement["within"]:
            return found, model
    return found, None


def timed(bench: Bench, candidate: Candidate) -> dict[str, Any]:
    """How fast a candidate is; its weights do not matter for that."""
    try:
        built = bench.evaluator.builder.build(candidate, NO_RECOVERY)
        with bench.session.holding(built.model):
            measured = paired.against(
                bench.session,
                built.model,
                bench.evaluator.latencies.dense,
                protocol=bench.protocols.bench,
                reference_latency_ms=0.0,
            )
    except CandidateError as error:
        return {"failed": str(error)}
    return {
        "speedup": measured.speedup,
        "speedup_ci95": list(measured.speedup_ci95),
        "unstable": list(measured.unstable),
    }


def judged(
    bench: Bench, candidate: Candidate, test: ScoredSplit, dense_test: float, schedule: Schedule
) -> tuple[dict[str, Any], OnnxModel]:
    """One rival, recovered: the scorer's bound with the goal of the run, and the test split."""
    evaluator, session = bench.evaluator, bench.session
    built = evaluator.builder.build(candidate, schedule)
    with session.holding(built.model):
        scored = evaluator.scorer.scored(built.model)
        metric = test.score(partial(session.infer, built.model))
    goal = evaluator.scorer.max_drop
    figures = {
        "steps": schedule.steps if candidate.is_cut else 0,
        "search_drop": scored.drop,
        "upper_drop": scored.upper_drop,
        "within": goal is not None and scored.upper_drop is not None and scored.upper_drop <= goal,
        "test_drop": bench.task.drop(dense_test, metric),
    }
    return figures, built.model


def is_of_this_version(case: dict[str, Any]) -> bool:
    return bool(case.get("results") == RESULTS)


def keep(found: dict[str, Any]) -> None:
    """Put a case in the place of the one before it, of the same kind of processor."""

    def key(case: dict[str, Any]) -> tuple[str, int, str]:
        return case["network"], case["seed"], case.get("isa", "")

    started = time.monotonic()
    others = [case for case in read_result("by_hand").get("cases", []) if key(case) != key(found)]
    cases = sorted([*others, found], key=key)
    write_result("by_hand", {**summary(cases), "cases": cases}, started=started)


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the cases of this version: who is ahead, by how much, and what is left of the goal."""
    verdicts = [verdict(case) for case in cases if is_of_this_version(case)]
    if not verdicts:
        return {"verdicts": []}
    logs = np.log([verdict["ratio"] for verdict in verdicts])
    return {
        "geometric_mean_ratio": float(np.exp(logs.mean())),
        "median_goal_unspent": float(np.median([item["goal_unspent"] for item in verdicts])),
        "verdicts": verdicts,
    }


def verdict(case: dict[str, Any]) -> dict[str, Any]:
    low, high = case["ratio_ci95"]
    spent = max(case["hwloop"]["search_drop"] or 0.0, 0.0)
    return {
        "case": f"{case['network']} {case['seed']}",
        "isa": case.get("isa", ""),
        "best_by_hand": case["best_by_hand"],
        "ratio": case["ratio"],
        "verdict": "behind" if high < 1 else "ahead" if low > 1 else "tie",
        "goal_unspent": 1 - spent / case["max_drop"],
    }


def report() -> None:
    """Print the cases that are kept; those of an earlier version count for nothing."""
    rows = [["case", "hwloop", "drop", "best by hand", "drop", "faster by", "95 %", "verdict"]]
    cases = read_result("by_hand").get("cases", [])
    for case in cases:
        ours, ratio, (low, high) = case["hwloop"], case["ratio"], case["ratio_ci95"]
        rival = case["rivals"].get(case["best_by_hand"], {"speedup": 1.0, "test_drop": 0.0})
        told = verdict(case)
        rows.append(
            [
                told["case"],
                f"{ours['speedup']:.2f}x",
                f"{ours['metric_drop']:+.4f}",
                f"{rival['speedup']:.2f}x {case['best_by_hand']}",
                f"{rival['test_drop']:+.4f}",
                f"{ratio:.2f}",
                f"{low:.2f}-{high:.2f}",
                told["verdict"] if is_of_this_version(case) else "of an earlier version",
            ]
        )
    print_table(rows)
    found = summary(cases)
    if found["verdicts"]:
        print(
            f"faster by {found['geometric_mean_ratio']:.2f} in the geometric mean, "
            f"{found['median_goal_unspent']:.0%} of the goal unspent in the median"
        )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["work"] and len(arguments) == 3 and arguments[1] in NETWORKS:
        FOLDER.mkdir(parents=True, exist_ok=True)
        work(Case(name=arguments[1], seed=int(arguments[2])))
    elif arguments == ["report"]:
        report()
    else:
        raise SystemExit(f"{__doc__}\nnetworks: {', '.join(NETWORKS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
