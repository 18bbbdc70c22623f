"""How well is what full distillation leaves of a candidate known from its short recovery?

    python benchmarks/proxy.py prepare     # rows, probes and the choice of candidates
    python benchmarks/proxy.py work 0 2    # share 0 of 2; shares may run side by side
    python benchmarks/proxy.py report

Random candidates of the demo in four bands of predicted latency. Kendall's tau is taken within a
band, because a search compares candidates of about the same latency; ties across bands are easy.
The final drop is foreseen as a run does it, from a few lessons: others that were recovered fully.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from common import CACHE, Bench, prepared_demo, print_table, write_result

from hwloop import stats
from hwloop.compress.moments import InputMoments
from hwloop.compress.recover import NO_RECOVERY, RECALIBRATED
from hwloop.compress.subject import Built
from hwloop.compress.training import Schedule
from hwloop.measure.store import Store
from hwloop.records import Candidate
from hwloop.run.build import Builder
from hwloop.run.table_check import random_candidate
from hwloop.search.foresight import Foresight, Lesson
from hwloop.tasks.score import ScoredSplit

BANDS = ((1.6, 1.75), (1.75, 1.9), (1.9, 2.05), (2.05, 2.3))
"""Of predicted speedup. On a CPU whose INT8 pays less, or more, they hold other candidates."""

PER_BAND = 10
FULL_STEPS = 600
SEARCH_SAMPLES = 2000
UNIT = 0.01
LESSONS = 8
"""Full recoveries that a run has behind it in its first rounds."""

SHORT = {
    "cut alone": (NO_RECOVERY, False),
    "cut, renewed norms": (RECALIBRATED, False),
    "refitted": (NO_RECOVERY, True),
    "refitted, renewed norms": (RECALIBRATED, True),
    "refitted, 40 steps": (Schedule(steps=40), True),
}
"""Recovery, and whether the layers that read a cut are refitted."""

FULL = {
    "cut": (Schedule(steps=FULL_STEPS), False),
    "refitted": (Schedule(steps=FULL_STEPS), True),
}
IN_RUNS = "refitted, renewed norms"

CUT_ALONE_EVERY = 5
"""Of the candidates one in so many is also distilled without the refit: two of each band."""


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
                if low <= speedup < high and len(found[band]) < PER_BAND:
                    found[band].append(choices)
        # In turns, so that a study that is cut short has as many of each.
        chosen: list[dict[str, Any]] = [
            {"band": band, "choices": list(found[band][number]), "speedup": 0.0}
            for number in range(PER_BAND)
            for band in found
        ]
        for each in chosen:
            each["speedup"] = baseline_ms / bench.predictor(tuple(each["choices"]))
        bench.store.put("proxy", "candidates", chosen)
        print(f"{len(chosen)} candidates in {len(BANDS)} bands")


def work(share: int, shares: int) -> None:
    """Score every candidate of a share after every recovery; resumable."""
    torch.set_num_threads(1)
    with prepared_demo("proxy") as bench:
        few = ScoredSplit(bench.task, bench.task.search(), count=SEARCH_SAMPLES)
        test = ScoredSplit(bench.task, bench.task.test())
        dense = {
            split: split.score(partial(bench.session.infer, bench.evaluator.latencies.dense))
            for split in (few, test)
        }
        chosen = bench.store.get("proxy", "candidates")
        for number in range(share, len(chosen), shares):
            key = f"result/{number:03d}"
            if bench.store.get("proxy", key) is not None:
                continue
            result: dict[str, Any] = {**chosen[number], "seconds": {}}
            candidate = bench.subject.candidate(tuple(chosen[number]["choices"]))
            for where, split, arms in (("short", few, SHORT), ("full", test, FULL)):
                result[where] = {}
                for name, (schedule, refitted) in arms.items():
                    if (where, name) == ("full", "cut") and number % CUT_ALONE_EVERY:
                        continue
                    started = time.monotonic()
                    built = _built(bench, candidate, schedule, refitted=refitted)
                    score = split.score(partial(bench.session.infer, built.model))
                    result[where][name] = dense[split] - score
                    result["seconds"][f"{where}, {name}"] = time.monotonic() - started
                    bench.session.forget(built.model)
            bench.store.add("proxy", key, result)
            print(number, {name: round(drop, 4) for name, drop in result["short"].items()})
            print(number, {name: round(drop, 4) for name, drop in result["full"].items()})


class CutAlone(Builder):
    """Builds candidates whose cut layers are not refitted."""

    @cached_property
    def moments(self) -> InputMoments:
        return {}


def _built(bench: Bench, candidate: Candidate, schedule: Schedule, *, refitted: bool) -> Built:
    builder = bench.evaluator.builder
    if not refitted:
        parts = {field.name: getattr(builder, field.name) for field in fields(builder)}
        builder = CutAlone(**parts)
    return builder.build(candidate, schedule)


def report() -> None:
    """Within-band tau with a bootstrap interval over candidates, level, and seconds."""
    started = time.monotonic()
    with Store(CACHE / "proxy.sqlite") as store:
        results = [v for k, v in store.all("proxy").items() if k.startswith("result/")]
    rng = np.random.default_rng(0)
    full = [result["full"]["refitted"] for result in results]
    for result, drop in zip(results, _foreseen(results, rng), strict=True):
        result["foreseen"] = drop
    rows = [["known by", "within-band tau (95 %)", "mean error of level", "seconds"]]
    found = {}
    for name in (*SHORT, "foreseen"):
        told = [_told(result, name) for result in results]
        tau, (low, high) = _tau(results, told, full, rng)
        short = f"short, {IN_RUNS if name == 'foreseen' else name}"
        seconds = stats.median([result["seconds"][short] for result in results])
        level = float(np.mean(np.abs(np.array(told) - full)))
        found[name] = {
            "tau": tau,
            "tau_ci95": [low, high],
            "mean_level_error": level,
            "seconds": seconds,
        }
        rows.append([name, f"{tau:.2f} ({low:.2f}-{high:.2f})", f"{level:.4f}", f"{seconds:.1f}"])
    print_table(rows)
    pairs = [result["full"] for result in results if "cut" in result["full"]]
    after = {name: float(np.mean([pair[name] for pair in pairs])) for name in FULL}
    print(f"after {FULL_STEPS} steps, {len(pairs)} candidates: {after}")
    value = {
        "bands_speedup": BANDS,
        "candidates": len(results),
        "truth": f"drop on the test split after {FULL_STEPS} steps, scored by ONNX Runtime",
        "threads": 1,
        "mean_final_drop": after,
        "candidates_also_without_refit": len(pairs),
        "known_by": found,
        "results": results,
    }
    write_result("proxy", value, started=started)


def _told(result: dict[str, Any], name: str) -> float:
    return float(result["foreseen"] if name == "foreseen" else result["short"][name])


def _foreseen(results: list[dict[str, Any]], rng: np.random.Generator) -> list[float]:
    """Each candidate's final drop, learned from a few of the others."""
    found = []
    for index, result in enumerate(results):
        others = [other for number, other in enumerate(results) if number != index]
        taught = rng.choice(len(others), min(LESSONS, len(others)), replace=False)
        lessons = tuple(
            Lesson(
                short_drop=others[i]["short"][IN_RUNS],
                speedup=others[i]["speedup"],
                steps=FULL_STEPS,
                drop=others[i]["full"]["refitted"],
            )
            for i in taught
        )
        foresight = Foresight(unit=UNIT, first_steps=FULL_STEPS, lessons=lessons)
        short, speedup = result["short"][IN_RUNS], result["speedup"]
        found.append(foresight.of(short_drop=short, speedup=speedup, steps=FULL_STEPS).drop)
    return found


def _tau(
    results: list[dict[str, Any]], told: list[float], full: list[float], rng: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """Mean over the bands of Kendall's tau-b, and its interval over resampled candidates."""
    bands = np.array([result["band"] for result in results])
    pairs = np.array([told, full])

    def within(chosen: np.ndarray[Any, Any]) -> float:
        taus = []
        for band in range(len(BANDS)):
            inside = pairs[:, chosen[bands[chosen] == band]]
            if inside.shape[1] >= 3:
                taus.append(stats.kendall(inside[0].tolist(), inside[1].tolist()))
        return float(np.mean(taus))

    everything = np.arange(len(results))
    resampled = [within(rng.integers(0, len(results), len(results))) for _ in range(2000)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return within(everything), (float(low), float(high))


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        prepare()
    elif sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["report"]:
        report()
    else:
        sys.exit(__doc__)
