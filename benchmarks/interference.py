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
import torch
import torchvision
from common import print_table, write_result
from disturb import disturbed
from torch import nn

from hwloop.compress import space
from hwloop.compress.export import export_onnx
from hwloop.compress.subject import subject
from hwloop.measure import bench as benching
from hwloop.measure.profile import load_profile, rules_for
from hwloop.measure.progress import Progress
from hwloop.run.table_check import unrecovered
from hwloop.task import load_model
from hwloop.tasks.load import load_task

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
BY_MEMORY = ("ResNet-18, smaller input", "perceptron")
"""Their weights are used once or a few times each, and fill the cache that all cores, and all the
guests of the machine, share: what others do is in every sample. Fewer repeats, figures apart."""

BY_MEMORY_EVERY = 4

WITHIN = 0.02
COMMANDS, TIMERS = 30, 20
DEADLINE_S = 120


def conv(width: int, blocks: int) -> nn.Module:
    """Plain 3x3 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, *_head(width))


def separable(width: int, blocks: int) -> nn.Module:
    """Depthwise and 1x1 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, *_head(width))


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def dense_layers(width: int, count: int) -> nn.Module:
    """A multilayer perceptron: every weight is used once, so memory sets the pace."""
    layers: list[nn.Module] = [nn.Linear(256, width), nn.GELU()]
    for _ in range(count):
        layers += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*layers)


def write_pairs(folder: Path) -> dict[str, list[Path]]:
    """The reference and the faster network of each pair, as files."""
    torch.manual_seed(0)
    resnet, squeeze = torchvision.models.resnet18(), torchvision.models.squeezenet1_1()
    photo, thumb = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 192, 192)
    small, large = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 96, 96)
    flat, tiny = torch.zeros(1, 256), torch.zeros(1, 3, 48, 48)
    graphs = {
        "demo, widths halved": _demo_graphs(),
        "9 of 10 convolutions": [_graph(conv(32, 10), small), _graph(conv(32, 9), small)],
        "half as wide": [_graph(conv(64, 8), small), _graph(conv(32, 7), small)],
        "depthwise": [_graph(separable(64, 10), tiny), _graph(separable(48, 9), tiny)],
        "SqueezeNet, smaller input": [_graph(squeeze, photo), _graph(squeeze, thumb)],
        BY_MEMORY[0]: [_graph(resnet, large), _graph(resnet, small)],
        BY_MEMORY[1]: [_graph(dense_layers(1024, 4), flat), _graph(dense_layers(768, 4), flat)],
    }
    files = {}
    for number, (name, pair) in enumerate(graphs.items()):
        files[name] = [folder / f"{number}{side}.onnx" for side in "ab"]
        for path, graph in zip(files[name], pair, strict=True):
            path.write_bytes(graph)
    return files


def _graph(network: nn.Module, example: torch.Tensor) -> bytes:
    return export_onnx(network.eval(), example)


def _demo_graphs() -> list[bytes]:
    task = load_task("demo")
    found = subject(
        task, load_model(task, None), rules_for(load_profile("cpu"), ""), isa="", name="demo"
    )
    half = next(
        index
        for index, action in enumerate(space.ACTIONS)
        if (action.kind, action.amount, action.precision) == ("prune", 0.5, "base")
    )
    masks = space.masks(found.network, found.rules)
    choices = tuple(half if mask[half] else 0 for mask in masks)
    return [found.graph, unrecovered(found, choices).data]


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


def main(repeats: int) -> None:
    started = time.monotonic()
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
    commands = records.pop("command")["quiet"]
    timers = records.pop("timer")["quiet"]
    by_pair = summary(records)
    speedups = np.array([item["speedup"] for item in commands])
    middle = float(np.median(speedups))
    apart = [abs(item["timer_speedup"] / item["speedup"] - 1) for item in timers]
    late = [abs(item["timer_ms"] / item["latency_ms"] - 1) for item in timers]
    result = {
        "repeats": repeats,
        "overall": overall(by_pair, [name for name in by_pair if name not in BY_MEMORY]),
        "between_sessions_pct": between_sessions_pct(records),
        "pairs": by_pair,
        "command": {
            "n": len(commands),
            "minutes": (commands[-1]["at"] - commands[0]["at"]) / 60,
            "largest_over_least": float(speedups.max() / speedups.min()),
            "interval_covers_median": float(
                np.mean([c["speedup_ci95"][0] <= middle <= c["speedup_ci95"][1] for c in commands])
            ),
            "unstable": float(np.mean([bool(item["unstable"]) for item in commands])),
            "seconds_max": max(item["seconds"] for item in commands),
            "records": commands,
        },
        "timer": {
            "n": len(timers),
            "ratio_within_2_pct": int(sum(value <= WITHIN for value in apart)),
            "ratio_worst_pct": max(apart) * 100,
            "latency_within_2_pct": int(sum(value <= WITHIN for value in late)),
            "latency_worst_pct": max(late) * 100,
            "records": timers,
        },
        "records": records,
    }
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
    print_table([header, *rows])
    write_result("interference", result, started=started)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
