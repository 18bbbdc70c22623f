"""What faults of the link, the worker and the host cost; see remote.py."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from board import Board

from hwloop.findings import Fingerprint, Measurement, Protocol
from hwloop.measure import paired as measure
from hwloop.measure.profile import TargetProfile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing

HERE = Path(__file__).resolve().parent
TIMED = Protocol(
    warmup_s=0.0, rounds=1, sample_s=0.002, min_samples=20, max_samples=20, time_limit_s=5.0
)
MODEL = OnnxModel(writing("ort-x86").row_graph(REFERENCE), (REFERENCE,))
TIMES = {"cut": 5, "lose": 10, "kill": 10, "stop": 10, "host": 5}
ROWS = [
    LayerConfig(op="conv", in_shape=(1, channels, 14, 14), out_channels=width, kernel=(3, 3),
                padding=(1, 1), tail=("bias", "relu"))
    for channels in (8, 16, 24) for width in (8, 16, 24)
]  # fmt: skip


@dataclass(kw_only=True)
class Tally:
    """What one kind of fault did, over its repeats."""

    repeats: int = 0
    rows_wrong: int = 0
    left_on_board: int = 0
    seconds: list[float] = field(default_factory=list)


def broken(made: Board, profile: TargetProfile) -> dict[str, Tally]:
    """Every kind of fault, as often as TIMES says, on a board whose link can be cut."""
    rng = random.Random(0)  # noqa: S311 - when a fault strikes is no secret
    work: dict[str, tuple[int, Callable[[], Tally]]] = {
        "link cut, measuring": (TIMES["cut"], lambda: _rows(made, profile, rng, _cut)),
        "link cut, transferring": (TIMES["cut"], lambda: _transfer(made, profile, rng)),
        "link cut, building": (TIMES["cut"], lambda: _build(made, profile, rng)),
        "reply lost": (TIMES["lose"], lambda: _lost_reply(made, profile)),
        "worker killed": (TIMES["kill"], lambda: _rows(made, profile, rng, _kill)),
        "worker stopped": (TIMES["stop"], lambda: _rows(made, profile, rng, _stop)),
        "host killed": (TIMES["host"], lambda: _host(made, rng)),
    }
    found: dict[str, Tally] = {}
    for name, (times, once) in work.items():
        total = found[name] = Tally()
        for _ in range(times):
            one = once()
            total.repeats += 1
            total.rows_wrong += one.rows_wrong
            total.left_on_board += one.left_on_board
            total.seconds += one.seconds
        print(f"{name}: {total}", file=sys.stderr, flush=True)
    return found


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
            measure.build_rows(session, table, ROWS, runtime=writing("ort-x86"))
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
    model = OnnxModel(writing("ort-x86").row_graph(big), (big,))
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
        link = session._worker._link
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
        command = [sys.executable, "-c", _BUILD, str(profile), str(table), str(HERE)]
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
sys.path.insert(0, sys.argv[3])
from remote_faults import ROWS
from hwloop.measure import paired as measure
from hwloop.measure.profile import load_profile
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable
from hwloop.measure.session import DeviceSession

profile = load_profile(sys.argv[1])
with DeviceSession(profile) as session, Store(Path(sys.argv[2])) as store:
    table = LatencyTable(store, session.fingerprint, profile.protocols.row)
    measure.build_rows(session, table, ROWS, runtime=writing("ort-x86"))
"""
