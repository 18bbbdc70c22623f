"""Does a ratio repeat, also while others use the machine?

    python benchmarks/interference.py [REPEATS]

Pairs of different networks are compared by the bench protocol, a fresh worker each time: on the
machine as it is, beside a process that uses 10, 30 or 50 % of the same core in slices of 1 to
20 ms, beside one that copies memory on another core, and beside both. Every repeat goes through
all of them, so that each is spread over the whole time. In between, on the quiet machine, stand
the command ``hwloop bench`` with the demo's pair, and a timer of 30 lines that shares nothing with
hwloop (tests/data/plain_timer.py). A pair's quiet ratio is the median of its quiet repeats.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, write_result
from disturb import disturbed
from pairs import BY_MEMORY, write_pairs

from hwloop.measure import bench as benching
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress

TIMER = Path(__file__).parents[1] / "tests" / "data" / "plain_timer.py"
SLICES_MS = (1.0, 2.0, 5.0, 10.0, 20.0)
CONDITIONS: dict[str, dict[str, Any]] = {
    "quiet": {},
    "10 % of the core": {"duty": 0.1},
    "30 % of the core": {"duty": 0.3},
    "50 % of the core": {"duty": 0.5},
    "memory": {"hog": True},
    "30 % and memory": {"duty": 0.3, "hog": True},
}
BY_MEMORY_EVERY = 4

WITHIN = 0.02
COMMANDS, TIMERS = 30, 20
DEADLINE_S = 120


def compared(pair: list[Path]) -> dict[str, Any]:
    """One comparison, as ``hwloop bench`` makes it."""
    began = time.monotonic()
    record = benching.compare(pair, profile=load_profile("cpu"), progress=Progress())[1]
    kept = ("speedup", "speedup_ci95", "latency_ms", "samples", "stopped", "disturbance")
    return {
        **{name: record[name] for name in kept},
        "unstable": record["unstable"],
        "seconds": time.monotonic() - began,
    }


def command(pair: list[Path]) -> dict[str, Any]:
    """The same by the command, as a user types it."""
    began = time.monotonic()
    words = [sys.executable, "-m", "hwloop", "bench", *map(str, pair), "--target", "cpu", "--json"]
    record = json.loads(_output(words))[1]
    kept = {name: record[name] for name in ("speedup", "speedup_ci95", "unstable")}
    return {**kept, "seconds": time.monotonic() - began}


def beside_the_timer(pair: list[Path]) -> dict[str, Any]:
    """Both, one after the other."""
    record = compared(pair)
    plain = json.loads(_output([sys.executable, str(TIMER), *map(str, pair)]))
    return {
        "speedup": record["speedup"],
        "timer_speedup": plain["ratio"],
        "latency_ms": record["latency_ms"],
        "timer_ms": plain["b_ms"],
        "unstable": record["unstable"],
    }


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return done.stdout


def study(files: dict[str, list[Path]], repeats: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what, condition, record), repeat by repeat."""
    names = [name for name in files if name not in BY_MEMORY]
    for number in range(repeats):
        apart = BY_MEMORY if number % BY_MEMORY_EVERY == 0 else ()
        slice_ms = SLICES_MS[number % len(SLICES_MS)]
        for condition, how in CONDITIONS.items():
            for name in (*names, *apart):
                with disturbed(slice_ms=slice_ms, **how):
                    yield name, condition, {**compared(files[name]), "slice_ms": slice_ms}
        if number < COMMANDS:
            yield "command", "quiet", {**command(files[names[0]]), "at": time.time()}
        if number < TIMERS:
            name = names[number % len(names)]
            yield "timer", "quiet", {**beside_the_timer(files[name]), "pair": name}


def summary(records: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """By pair and condition: how often within 2 %, or unstable; how often the interval covers."""
    found: dict[str, Any] = {}
    for name, by_condition in records.items():
        quiet = float(np.median([record["speedup"] for record in by_condition["quiet"]]))
        found[name] = {"quiet_speedup": quiet}
        for condition, items in by_condition.items():
            errors = np.array([abs(item["speedup"] / quiet - 1) for item in items])
            unstable = np.array([bool(item["unstable"]) for item in items])
            covers = [i["speedup_ci95"][0] <= quiet <= i["speedup_ci95"][1] for i in items]
            found[name][condition] = {
                "n": len(items),
                "within_2_pct": float((errors <= WITHIN).mean()),
                "within_2_pct_or_unstable": float(((errors <= WITHIN) | unstable).mean()),
                "interval_covers": float(np.mean(covers)),
                "unstable": float(unstable.mean()),
                "median_abs_pct": float(np.median(errors)) * 100,
                "worst_pct": float(errors.max()) * 100,
            }
    return found


def between_sessions_pct(records: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, float]:
    """Robust standard deviation of the quiet repeats of each pair, in per cent."""
    found = {}
    for name, by_condition in records.items():
        logs = np.log([item["speedup"] for item in by_condition["quiet"]])
        found[name] = float(1.4826 * np.median(np.abs(logs - np.median(logs)))) * 100
    return found


def overall(found: dict[str, Any], names: list[str]) -> dict[str, dict[str, float]]:
    """Shares over all pairs, by condition."""
    keys = ("within_2_pct", "within_2_pct_or_unstable", "interval_covers", "unstable")
    return {
        condition: {
            key: float(np.mean([found[name][condition][key] for name in names])) for key in keys
        }
        for condition in CONDITIONS
    }


def table(by_pair: dict[str, Any]) -> list[list[str]]:
    """A line for each pair and condition."""
    header = ["pair", "condition", "n", "within 2 %", "or unstable", "covers", "unstable", "worst"]
    rows = [
        [
            name,
            condition,
            str(c["n"]),
            f"{c['within_2_pct']:.0%}",
            f"{c['within_2_pct_or_unstable']:.0%}",
            f"{c['interval_covers']:.0%}",
            f"{c['unstable']:.0%}",
            f"{c['worst_pct']:.2f} %",
        ]
        for name, by_condition in by_pair.items()
        for condition, c in by_condition.items()
        if condition != "quiet_speedup"
    ]
    return [header, *rows]


def recorded(repeats: int, *, started: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every record by what was compared and its condition, each told as it comes."""
    records: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_pairs(Path(folder))
        for what, condition, record in study(files, repeats):
            kept = records.setdefault(what, {}).setdefault(condition, [])
            kept.append(record)
            print(
                f"{time.monotonic() - started:6.0f} s  {what}, {condition}: "
                f"{record['speedup']:.3f}x {record['unstable']}",
                flush=True,
            )
    return records


def about_commands(commands: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the command's own answers are apart."""
    speedups = np.array([item["speedup"] for item in commands])
    middle = float(np.median(speedups))
    return {
        "n": len(commands),
        "minutes": (commands[-1]["at"] - commands[0]["at"]) / 60,
        "largest_over_least": float(speedups.max() / speedups.min()),
        "interval_covers_median": float(
            np.mean([c["speedup_ci95"][0] <= middle <= c["speedup_ci95"][1] for c in commands])
        ),
        "unstable": float(np.mean([bool(item["unstable"]) for item in commands])),
        "seconds_max": max(item["seconds"] for item in commands),
        "records": commands,
    }


def about_timers(timers: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the plain timer's ratios and latencies are from ours."""
    apart = [abs(item["timer_speedup"] / item["speedup"] - 1) for item in timers]
    late = [abs(item["timer_ms"] / item["latency_ms"] - 1) for item in timers]
    return {
        "n": len(timers),
        "ratio_within_2_pct": int(sum(value <= WITHIN for value in apart)),
        "ratio_worst_pct": max(apart) * 100,
        "latency_within_2_pct": int(sum(value <= WITHIN for value in late)),
        "latency_worst_pct": max(late) * 100,
        "records": timers,
    }


def main(repeats: int) -> None:
    started = time.monotonic()
    records = recorded(repeats, started=started)
    commands = records.pop("command")["quiet"]
    timers = records.pop("timer")["quiet"]
    by_pair = summary(records)
    result = {
        "repeats": repeats,
        "overall": overall(by_pair, [name for name in by_pair if name not in BY_MEMORY]),
        "between_sessions_pct": between_sessions_pct(records),
        "pairs": by_pair,
        "command": about_commands(commands),
        "timer": about_timers(timers),
        "records": records,
    }
    print_table(table(by_pair))
    write_result("interference", result, started=started)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
