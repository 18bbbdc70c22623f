"""A session with a real worker process: results, losses, deadlines, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hwloop.errors import CandidateError, TargetError
from hwloop.measure import baseline, build_rows, doubts
from hwloop.profile import TargetProfile, load_profile
from hwloop.records import LayerConfig, Measurement, Protocol
from hwloop.rows import row_onnx
from hwloop.store import Store
from hwloop.table import REFERENCE, LatencyTable
from hwloop.targets import DeviceSession, Model

MODEL = Model(row_onnx(REFERENCE), (REFERENCE,))
SHORT = Protocol(warmup_s=0.01, rounds=2, sample_s=0.001, time_limit_s=0.5)


def faulty(verb: str, kind: str, **fault: Any) -> TargetProfile:
    profile = load_profile("fake")
    settings = {"faults": {verb: {"kind": kind, **fault}}}
    return replace(profile, settings=settings, call_timeout_s=1.0, build_timeout_s=1.0)


def measure(session: DeviceSession) -> Measurement:
    return session.measure(MODEL, MODEL, protocol=SHORT, reference_latency_ms=1.0)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_a_model_is_as_fast_as_itself_on_the_real_cpu() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        assert session.fingerprint.runtime_version == onnxruntime.__version__
        assert dict(session.fingerprint.settings)["threads"] == "1"
        found = baseline(session, MODEL, load_profile("cpu").protocols.loop)
        assert found.ratio == pytest.approx(1.0, abs=0.1)
        assert found.latency_ms > 0


def test_outputs_are_those_of_onnx_runtime_here() -> None:
    inputs = np.random.default_rng(0).standard_normal((3, 32, 14, 14)).astype(np.float32)
    local = onnxruntime.InferenceSession(MODEL.data, providers=["CPUExecutionProvider"])
    expected = np.concatenate([local.run(None, {"input": part[None]})[0] for part in inputs])
    with DeviceSession(load_profile("cpu")) as session:
        assert np.allclose(session.infer(MODEL, inputs), expected, atol=1e-5)


def test_a_graph_that_cannot_run_is_the_candidates_failure() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        with pytest.raises(CandidateError, match="build"):
            session.build(Model(b"no graph"))
        assert session.build(MODEL) > 0


def test_a_killed_worker_is_replaced_and_the_request_repeated() -> None:
    with DeviceSession(load_profile("fake")) as session:
        before = session.state()["pid"]
        os.kill(before, signal.SIGKILL)
        assert measure(session).ratio == pytest.approx(1.0, abs=0.01)
        assert session.state()["pid"] != before


@pytest.mark.parametrize("kind", ["die", "hang", "nonsense"])
def test_a_candidate_that_loses_two_workers_fails_with_its_stage(kind: str) -> None:
    with DeviceSession(faulty("compare", kind)) as session:
        with pytest.raises(CandidateError, match="run: the worker was lost 2 times"):
            measure(session)
        assert session.build(MODEL) >= 0


@pytest.mark.parametrize(("verb", "stage"), [("build", "build"), ("infer", "score")])
def test_the_stage_that_lost_its_workers_is_named(verb: str, stage: str) -> None:
    inputs = np.zeros((1, 32, 14, 14), np.float32)
    with DeviceSession(faulty(verb, "die")) as session:
        with pytest.raises(CandidateError) as caught:
            session.build(MODEL) if verb == "build" else session.infer(MODEL, inputs)
        assert caught.value.stage == stage


def test_a_send_to_a_stopped_worker_ends_and_is_repeated() -> None:
    """Its pipe holds 64 KiB; 8 MB of inputs would wait for ever."""
    inputs = np.ones((320, 32, 14, 14), np.float32)
    with DeviceSession(load_profile("fake")) as session:
        stopped = session.state()["pid"]
        os.kill(stopped, signal.SIGSTOP)
        started = time.monotonic()
        assert len(session.infer(MODEL, inputs)) == 320
        assert time.monotonic() - started < 25
        assert gone_within(stopped, 1)


def test_a_worker_that_died_between_requests_is_the_targets_failure() -> None:
    with DeviceSession(load_profile("fake")) as session:
        os.kill(session.state()["pid"], signal.SIGKILL)
        with pytest.raises(TargetError, match="the worker died during 'state'"):
            session.state()


def test_a_target_that_comes_back_changed_stops_the_run() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        pid = session.state()["pid"]
        session.profile = replace(session.profile, settings={"threads": 2})
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TargetError, match="came back as another machine"):
            measure(session)
        successor = session._pid
    assert gone_within(successor, 2)


def test_a_target_that_is_not_open_says_so() -> None:
    with pytest.raises(TargetError, match="not open"):
        _ = DeviceSession(load_profile("fake")).fingerprint


def test_a_refused_candidate_keeps_its_worker() -> None:
    with DeviceSession(faulty("compare", "refuse")) as session:
        before = session.state()["pid"]
        with pytest.raises(CandidateError, match="no kernel"):
            measure(session)
        assert session.state()["pid"] == before


def test_six_losses_in_a_row_are_the_targets_failure() -> None:
    with DeviceSession(faulty("compare", "die")) as session:
        for _ in range(2):
            with pytest.raises(CandidateError):
                measure(session)
        with pytest.raises(TargetError, match="6 times in a row") as caught:
            measure(session)
        assert "target check" in caught.value.hint


def test_a_success_between_them_ends_a_row_of_losses() -> None:
    with DeviceSession(faulty("compare", "die")) as session:
        for _ in range(4):
            with pytest.raises(CandidateError):
                measure(session)
            session.build(MODEL)


def test_no_worker_is_left_when_the_session_ends() -> None:
    with DeviceSession(load_profile("fake")) as session:
        pid = session.state()["pid"]
        assert alive(pid)
    assert gone_within(pid, 5)


@pytest.mark.parametrize("doing", ["time.sleep(60)", "measure(session)"])
def test_the_worker_ends_soon_after_its_host_was_killed(doing: str) -> None:
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_targets import DeviceSession, faulty, measure, replace\n"
        "profile = replace(faulty('compare', 'hang'), call_timeout_s=60)\n"
        "with DeviceSession(profile) as session:\n"
        "    print(session.state()['pid'], flush=True)\n"
        f"    {doing}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        time.sleep(0.3)
        host.send_signal(signal.SIGKILL)
    assert gone_within(pid, 2)


def test_rows_are_measured_once(tmp_path: Path) -> None:
    config = LayerConfig(op="linear", in_shape=(1, 8), out_channels=4, tail=("bias",))
    profile = load_profile("fake")
    with DeviceSession(profile) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        assert build_rows(session, table, [config]) == 3  # and the reference and the empty row
        assert build_rows(session, table, [config]) == 0


def test_drift_and_scatter_are_doubted() -> None:
    def found(samples: list[float]) -> Measurement:
        return Measurement(
            samples_ms=tuple(samples),
            reference_ms=(1.0,) * len(samples),
            reference_latency_ms=1.0,
        )

    assert doubts(found([1.0, 1.01] * 10)) == ()
    assert any("drift" in reason for reason in doubts(found([1.0] * 10 + [1.2] * 10)))
    assert any("scatter" in reason for reason in doubts(found([1.0, 1.5, 2.0, 0.5] * 5)))
