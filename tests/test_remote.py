"""A board at the other end of a real ssh: the same results, its losses, and what stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board import Board, needs_board
from graphs import row_onnx
from scoring import MapsTask, Peak, maps_model

from hwloop.errors import TargetError
from hwloop.findings import Measurement, Protocol
from hwloop.measure import link, worker
from hwloop.measure.hosts import parse_host
from hwloop.measure.link import LIMITS, Limits
from hwloop.measure.paired import baseline
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import REFERENCE
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit

pytestmark = [needs_board, pytest.mark.usefixtures("reachable")]

MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
LONG = Protocol(
    warmup_s=0.1, rounds=1, sample_s=0.01, max_samples=300, target_halfwidth=1e-9, time_limit_s=1.5
)
SHORT = Protocol(warmup_s=0.01, rounds=1, sample_s=0.001, time_limit_s=0.2)


def profile_of(
    there: Board, tmp_path: Path, body: str = "", *, runtime: str = "fake"
) -> TargetProfile:
    return load_profile(str(there.profile(tmp_path / "there.toml", body, runtime=runtime)))


def measure(session: DeviceSession) -> Measurement:
    return session.measure(MODEL, MODEL, protocol=SHORT, reference_latency_ms=1.0)


def test_a_model_runs_on_the_board_as_it_runs_here(there: Board, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((3, 32, 14, 14)).astype(np.float32)
    with DeviceSession(load_profile("cpu")) as session:
        expected = session.infer(MODEL, inputs)
    profile = profile_of(there, tmp_path, runtime="onnxruntime")
    with DeviceSession(profile) as session:
        assert session.fingerprint.runtime == "onnxruntime"
        assert np.array_equal(session.infer(MODEL, inputs), expected)
        found = baseline(session, MODEL, profile.protocols.loop)
        assert found.ratio == pytest.approx(1.0, abs=0.15)


def test_the_board_has_neither_torch_nor_hwloop(there: Board) -> None:
    for name in ("torch", "hwloop", "onnx", "execnet"):
        command = [there.python, "-c", f"import {name}"]
        done = subprocess.run(command, cwd="/", env={}, capture_output=True, check=False)
        assert done.returncode != 0


def test_connecting_takes_less_than_three_seconds(there: Board, tmp_path: Path) -> None:
    profile = profile_of(there, tmp_path, runtime="onnxruntime")
    started = time.monotonic()
    with DeviceSession(profile):
        assert time.monotonic() - started < 3


def test_only_a_private_cache_stays_on_the_board(there: Board, tmp_path: Path) -> None:
    before = {path for path in there.folder.rglob("*") if path.is_file()}
    with DeviceSession(profile_of(there, tmp_path)) as session:
        measure(session)
    left = {path for path in there.folder.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(there.cache) for path in left), left
    assert there.cache.stat().st_mode & 0o777 == 0o700


def test_two_sessions_never_measure_at_once(there: Board, tmp_path: Path) -> None:
    profile = profile_of(there, tmp_path)
    with DeviceSession(profile) as session:
        holder = session.state()["pid"]
        other = DeviceSession(profile)
        with pytest.raises(TargetError, match=f"measures on it .process {holder}"), other:
            pass
        assert measure(session).ratio > 0
    with DeviceSession(profile) as session:
        assert session.state()["pid"] != holder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_dies_is_replaced(
    there: Board, tmp_path: Path, number: signal.Signals
) -> None:
    with DeviceSession(profile_of(there, tmp_path)) as session:
        before = session.state()["pid"]
        os.kill(before, number)
        assert measure(session).ratio == pytest.approx(1.0, abs=0.01)
        assert session.state()["pid"] != before


def test_a_stopped_worker_is_noticed_killed_and_replaced(there: Board, tmp_path: Path) -> None:
    limits = Limits(worker_s=9, host_s=3.0, beat_s=0.5)
    with DeviceSession(profile_of(there, tmp_path), limits=limits) as session:
        before = session.state()["pid"]
        os.kill(before, signal.SIGSTOP)
        started = time.monotonic()
        assert measure(session).ratio == pytest.approx(1.0, abs=0.01)
        assert 3 < time.monotonic() - started < 9
        assert session.state()["pid"] != before
        assert before not in there.workers()


def test_a_stopped_worker_ends_with_its_session(there: Board, tmp_path: Path) -> None:
    with DeviceSession(profile_of(there, tmp_path)) as session:
        os.kill(session.state()["pid"], signal.SIGSTOP)
    assert there.gone_within(5)


def test_the_worker_ends_when_its_host_is_killed(there: Board, tmp_path: Path) -> None:
    there.profile(tmp_path / "there.toml")
    script = (
        "import sys, time\n"
        "from hwloop.measure.profile_file import load_profile\n"
        "from hwloop.measure.session import DeviceSession\n"
        f"with DeviceSession(load_profile({str(tmp_path / 'there.toml')!r})) as session:\n"
        "    print('open', flush=True)\n"
        "    time.sleep(60)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    host = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert host.stdout is not None
    assert host.stdout.readline() == b"open\n"
    assert there.workers()
    host.kill()
    host.wait(10)
    assert there.gone_within(10)


def test_a_reply_lost_in_flight_is_not_measured_again(there: Board, tmp_path: Path) -> None:
    """The host's ssh is stopped until the reply is on its way, then killed with the reply in it."""
    with DeviceSession(profile_of(there, tmp_path, runtime="onnxruntime")) as session:
        session.build(MODEL)
        before = session.state()["pid"]
        replies = there.cache / "replies"
        old = set(replies.iterdir())
        ssh = session._worker._link._process.pid
        measured: list[Measurement] = []

        def slow() -> None:
            found = session.measure(MODEL, MODEL, protocol=LONG, reference_latency_ms=1.0)
            measured.append(found)

        work = threading.Thread(target=slow)
        work.start()
        time.sleep(0.5)  # the request is out, the reply is not
        os.kill(ssh, signal.SIGSTOP)
        (kept,) = wait_for(lambda: complete(set(replies.iterdir()) - old))
        samples = json.loads(kept.read_text())["result"]["samples_ms"]
        os.kill(ssh, signal.SIGKILL)
        work.join(30)
        assert measured[0].samples_ms == tuple(samples)
        assert session.state()["pid"] != before
        assert not kept.exists(), "the host has it, so the board may forget it"


def test_the_limits_that_users_have_leave_room_for_beats() -> None:
    assert LIMITS["ssh"] == Limits(worker_s=9, start_s=120, host_s=15.0, beat_s=2.0)
    assert LIMITS["local"] == replace(LIMITS["ssh"], worker_s=60)


def test_a_start_that_holds_the_interpreter_for_long_is_waited_for(
    there: Board, tmp_path: Path
) -> None:
    """As importing TensorRT from a cold SD card does: no beat is answered, no alarm put off."""
    hold_s = 25
    assert hold_s > LIMITS["ssh"].host_s + LIMITS["ssh"].beat_s
    profile = replace(profile_of(there, tmp_path), settings={"start_hold_s": hold_s})
    started = time.monotonic()
    with DeviceSession(profile) as session:
        assert hold_s < time.monotonic() - started < hold_s + 15
        assert session._worker._lost_pids == []
        assert measure(session).ratio == pytest.approx(1.0, abs=0.01)


def interpreter(path: Path, there: Board, first: str) -> str:
    """A Python of the board that behaves another way the first time, and counts its starts."""
    calls = path.with_suffix(".calls")
    path.write_text(
        f"#!/bin/sh\necho . >> {calls}\n"
        f'[ "$(wc -l < {calls})" = 1 ] && exec {first} {there.python} "$@"\n'
        f'exec {there.python} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def starts(python: str) -> int:
    return len(Path(python).with_suffix(".calls").read_text().splitlines())


def test_a_worker_that_is_lost_at_first_contact_is_started_once_more(
    there: Board, tmp_path: Path
) -> None:
    python = interpreter(tmp_path / "python", there, "timeout -s KILL 0.6")
    profile = replace(profile_of(there, tmp_path), python=python, settings={"start_hold_s": 1})
    with DeviceSession(profile) as session:
        assert measure(session).ratio > 0
        (lost,) = (
            session._worker._lost_pids
        )  # known before its first word, so that a stuck one can be ended
        assert lost > 0
    assert starts(python) == 2


def test_a_board_that_says_what_it_lacks_is_not_asked_again(there: Board, tmp_path: Path) -> None:
    python = interpreter(tmp_path / "python", there, "env")
    profile = replace(profile_of(there, tmp_path), python=python, runtime="tensorrt")
    with pytest.raises(TargetError, match="tensorrt"), DeviceSession(profile):
        pass
    assert starts(python) == 1


def test_a_board_that_cannot_be_reached_is_not_called_again(
    there: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def counted(*arguments: Any, **options: Any) -> link.Link:
        calls.append(arguments)
        return link.open_link(*arguments, **options)

    monkeypatch.setattr(worker, "open_link", counted)
    profile = replace(profile_of(there, tmp_path), host=parse_host("127.0.0.1:1"))
    with pytest.raises(TargetError, match="does not answer"), DeviceSession(profile):
        pass
    assert len(calls) == 1


def test_scoring_takes_memory_for_a_chunk_and_not_for_all(there: Board, tmp_path: Path) -> None:
    """340 MB of outputs and 160 MB of inputs; before, either side held several times as much."""
    task, model = MapsTask(260), OnnxModel(maps_model())
    with DeviceSession(profile_of(there, tmp_path)) as session:
        with Peak(os.getpid()) as here, Peak(session.state()["pid"]) as far:
            split = ScoredSplit(task, task.search())
            outputs = split.finite_outputs(lambda inputs: session.infer(model, inputs))
            assert split.metric(outputs) == 1.0
            assert split.upper_drop(outputs, outputs, drop=0.0) == 0.0
        assert outputs.nbytes > 340_000_000
        assert here.anon_bytes < 300 << 20
        assert here.resident_bytes < 400 << 20
        assert far.anon_bytes < 250 << 20
        assert session._worker._lost_pids == []


def complete(paths: set[Path]) -> set[Path]:
    return {path for path in paths if path.suffix == ".json"}


def wait_for(find: Callable[[], set[Path]], seconds: float = 10) -> set[Path]:
    end = time.monotonic() + seconds
    while not find() and time.monotonic() < end:
        time.sleep(0.02)
    return find()
