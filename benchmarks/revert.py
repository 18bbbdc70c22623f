"""Does undoing what earns nothing cost anything? The revert pass on many candidates.

    python benchmarks/revert.py RUN     a finished run of the demo on this CPU; six minutes

The fastest candidates that the run evaluated, and as many random ones, go through the pass that
finalists go through. Where it undoes something, both networks get the recovery of the search, are
timed for long in turns with the dense one, and are scored on the whole search split.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import Bench, prepared, print_table, write_result
from finals import Hits, hits

from hwloop.compress import methods
from hwloop.findings import Measurement
from hwloop.measure.progress import ConsoleProgress
from hwloop.records import KEEP, Candidate
from hwloop.run import calibrate
from hwloop.run.distil import Distiller
from hwloop.run.folder import RunFolder
from hwloop.run.front import is_faster, outcome_of
from hwloop.run.table_check import random_candidate
from hwloop.task import load_model
from hwloop.tasks.load import load_task

EACH = 20
NORMAL_95 = 1.96


def candidates(bench: Bench) -> dict[Candidate, str]:
    """Where each comes from."""
    trials = [trial for trial in bench.store.trials() if trial.outcome and is_faster(trial)]
    trials.sort(key=lambda trial: outcome_of(trial).latency_ms)
    found = dict.fromkeys((trial.candidate for trial in trials[:EACH]), "the run")
    rng = np.random.default_rng(5)
    network, rules = bench.subject.network, bench.subject.rules
    while len(found) < EACH + min(EACH, len(trials)):
        found.setdefault(random_candidate(network, rules, rng), "random")
    return found


def figures(bench: Bench, candidate: Candidate) -> tuple[Measurement, Hits]:
    """Timed for long, and which samples of the search split it gets right."""
    evaluator = bench.evaluator
    built = evaluator.builder.build(candidate, evaluator.loop_schedule)
    with bench.session.holding(built.model):
        timed = evaluator.latencies.for_long(built, bench.protocols.bench)
        right = hits(evaluator.scorer.split, bench.session, built.model)
    return timed, right


def study(bench: Bench, candidate: Candidate, after: Candidate) -> dict[str, Any]:
    pairs = zip(candidate.actions, after.actions, strict=True)
    undone = [methods.describe(old) for old, new in pairs if old != new]
    found: dict[str, Any] = {"changed": sum(a != KEEP for a in candidate.actions)}
    if not undone:
        return {**found, "undone": []}
    (timed, right), (timed_after, right_after) = figures(bench, candidate), figures(bench, after)
    gained = right_after.astype(float) - right
    noise = NORMAL_95 * float(gained.std()) / math.sqrt(len(gained))
    return {
        **found,
        "undone": undone,
        "ratio": [timed.ratio, timed_after.ratio],
        "ratio_ci95": [timed.ratio_ci95, timed_after.ratio_ci95],
        "accuracy_gained": float(gained.mean()),
        "accuracy_noise": noise,
        "slower": timed_after.ratio_ci95[0] > timed.ratio_ci95[1],
        "worse": float(gained.mean()) < -noise,
    }


def main(run: Path) -> None:
    started = time.monotonic()
    task = load_task("demo")
    module = load_model(task, None)
    items: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        prepared(task, module, "demo", path=run / "hwloop.sqlite", max_drop=0.01) as bench,
    ):
        folder = RunFolder(Path(scratch))
        folder.create()
        distiller = Distiller(
            evaluator=bench.evaluator,
            folder=folder,
            steps=0,
            protocol=bench.protocols.bench,
            progress=ConsoleProgress(),
        )
        predict_ms = calibrate.taught(bench.predictor, bench.store.trials(), bench.subject)
        for candidate, source in candidates(bench).items():
            reverted = distiller.reverted(candidate, predict_ms)
            items.append({"from": source, **study(bench, candidate, reverted)})
            print(len(items), items[-1], file=sys.stderr)
    rows = [["from", "candidates", "with something undone", "actions undone", "slower", "worse"]]
    for source in ("the run", "random"):
        mine = [item for item in items if item["from"] == source]
        undone = [item for item in mine if item["undone"]]
        counts = [len(mine), len(undone), sum(len(item["undone"]) for item in mine)]
        counts += [sum(item[word] for item in undone) for word in ("slower", "worse")]
        rows.append([source, *map(str, counts)])
    print_table(rows)
    kinds = Counter(word for item in items for word in item["undone"])
    write_result("revert", {"undone": dict(kinds), "candidates": items}, started=started)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
