"""How well the score of a short recovery ranks candidates by what full distillation makes of them.

    python benchmarks/proxy.py prepare     # rows, probes and the choice of candidates
    python benchmarks/proxy.py work 0 2    # share 0 of 2; shares may run side by side
    python benchmarks/proxy.py report

Random candidates of the demo in three bands of predicted latency. Kendall's tau is taken within a
band, because a search compares candidates of about the same latency; ties across bands are easy.
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
from hwloop.compress.recover import NO_RECOVERY, RECALIBRATED, Schedule
from hwloop.measure.store import Store
from hwloop.run.table_check import random_candidate
from hwloop.tasks.score import ScoredSplit

BANDS = ((1.7, 1.9), (2.2, 2.4), (2.7, 3.0))
PER_BAND = 9
FULL_STEPS = 300
SCHEDULES = {
    "none": NO_RECOVERY,
    "recalibrated": RECALIBRATED,
    "20 steps": Schedule(steps=20),
    "60 steps": Schedule(steps=60),
}
FULL = f"{FULL_STEPS} steps"


def prepare() -> None:
    """Choose the candidates: random, predicted inside a band."""
    with prepared_demo("proxy") as bench:
        baseline_ms = bench.evaluator.baseline.latency_ms
        rng = np.random.default_rng(5)
        found: dict[int, list[tuple[int, ...]]] = {band: [] for band in range(len(BANDS))}
        while any(len(items) < PER_BAND for items in found.values()):
            choices = bench.subject.choices(
                random_candidate(bench.subject.network, bench.subject.rules, rng)
            )
            speedup = baseline_ms / bench.predictor(choices)
            for band, (low, high) in enumerate(BANDS):
                if low <= speedup <= high and len(found[band]) < PER_BAND:
                    found[band].append(choices)
        chosen = [(band, list(item)) for band, items in found.items() for item in items]
        bench.store.put("proxy", "candidates", chosen)
        print(f"{len(chosen)} candidates in {len(BANDS)} bands")


def work(share: int, shares: int) -> None:
    """Score every candidate of a share after every recovery; resumable."""
    torch.set_num_threads(1)
    with prepared_demo("proxy") as bench:
        test = ScoredSplit(bench.task, bench.task.test())
        chosen = bench.store.get("proxy", "candidates")
        for number in range(share, len(chosen), shares):
            key = f"result/{number:03d}"
            if bench.store.get("proxy", key) is not None:
                continue
            candidate = bench.subject.candidate(tuple(chosen[number][1]))
            result: dict[str, Any] = {"band": chosen[number][0], "score": {}, "seconds": {}}
            for name, schedule in {**SCHEDULES, FULL: Schedule(steps=FULL_STEPS)}.items():
                started = time.monotonic()
                built = bench.evaluator.builder.build(candidate, schedule)
                split = test if name == FULL else bench.evaluator.scorer.split
                result["score"][name] = split.score(partial(bench.session.infer, built.model))
                result["seconds"][name] = time.monotonic() - started
                bench.session.forget(built.model)
            bench.store.add("proxy", key, result)
            print(number, {name: round(value, 4) for name, value in result["score"].items()})


def report() -> None:
    """Within-band tau with a bootstrap interval over candidates, and seconds per candidate."""
    started = time.monotonic()
    with Store(CACHE / "proxy.sqlite") as store:
        results = [v for k, v in store.all("proxy").items() if k.startswith("result/")]
    rng = np.random.default_rng(0)
    rows = [["recovery", "within-band tau (95 %)", "seconds", "median drop of score"]]
    found = {}
    full = [result["score"][FULL] for result in results]
    for name in SCHEDULES:
        tau = _within_band(results, name)
        resampled = [
            _within_band([results[i] for i in rng.integers(0, len(results), len(results))], name)
            for _ in range(2000)
        ]
        low, high = np.percentile(resampled, [2.5, 97.5])
        seconds = stats.median([result["seconds"][name] for result in results])
        lost = stats.median([f - r["score"][name] for f, r in zip(full, results, strict=True)])
        found[name] = {
            "tau": tau,
            "tau_ci95": [float(low), float(high)],
            "seconds": seconds,
            "median_score_below_full": lost,
        }
        rows.append([name, f"{tau:.2f} ({low:.2f}-{high:.2f})", f"{seconds:.1f}", f"{lost:.4f}"])
    print_table(rows)
    value = {
        "bands_speedup": BANDS,
        "candidates": len(results),
        "truth": f"test accuracy after {FULL}, scored by ONNX Runtime",
        "threads": 1,
        "recoveries": found,
        "results": results,
    }
    write_result("proxy", value, started=started)


def _within_band(results: list[dict[str, Any]], name: str) -> float:
    """Mean over the bands of Kendall's tau-b between the short and the full recovery's scores."""
    taus = []
    for band in range(len(BANDS)):
        inside = [result for result in results if result["band"] == band]
        if len(inside) >= 3:
            short = [result["score"][name] for result in inside]
            taus.append(stats.kendall(short, [result["score"][FULL] for result in inside]))
    return float(np.mean(taus))


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        prepare()
    elif sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["report"]:
        report()
    else:
        sys.exit(__doc__)
