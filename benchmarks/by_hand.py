"""Does a person with an hour beat `hwloop optimize`?

    python benchmarks/by_hand.py work demo 0    # one network and seed; resumable, 20 to 30 minutes
    python benchmarks/by_hand.py report

The person tries uniform widths, in float and in INT8, whole-network INT8, and the plan that the
latency table and the probes give by themselves. Each of these has the training, the samples and the
rule that hwloop's own network has, with as many steps of distillation; the fastest that is within
the goal by that rule is the person's. Both are then timed in turns against the dense network. The
test split is read at the end and decides nothing.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from by_hand_networks import NETWORKS, Trained
from common import CACHE, prepared, print_table, write_result

import hwloop
from hwloop.compress.recover import Schedule
from hwloop.errors import CandidateError
from hwloop.files import write_atomically
from hwloop.measure import paired
from hwloop.measure.progress import ConsoleProgress
from hwloop.records import Action, Candidate
from hwloop.search.planner import Planner
from hwloop.tasks.score import ScoredSplit

STEPS = 300
FOLDER = CACHE / "by_hand"
WIDTHS = (0.75, 0.5, 0.25)
RIVALS: dict[str, Action] = {
    "whole-network INT8": Action(precision="int8"),
    **{f"width {w:.0%}": Action(kind="prune", amount=w) for w in WIDTHS},
    **{f"width {w:.0%}, INT8": Action(kind="prune", amount=w, precision="int8") for w in WIDTHS},
}
PLANNED = (5.0, 10.0)
"""Summed damage of the planner's own answers, in goals: one careful, one as bold as widths are."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and one seed."""

    name: str
    seed: int

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}-{self.seed}.json"


def work(case: Case) -> None:
    """The run, then the rivals; what is done is kept."""
    trained = NETWORKS[case.name](FOLDER)
    started = time.monotonic()
    report = hwloop.optimize(
        None if trained.shipped else trained.network,
        task=trained.shipped or trained.task,
        run=FOLDER / f"run-{case.name}-{case.seed}",
        max_drop=trained.max_drop,
        seed=case.seed,
        final_steps=STEPS,
        progress=ConsoleProgress(),
    )
    found = {
        "network": case.name,
        "seed": case.seed,
        "max_drop": trained.max_drop,
        "metric": report["metric_name"],
        "run_wall_s": report["search"]["wall_s"],
        "baseline": report["baseline"],
        "hwloop": report["best"],
        "in_its_report": report["comparisons"],
        "rivals": rivals(trained, case, steps=report["best"]["recovery_steps"] or STEPS),
        "wall_s": round(time.monotonic() - started, 1),
    }
    write_atomically(case.path, (json.dumps(found, indent=1) + "\n").encode())


def rivals(trained: Trained, case: Case, *, steps: int) -> dict[str, Any]:
    """What people would try, with hwloop's own recovery, samples, rule and timing."""
    found: dict[str, Any] = {}
    name = f"by_hand-{case.name}-{case.seed}"
    task, goal = trained.task, trained.max_drop
    with prepared(task, trained.network, name, max_drop=goal, seed=case.seed) as bench:
        test = ScoredSplit(trained.task, trained.task.test())
        dense_test = test.score(partial(bench.session.infer, bench.evaluator.latencies.dense))
        candidates = {rival: bench.subject.uniform(action) for rival, action in RIVALS.items()}
        problem = bench.problem(max_drop=trained.max_drop)
        for goals in PLANNED:
            plan = Planner(problem).fastest_within(goals * trained.max_drop)
            candidates[f"planner, {goals:g} goals of damage"] = bench.subject.candidate(plan)
        for rival, candidate in candidates.items():
            print(rival, flush=True)
            try:
                found[rival] = judged(bench, candidate, test, trained, dense_test, steps)
            except CandidateError as error:
                found[rival] = {"failed": str(error)}
    return found


def judged(
    bench: Any,
    candidate: Candidate,
    test: ScoredSplit,
    trained: Trained,
    dense_test: float,
    steps: int,
) -> dict[str, Any]:
    """One rival: the scorer's bound with the goal of the run, the test split, and its speedup."""
    evaluator, session = bench.evaluator, bench.session
    built = evaluator.builder.build(candidate, Schedule(steps=steps))
    with session.holding(built.model):
        scored = evaluator.scorer.scored(built.model)
        measured = paired.against(
            session,
            built.model,
            evaluator.latencies.dense,
            protocol=bench.protocols.bench,
            reference_latency_ms=0.0,
        )
        metric = test.score(partial(session.infer, built.model))
    return {
        "steps": steps,
        "speedup": measured.speedup,
        "speedup_ci95": list(measured.speedup_ci95),
        "unstable": list(measured.unstable),
        "search_drop": scored.drop,
        "upper_drop": scored.upper_drop,
        "within": scored.upper_drop is not None and scored.upper_drop <= trained.max_drop,
        "test_drop": trained.task.drop(dense_test, metric),
    }


def report() -> None:
    started = time.monotonic()
    cases = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*-[0-9].json"))]
    rows = [["case", "hwloop", "drop", "best by hand", "which", "drop", "ratio", "verdict"]]
    verdicts, ratios = [], []
    for case in cases:
        ours = case["hwloop"]
        within = {n: r for n, r in case["rivals"].items() if r.get("within")}
        name = max(within, key=lambda n: within[n]["speedup"], default="dense")
        best = within.get(name, {"speedup": 1.0, "speedup_ci95": [1.0, 1.0], "test_drop": 0.0})
        ratio = ours["speedup"] / best["speedup"]
        behind = ours["speedup_ci95"][1] < best["speedup_ci95"][0]
        ahead = ours["speedup_ci95"][0] > best["speedup_ci95"][1]
        verdict = "behind" if behind else "ahead" if ahead else "tie"
        verdicts.append({"case": f"{case['network']} {case['seed']}", "best_by_hand": name})
        verdicts[-1] |= {"ratio": ratio, "verdict": verdict}
        verdicts[-1]["goal_unspent"] = 1 - max(ours["search_drop"] or 0, 0) / case["max_drop"]
        ratios.append(ratio)
        rows.append(
            [
                f"{case['network']} {case['seed']}",
                f"{ours['speedup']:.2f}x",
                f"{ours['metric_drop']:+.4f}",
                f"{best['speedup']:.2f}x",
                name,
                f"{best['test_drop']:+.4f}",
                f"{ratio:.2f}",
                verdict,
            ]
        )
    print_table(rows)
    summary = {
        "geometric_mean_ratio": float(np.exp(np.mean(np.log(ratios)))),
        "median_goal_unspent": float(np.median([item["goal_unspent"] for item in verdicts])),
        "verdicts": verdicts,
    }
    write_result("by_hand", {**summary, "steps": STEPS, "cases": cases}, started=started)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["work"] and len(arguments) == 3:
        FOLDER.mkdir(parents=True, exist_ok=True)
        work(Case(name=arguments[1], seed=int(arguments[2])))
    elif arguments == ["report"]:
        report()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
