"""Which statistic of raw runs tells the quiet ratio? The study that the harness rests on.

    python benchmarks/estimators.py [REPEATS]

Single runs of each pair of benchmarks/interference.py are recorded in turns, in eight rounds of
fresh sessions, by the wall's clock and by the thread's own, on the quiet machine and beside made
disturbers. Every estimate is computed from the same runs; its error is against its own median over
the quiet repeats, so that none has the advantage of defining the truth.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, write_result
from disturb import disturbed
from interference import CONDITIONS, SLICES_MS
from numpy.typing import NDArray
from pairs import BY_MEMORY, write_pairs

from hwloop.device.ort import OrtRuntime

ROUNDS, ROUND_S, TURN_S = 8, 0.3, 0.008
Array = NDArray[np.float64]
Round = tuple[Array, Array]
"""Milliseconds of single runs of the reference and of the faster network, equally many."""


def recorded(pair: list[Path]) -> dict[str, list[Round]]:
    """The rounds, by clock."""
    runtime = OrtRuntime({"threads": 1})
    found: dict[str, list[Round]] = {"wall": [], "thread": []}
    for _ in range(ROUNDS):
        runs = [runtime.bound_run(runtime.build(path.read_bytes(), {})) for path in pair]
        once_s = [_once_s(run) for run in runs]
        turn = max(1, min(math.ceil(TURN_S / min(once_s)), math.ceil(4 * TURN_S / max(once_s))))
        series: dict[str, tuple[list[float], list[float]]] = {c: ([], []) for c in found}
        sides, end = [0, 1], time.perf_counter() + ROUND_S
        while time.perf_counter() < end:
            for side in sides:
                for _ in range(turn):
                    wall, thread = time.perf_counter(), time.thread_time()
                    runs[side]()
                    series["thread"][side].append((time.thread_time() - thread) * 1000)
                    series["wall"][side].append((time.perf_counter() - wall) * 1000)
            sides.reverse()
        for clock, (slow, fast) in series.items():
            found[clock].append((np.array(slow), np.array(fast)))
    return found


def _once_s(run: Callable[[], None]) -> float:
    taken = []
    for _ in range(3):
        began = time.thread_time()
        run()
        taken.append(time.thread_time() - began)
    return max(min(taken), 1e-6)


def pooled(rounds: list[Round]) -> Round:
    return np.concatenate([r[0] for r in rounds]), np.concatenate([r[1] for r in rounds])


def of_pairs(rounds: list[Round]) -> float:
    slow, fast = pooled(rounds)
    return float(np.median(slow / fast))


def of_quantiles(share: float) -> Callable[[list[Round]], float]:
    def estimate(rounds: list[Round]) -> float:
        slow, fast = pooled(rounds)
        return float(np.quantile(slow, share) / np.quantile(fast, share))

    return estimate


def of_rounds(share: float) -> Callable[[list[Round]], float]:
    def estimate(rounds: list[Round]) -> float:
        ratios = [np.quantile(slow, share) / np.quantile(fast, share) for slow, fast in rounds]
        return float(np.median(ratios))

    return estimate


def of_modes(rounds: list[Round]) -> float:
    """The densest place of each series (half-sample mode; Robertson and Cryer, 1974)."""
    slow, fast = pooled(rounds)
    return _mode(slow) / _mode(fast)


def _mode(values: Array) -> float:
    logs = np.sort(np.log(values))
    while len(logs) > 3:
        half = (len(logs) + 1) // 2
        widths = logs[half - 1 :] - logs[: len(logs) - half + 1]
        start = int(np.argmin(widths))
        logs = logs[start : start + half]
    return float(np.exp(logs.mean()))


ESTIMATES: dict[str, Callable[[list[Round]], float]] = {
    "median of paired ratios": of_pairs,
    "ratio of medians": of_quantiles(0.5),
    "ratio of 25 % quantiles": of_quantiles(0.25),
    "ratio of 10 % quantiles": of_quantiles(0.1),
    "ratio of 5 % quantiles": of_quantiles(0.05),
    "ratio of 2 % quantiles": of_quantiles(0.02),
    "ratio of minima": of_quantiles(0.0),
    "ratio of modes": of_modes,
    "median over rounds, 10 %": of_rounds(0.1),
    "median over rounds, 5 %": of_rounds(0.05),
    "median over rounds, 2 %": of_rounds(0.02),
}


def main(repeats: int) -> None:
    started = time.monotonic()
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_pairs(Path(folder))
        everywhere = os.sched_getaffinity(0)
        for number in range(repeats):
            for condition, how in CONDITIONS.items():
                slice_ms = SLICES_MS[number % len(SLICES_MS)]
                for name, pair in files.items():
                    with disturbed(slice_ms=slice_ms, **how):
                        os.sched_setaffinity(0, {max(everywhere)})
                        rounds = recorded(pair)
                        os.sched_setaffinity(0, everywhere)
                    for clock, series in rounds.items():
                        for label, estimate in ESTIMATES.items():
                            by_pair = found.setdefault((clock, label), {})
                            kept = by_pair.setdefault(name, {}).setdefault(condition, [])
                            kept.append(estimate(series))
                print(f"{time.monotonic() - started:6.0f} s  {number} {condition}", flush=True)
    errors = {key: _errors_pct(by_pair) for key, by_pair in found.items()}
    rows = [["estimate", "clock", *CONDITIONS]]
    for (clock, label), by_condition in errors.items():
        cells = [f"{c['median']:.1f} / {c['worst']:.1f} %" for c in by_condition.values()]
        rows.append([label, clock, *cells])
    print("error, median / worst over pairs and repeats")
    print_table(rows)
    result: dict[str, Any] = {
        "repeats": repeats,
        "left_out": BY_MEMORY,
        "errors_pct": [
            {"estimate": label, "clock": clock, "by_condition": by_condition}
            for (clock, label), by_condition in errors.items()
        ],
        "ratios": [
            {"estimate": label, "clock": clock, "by_pair": by_pair}
            for (clock, label), by_pair in found.items()
        ],
    }
    write_result("estimators", result, started=started)


def _errors_pct(by_pair: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    found = {}
    for condition in CONDITIONS:
        errors = [
            abs(value / float(np.median(by_condition["quiet"])) - 1) * 100
            for name, by_condition in by_pair.items()
            for value in by_condition[condition]
            if name not in BY_MEMORY
        ]
        found[condition] = {"median": float(np.median(errors)), "worst": max(errors)}
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
