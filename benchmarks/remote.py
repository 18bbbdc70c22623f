"""A board behind a real sshd: what a session costs, what faults cost, and whether figures agree.

    python benchmarks/remote.py cost|faults|demo

The board is this machine: an sshd on loopback (``cost``, ``demo``) or in a network namespace whose
link is cut (``faults``, needs root), with a Python that has numpy and ONNX Runtime only.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from board import Board, board
from common import CACHE, print_table, write_result
from remote_faults import MODEL, TIMED, broken

from hwloop import api
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile, resolve
from hwloop.measure.session import DeviceSession
from hwloop.runtimes.graph import OnnxModel

REPEATS = 20


@contextmanager
def reachable(*, namespace: bool) -> Iterator[tuple[Board, TargetProfile]]:
    """A running board, found by this process's ``ssh``, and its profile."""
    with tempfile.TemporaryDirectory() as folder, board(Path(folder), namespace=namespace) as made:
        os.environ["PATH"] = f"{made.folder / 'bin'}:{os.environ['PATH']}"
        profile = replace(resolve("cpu", host="board"), python=str(made.python), reconnect_s=60.0)
        yield made, profile


# --------------------------------------------------------------------------------- cost


def cost() -> dict[str, Any]:
    """Seconds to connect, and what ssh adds to one warm measurement beside the timing itself."""
    with reachable(namespace=False) as (_, there):
        connects = []
        for _ in range(REPEATS):
            started = time.monotonic()
            with DeviceSession(there):
                connects.append(time.monotonic() - started)
        walls: dict[str, list[float]] = {"local": [], "ssh": []}
        with DeviceSession(load_profile("cpu")) as here, DeviceSession(there) as far:
            for number in range(2 * REPEATS):
                pairs = [("local", here), ("ssh", far)]
                for name, session in pairs if number % 2 else reversed(pairs):
                    walls[name].append(_beside_timing_ms(session))
    local, ssh = statistics.median(walls["local"]), statistics.median(walls["ssh"])
    found = {
        "connect_s": {"median": statistics.median(connects), "largest": max(connects)},
        "beside_timing_ms": {"local": local, "ssh": ssh},
        "ssh_adds_ms": ssh - local,
        "repeats": REPEATS,
    }
    print_table(
        [
            ["what", "median"],
            ["connect", f"{found['connect_s']['median']:.2f} s"],  # type: ignore[index]
            ["a measurement beside its timing, local", f"{local:.1f} ms"],
            ["the same over ssh", f"{ssh:.1f} ms"],
        ]
    )
    return found


def _beside_timing_ms(session: DeviceSession) -> float:
    started = time.monotonic()
    found = session.measure(MODEL, MODEL, protocol=TIMED, reference_latency_ms=0.0)
    wall_ms = (time.monotonic() - started) * 1000
    # A sample is as many runs as fill sample_s, so that is what it took.
    return wall_ms - 2 * len(found.samples_ms) * TIMED.sample_s * 1000


# ------------------------------------------------------------------------------- faults


def faults() -> dict[str, Any]:
    """Break the session in every way while rows are measured; count rows and processes."""
    with reachable(namespace=True) as (made, profile):
        found = broken(made, profile)
    header = ["fault", "times", "rows lost or doubled", "left on the board", "slowest"]
    body = [
        [name, str(t.repeats), str(t.rows_wrong), str(t.left_on_board), f"{max(t.seconds):.1f} s"]
        for name, t in found.items()
    ]
    print_table([header, *body])
    return {name: vars(tally) for name, tally in found.items()}


# --------------------------------------------------------------------------------- demo


def demo() -> dict[str, Any]:
    """The bundled demo over ssh; then its network against the dense one, here and there in turn."""
    from hwloop.measure.progress import ConsoleProgress

    run = CACHE / "remote-demo"
    with reachable(namespace=False) as (made, profile):
        path = made.profile(made.folder / "there.toml", runtime="onnxruntime")
        report = api.optimize(target=str(path), run=run, progress=ConsoleProgress())
        dense = OnnxModel((run / "dense.onnx").read_bytes())
        best = OnnxModel((run / "best" / "model.onnx").read_bytes())
        speedups: dict[str, list[float]] = {"local": [], "ssh": []}
        protocol = profile.protocols.final
        with DeviceSession(load_profile("cpu")) as here, DeviceSession(profile) as there:
            for number in range(4):
                pairs = [("local", here), ("ssh", there)]
                for name, session in pairs if number % 2 else reversed(pairs):
                    found = session.measure(
                        best, dense, protocol=protocol, reference_latency_ms=0.0
                    )
                    speedups[name].append(1 / found.ratio)
    medians = {name: statistics.median(values) for name, values in speedups.items()}
    difference = medians["ssh"] / medians["local"] - 1
    print_table(
        [
            ["where", "speedup of the same network"],
            *([name, f"{value:.3f}x"] for name, value in medians.items()),
            ["difference", f"{difference:+.2%}"],
        ]
    )
    return {
        "report": {key: report["best"][key] for key in ("speedup", "speedup_ci95", "metric_drop")},
        "goal_met": report["goal"]["met"],
        "wall_s": report["search"]["wall_s"],
        "speedups": speedups,
        "difference": difference,
    }


if __name__ == "__main__":
    parts = {"cost": cost, "faults": faults, "demo": demo}
    if len(sys.argv) != 2 or sys.argv[1] not in parts:
        sys.exit(__doc__)
    began = time.monotonic()
    write_result(f"remote_{sys.argv[1]}", parts[sys.argv[1]](), started=began)
