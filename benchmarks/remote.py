"""A board behind a real sshd: what a session costs, what faults cost, and whether figures agree.

    python benchmarks/remote.py cost|faults|demo

The board is this machine: an sshd on loopback (``cost``, ``demo``) or in a network namespace whose
link is cut (``faults``, needs root), with a Python that has numpy and ONNX Runtime only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from board import Board, board
from common import CACHE, print_table, write_result

from hwloop import api
from hwloop.findings import Fingerprint, Measurement, Protocol
from hwloop.measure import paired as measure
from hwloop.measure.profile import TargetProfile, load_profile, resolve
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.rows import row_onnx

REPEATS = 20
TIMED = Protocol(
    warmup_s=0.0, rounds=1, sample_s=0.002, min_samples=20, max_samples=20, time_limit_s=5.0
)
MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
TIMES = {"cut": 5, "lose": 10, "kill": 10, "stop": 10, "host": 5}
ROWS = [
    LayerConfig(op="conv", in_shape=(1, channels, 14, 14), out_channels=width, kernel=(3, 3),
                padding=(1, 1), tail=("bias", "relu"))
    for channels in (8, 16, 24) for width in (8, 16, 24)
]  # fmt: skip


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


@dataclass(kw_only=True)
class Tally:
    """What one kind of fault did, over its repeats."""

    repeats: int = 0
    rows_wrong: int = 0
    left_on_board: int = 0
    seconds: list[float] = field(default_factory=list)


def faults() -> dict[str, Any]:
    """Break the session in every way while rows are measured; count rows and processes."""
    rng = random.Random(0)  # noqa: S311 - when a fault strikes is no secret
    found: dict[str, Tally] = {}
    with reachable(namespace=True) as (made, profile):
        work: dict[str, tuple[int, Callable[[], Tally]]] = {
            "link cut, measuring": (TIMES["cut"], lambda: _rows(made, profile, rng, _cut)),
            "link cut, transferring": (TIMES["cut"], lambda: _transfer(made, profile, rng)),
            "link cut, building": (TIMES["cut"], lambda: _build(made, profile, rng)),
            "reply lost": (TIMES["lose"], lambda: _lost_reply(made, profile)),
            "worker killed": (TIMES["kill"], lambda: _rows(made, profile, rng, _kill)),
            "worker stopped": (TIMES["stop"], lambda: _rows(made, profile, rng, _stop)),
            "host killed": (TIMES["host"], lambda: _host(made, rng)),
        }
        for name, (times, once) in work.items():
            total = found[name] = Tally()
            for _ in range(times):
                one = once()
                total.repeats += 1
                total.rows_wrong += one.rows_wrong
                total.left_on_board += one.left_on_board
                total.seconds += one.seconds
            print(f"{name}: {total}", file=sys.stderr, flush=True)
    header = ["fault", "times", "rows lost or doubled", "left on the board", "slowest"]
    body = [
        [name, str(t.repeats), str(t.rows_wrong), str(t.left_on_board), f"{max(t.seconds):.1f} s"]
        for name, t in found.items()
    ]
    print_table([header, *body])
    return {name: vars(tally) for name, tally in found.items()}


class _Counted(LatencyTable):
    """A table that knows how often each row came in."""

    def __init__(self, store: Store, fingerprint: Fingerprint, protocol: Protocol) -> None:
        super().__init__(store, fingerprint, protocol)
        self.added: list[str] = []

    def add(self, config: LayerConfig, measurement: Measurement) -> None:
        self.added.append(config.key())
        super().add(config, measurement)


def _rows(
    made: Board, profile: TargetProfile, rng: random.Random, strike: Callable[..., None]
) -> Tally:
    """Measure rows; the fault strikes at a random moment of it."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "t.sqlite") as store:
        with DeviceSession(profile) as session:
            table = _Counted(store, session.fingerprint, profile.protocols.row)
            striker = threading.Timer(rng.uniform(0.1, 2.0), strike, (made, session))
            started = time.monotonic()
            striker.start()
            measure.build_rows(session, table, ROWS)
            tally.seconds.append(time.monotonic() - started)
            striker.join()
            made.mend()
        expected = sorted(config.key() for config in {REFERENCE, EMPTY, *ROWS})
        tally.rows_wrong = int(sorted(table.added) != expected)
        tally.rows_wrong += abs(len(table.rows()) - len(expected))
    tally.left_on_board = 0 if made.gone_within(10) else len(made.workers())
    return tally


def _cut(made: Board, session: DeviceSession) -> None:
    made.cut()
    time.sleep(10.5)
    made.mend()


def _kill(made: Board, session: DeviceSession) -> None:
    for pid in made.workers():
        os.kill(pid, signal.SIGKILL)


def _stop(made: Board, session: DeviceSession) -> None:
    for pid in made.workers():
        os.kill(pid, signal.SIGSTOP)


def _transfer(made: Board, profile: TargetProfile, rng: random.Random) -> Tally:
    """Inputs on their way to the board when the link is cut; the outputs must be right."""
    tally = Tally()
    inputs = np.random.default_rng(0).standard_normal((1000, 32, 14, 14)).astype(np.float32)
    with DeviceSession(profile) as session:
        expected = session.infer(MODEL, inputs[:1])
        striker = threading.Timer(rng.uniform(0.0, 0.15), _cut, (made, session))
        started = time.monotonic()
        striker.start()
        found = session.infer(MODEL, inputs)
        tally.seconds.append(time.monotonic() - started)
        striker.join()
        tally.rows_wrong = int(len(found) != 1000 or not np.array_equal(found[:1], expected))
    tally.left_on_board = 0 if made.gone_within(10) else len(made.workers())
    return tally


def _build(made: Board, profile: TargetProfile, rng: random.Random) -> Tally:
    """A large graph, opened on the board when the link is cut."""
    tally = Tally()
    big = LayerConfig(op="linear", in_shape=(1, 4096), out_channels=8192, tail=("bias",))
    model = OnnxModel(row_onnx(big), (big,))
    with DeviceSession(profile) as session:
        session.build(model)
        striker = threading.Timer(rng.uniform(0.0, 0.1), _cut, (made, session))
        started = time.monotonic()
        striker.start()
        for _ in range(10):
            session.build(model)
        tally.seconds.append(time.monotonic() - started)
        striker.join()
    tally.left_on_board = 0 if made.gone_within(10) else len(made.workers())
    return tally


def _lost_reply(made: Board, profile: TargetProfile) -> Tally:
    """The host's ssh is stopped until the reply is on its way, then killed with the reply in it."""
    tally = Tally()
    replies = made.cache / "replies"
    with DeviceSession(profile) as session:
        session.build(MODEL)
        old = set(replies.iterdir())
        got: list[Any] = []

        def work() -> None:
            got.append(
                session.measure(MODEL, MODEL, protocol=TIMED, reference_latency_ms=1.0).samples_ms
            )

        started = time.monotonic()
        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.03)
        link = session._link
        if link is None:
            raise RuntimeError("the session is not open")
        os.kill(link._process.pid, signal.SIGSTOP)
        kept: list[Path] = []
        while not kept and time.monotonic() < started + 20:
            kept = [path for path in set(replies.iterdir()) - old if path.suffix == ".json"]
            time.sleep(0.01)
        samples = tuple(json.loads(kept[0].read_text())["result"]["samples_ms"])
        os.kill(link._process.pid, signal.SIGKILL)
        worker.join(60)
        tally.seconds.append(time.monotonic() - started)
        tally.rows_wrong = int(got != [samples])
    tally.left_on_board = 0 if made.gone_within(10) else len(made.workers())
    return tally


def _host(made: Board, rng: random.Random) -> Tally:
    """The host's process is killed while it measures; a repeat completes the table."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "t.sqlite"
        profile = made.profile(Path(folder) / "there.toml", runtime="onnxruntime")
        command = [sys.executable, "-c", _BUILD, str(profile), str(table)]
        first = subprocess.Popen(command, start_new_session=True)
        time.sleep(rng.uniform(2.5, 5.0))
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(10)
        started = time.monotonic()
        gone = made.gone_within(10)
        tally.seconds.append(time.monotonic() - started)
        tally.left_on_board = 0 if gone else len(made.workers())
        subprocess.run(command, check=True, timeout=120)
        expected = sorted(config.key() for config in {REFERENCE, EMPTY, *ROWS})
        with Store(table) as store:
            (name,) = store.all("population")
            tally.rows_wrong = int(sorted(store.all(f"row/{name}")) != expected)
    return tally


_BUILD = """
import sys
from pathlib import Path
from hwloop import measure
from hwloop.measure.profile import load_profile
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable
from hwloop.measure.session import DeviceSession
from remote import ROWS

profile = load_profile(sys.argv[1])
with DeviceSession(profile) as session, Store(Path(sys.argv[2])) as store:
    table = LatencyTable(store, session.fingerprint, profile.protocols.row)
    measure.build_rows(session, table, ROWS)
"""


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
