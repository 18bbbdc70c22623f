"""How often does the network that ships miss the goal, and what does the rule cost in speed?

    python benchmarks/finals.py     # after by_hand.py; 3 minutes for each of its runs

Of the runs that by_hand.py left here, each network that was recovered fully is built again from its
weights and scored on every sample of the search split and of the test split. Then the search
samples are drawn anew, many times: every draw ships what the rule picks by its own drops and
bounds, and the test split says whether that network misses the goal, and which one would have been
the fastest. The same is asked of the search split alone: half of it chooses, a quarter judges; once
by a bound that knows of the judge's noise, as hwloop's does, and once by one that does not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from by_hand import FOLDER, Case, is_of_this_version, reopened
from by_hand_networks import NETWORKS
from common import Bench, print_table, read_result, write_result
from numpy.typing import NDArray
from safetensors.torch import load_file

from hwloop.compress.training import in_cycles
from hwloop.measure.session import DeviceSession
from hwloop.records import Candidate
from hwloop.run.build import KeptWeights
from hwloop.run.memory import weights_name
from hwloop.runtimes.graph import OnnxModel
from hwloop.task import ClassificationTask
from hwloop.tasks.score import ScoredSplit

DRAWS = 400
GOALS = (0.004, 0.005, 0.006, 0.0075, 0.01)
ONE_SIDED_80 = 0.8416
"""Standard deviations: of the bound that the rule holds against the goal."""

Hits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """A recovered network: its speedup, and for each sample whether it is right."""

    speedup: float
    faster: bool
    search: Hits
    test: Hits


def finals_of(case: Case) -> list[Final]:
    """The dense network first, then every full recovery of a run."""
    trained = NETWORKS[case.name](FOLDER)
    with reopened(trained, case) as bench:
        task = bench.task
        splits = [ScoredSplit(task, split()) for split in (task.search, task.test)]
        dense = [hits(split, bench.session, bench.evaluator.latencies.dense) for split in splits]
        found = [Final(speedup=1.0, faster=False, search=dense[0], test=dense[1])]
        for event in _finalists(case.run):
            model = _rebuilt(bench, case.run, event)
            with bench.session.holding(model):
                search, test = (hits(split, bench.session, model) for split in splits)
            found.append(
                Final(speedup=event["speedup"], faster=event["faster"], search=search, test=test)
            )
    return found


def _finalists(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "finalist":
            yield event


def _rebuilt(bench: Bench, run: Path, event: dict[str, Any]) -> OnnxModel:
    candidate = Candidate.from_json(event["candidate"])
    steps, first = event["steps"], read_final_steps(run)
    path = run / "candidates" / weights_name(candidate, in_cycles(steps, first))
    kept = KeptWeights(steps=steps, source=str(path), state=load_file(path))
    return bench.evaluator.builder.restored(candidate, kept).model


def read_final_steps(run: Path) -> int:
    """Of the first rung of a run's full recoveries."""
    return int(json.loads((run / "config.json").read_text())["final_steps"])


def hits(split: ScoredSplit, session: DeviceSession, model: OnnxModel) -> Hits:
    outputs = split.finite_outputs(partial(session.infer, model))
    targets = np.concatenate([labels for _, labels in split.chunks()])
    found: Hits = outputs.argmax(axis=1) == targets
    return found


def shipped_by(
    finals: list[Final], goal: float, samples: NDArray[np.int64], *, judged_on: float
) -> Final:
    """What the rule ships by some of the search samples.

    Args:
        judged_on: samples that the bound is for; infinite for a bound of the drop itself.
    """
    dense, *others = finals
    best = dense
    for final in others:
        lost = dense.search[samples].astype(float) - final.search[samples]
        noise = lost.std() * math.sqrt(1 / len(samples) + 1 / judged_on)
        within = lost.mean() + ONE_SIDED_80 * noise <= goal
        if final.faster and within and final.speedup > best.speedup:
            best = final
    return best


def halves(finals: list[Final], goal: float, *, predictive: bool) -> float:
    """Share of divisions of the search split whose choice misses the goal on another part of it."""
    rng, dense = np.random.default_rng(0), finals[0]
    count = len(dense.search)
    missed = []
    for _ in range(DRAWS):
        order = rng.permutation(count)
        chooses, judges = order[: count // 2], order[count // 2 : 3 * count // 4]
        judged_on = len(judges) if predictive else math.inf
        best = shipped_by(finals, goal, chooses, judged_on=judged_on)
        missed.append(dense.search[judges].mean() - best.search[judges].mean() > goal)
    return float(np.mean(missed))


def summary(case: Case, goal: float) -> dict[str, Any]:
    """Shares of the draws of one run."""
    finals = finals_of(case)
    dense = finals[0]
    drops = {id(final): float(dense.test.mean() - final.test.mean()) for final in finals}
    within = [final for final in finals if final.faster and drops[id(final)] <= goal]
    fastest = max((final.speedup for final in within), default=dense.speedup)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(dense.search), len(dense.search)) for _ in range(DRAWS)]
    judged_on = len(dense.test)
    shipped = [shipped_by(finals, goal, draw, judged_on=judged_on) for draw in draws]
    ratios = [final.speedup / fastest for final in shipped if drops[id(final)] <= goal]
    return {
        "case": f"{case.name} {case.seed}",
        "finals": len(finals) - 1,
        "missed_within_the_search_split": [
            {
                "goal": part,
                "bound_of_the_drop": halves(finals, part, predictive=False),
                "bound_for_the_judge": halves(finals, part, predictive=True),
            }
            for part in GOALS
        ],
        "missed": float(np.mean([drops[id(final)] > goal for final in shipped])),
        "speedup_of_what_ships": float(np.median([final.speedup for final in shipped])),
        "fastest_within_the_goal": fastest,
        "speed_kept": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
    }


def main() -> None:
    started = time.monotonic()
    found = []
    cases = [
        Case(name=kept["network"], seed=kept["seed"])
        for kept in read_result("by_hand").get("cases", [])
        if is_of_this_version(kept)
    ]
    for case in cases:
        trained = NETWORKS[case.name](FOLDER)
        if case.run.is_dir() and isinstance(trained.task, ClassificationTask):
            found.append(summary(case, trained.max_drop))
    rows = [["case", "finals", "missed", "ships", "fastest within the goal"]]
    for each in found:
        rows.append(
            [
                each["case"],
                str(each["finals"]),
                f"{each['missed']:.0%}",
                f"{each['speedup_of_what_ships']:.2f}x",
                f"{each['fastest_within_the_goal']:.2f}x",
            ]
        )
    print_table(rows)
    missed = float(np.mean([each["missed"] for each in found]))
    print(f"missed in {missed:.0%} of {DRAWS} draws of each run")
    write_result("finals", {"draws": DRAWS, "missed": missed, "runs": found}, started=started)


if __name__ == "__main__":
    main()
