"""A session with a real worker process: results, losses, deadlines, and what is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from graphs import row_onnx
from scoring import MapsTask, Peak, maps_model

from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Measurement, Protocol
from hwloop.measure import chunks, link, worker
from hwloop.measure.exchange import Exchange
from hwloop.measure.link import LIMITS
from hwloop.measure.paired import baseline, build_rows
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import REFERENCE, LatencyTable
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing
from hwloop.tasks.score import ScoredSplit

ORT = writing("ort-x86")
MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
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
            session.build(OnnxModel(b"no graph"))
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
    limits = replace(LIMITS["local"], host_s=3.0, beat_s=0.5)
    with DeviceSession(load_profile("fake"), limits=limits) as session:
        session.infer(MODEL, inputs[:1])
        stopped = session.state()["pid"]
        os.kill(stopped, signal.SIGSTOP)
        started = time.monotonic()
        assert len(session.infer(MODEL, inputs)) == 320
        assert 3 < time.monotonic() - started < 13
        assert gone_within(stopped, 1)


def test_a_worker_that_died_between_requests_is_the_targets_failure() -> None:
    with DeviceSession(load_profile("fake")) as session:
        os.kill(session.state()["pid"], signal.SIGKILL)
        with pytest.raises(TargetError, match=r"(worker died during|closed.* before) 'state'"):
            session.state()


def test_a_target_that_comes_back_changed_stops_the_run() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        pid = session.state()["pid"]
        session._worker.profile = replace(session.profile, settings={"threads": 2})
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TargetError, match="came back as another machine"):
            measure(session)
        successor = session._worker._pid
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


def test_a_worker_that_can_do_no_more_is_replaced_and_the_request_repeated() -> None:
    """As after an illegal address: every later call of CUDA in that process would fail."""
    with DeviceSession(faulty("compare", "lost", after=2, times=1)) as session:
        before = session.state()["pid"]
        assert measure(session).ratio > 0
        assert measure(session).ratio > 0
        assert session.state()["pid"] != before
        assert gone_within(before, 2)


def test_a_candidate_after_which_two_workers_can_do_no_more_fails_with_the_reason() -> None:
    with DeviceSession(faulty("compare", "lost")) as session:
        with pytest.raises(CandidateError, match="lost 2 times: lost: the GPU cannot be used"):
            measure(session)
        assert session.build(MODEL) >= 0


def test_what_the_first_worker_derived_holds_for_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidate and reference must not get different limits because a worker was replaced."""
    given: list[dict[str, Any]] = []

    def watched(profile: TargetProfile, options: dict[str, Any], limits: Any) -> link.Link:
        given.append(options["settings"])
        return link.open_link(profile, options, limits)

    monkeypatch.setattr(worker, "open_link", watched)
    settings = {"fixed": {"workspace_mib": 512, "tactic_dram_mib": 2048}, "tactic_dram_mib": 1024}
    with DeviceSession(replace(load_profile("fake"), settings=settings)) as session:
        os.kill(session.state()["pid"], signal.SIGKILL)
        measure(session)
    first, second = given
    assert "workspace_mib" not in first
    assert second["workspace_mib"] == 512
    assert second["tactic_dram_mib"] == 1024  # what the profile says comes first


def test_a_session_knows_how_long_the_imports_took() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        assert set(session.import_s) == {"numpy", "onnxruntime"}
        assert all(0 < seconds < 60 for seconds in session.import_s.values())
    with pytest.raises(TargetError, match="not open"):
        _ = DeviceSession(load_profile("fake")).import_s


def test_what_a_runtime_does_not_have_is_absent_or_said() -> None:
    with DeviceSession(load_profile("cpu")) as session:
        assert session.copies(MODEL) is None
        assert session.launch_floor(MODEL) is None
        for ask in (session.layer_profile, session.engine):
            with pytest.raises(CandidateError, match="onnxruntime has no engines"):
                ask(MODEL)


def test_a_file_is_another_model_as_a_row() -> None:
    row = OnnxModel(MODEL.data, MODEL.configs, row=True)
    assert "row" not in MODEL.hints
    assert row.hints == {**MODEL.hints, "row": True}
    with DeviceSession(load_profile("fake")) as session:
        session.build(MODEL)
        session.build(row)
        session.forget(row)
        before = session.state()["pid"]
        session.build(MODEL)
        assert session.state()["pid"] == before


def fail_holding(session: DeviceSession, first: Callable[[], Any]) -> None:
    with session.holding(MODEL):
        session.build(MODEL)
        first()
        raise RuntimeError("on the way")


def test_a_held_model_is_forgotten_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    request = Exchange.request

    def watched(self: Exchange, verb: str, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if verb in ("put_model", "build", "forget"):
            asked.append((verb, body.get("digest") if verb == "forget" else body["model"]))
        return request(self, verb, body, *args, **kwargs)

    monkeypatch.setattr(Exchange, "request", watched)
    once = [("put_model", MODEL.key), ("build", MODEL.key), ("forget", MODEL.key)]
    with DeviceSession(load_profile("fake")) as session:
        with session.holding(MODEL) as model:
            session.build(model)
            session.build(model)
        assert asked == [*once[:2], *once[1:]]
        asked.clear()
        with pytest.raises(RuntimeError, match="on the way"):
            fail_holding(session, lambda: None)
        assert asked == once
        asked.clear()
        with session.holding(MODEL):
            pass  # it never went there
        assert asked == []


def interrupt_holding(session: DeviceSession, ends: type[BaseException]) -> None:
    with session.holding(MODEL):
        session.build(MODEL)
        os.kill(session.state()["pid"], signal.SIGSTOP)  # it would not answer
        raise ends


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_an_interruption_asks_nothing_of_a_device_at_work(ends: type[BaseException]) -> None:
    with DeviceSession(load_profile("fake")) as session:
        before = time.monotonic()
        with pytest.raises(ends):
            interrupt_holding(session, ends)
        assert time.monotonic() - before < 2


def test_holding_hides_no_error_behind_a_lost_worker() -> None:
    """Where the worker is lost as well, what was raised within is what is heard of."""
    with DeviceSession(load_profile("fake")) as session:
        with pytest.raises(RuntimeError, match="on the way"):
            fail_holding(session, lambda: os.kill(session.state()["pid"], signal.SIGKILL))
        assert measure(session).ratio > 0


def test_an_engine_arrives_as_it_was_built() -> None:
    profile = replace(load_profile("fake"), settings={"engine_bytes": 3_000_001})
    with DeviceSession(profile) as session:
        engine = session.engine(MODEL)
    assert len(engine.data) == 3_000_001
    assert hashlib.sha256(engine.data).hexdigest() == engine.sha256


def test_scoring_takes_memory_for_a_chunk_and_not_for_all() -> None:
    task, model = MapsTask(260), OnnxModel(maps_model())
    with DeviceSession(load_profile("fake")) as session:
        with Peak(os.getpid()) as here, Peak(session.state()["pid"]) as worker:
            split = ScoredSplit(task, task.search())
            assert split.score(lambda inputs: session.infer(model, inputs)) == 1.0
        assert here.anon_bytes < 300 << 20
        assert here.resident_bytes < 400 << 20
        assert worker.anon_bytes < 250 << 20
        assert session._worker._lost_pids == []


def test_inputs_go_in_chunks_that_outputs_of_their_size_fit_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 3 * 32 * 14 * 14 * 4)
    inputs = np.random.default_rng(0).standard_normal((8, 32, 14, 14)).astype(np.float32)
    sizes = []
    with DeviceSession(load_profile("fake")) as session:
        sent = session._chunks.chunk

        def watched(model: OnnxModel, chunk: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            sizes.append(len(chunk))
            return sent(model, chunk)

        monkeypatch.setattr(session._chunks, "chunk", watched)
        found = session.infer(MODEL, inputs)
        assert sizes == [1, 3, 3, 1]
        monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 1 << 30)
        assert np.array_equal(session.infer(MODEL, inputs), found)
        assert sizes == [1, 3, 3, 1, 8]


def test_outputs_that_change_their_shape_on_the_way_are_nonsense() -> None:
    inputs = np.ones((2, 32, 14, 14), np.float32)
    with DeviceSession(load_profile("fake")) as session:
        session.infer(MODEL, inputs)
        size_bytes, dtype, shape = session._chunks.outputs[MODEL.key]
        session._chunks.outputs[MODEL.key] = (size_bytes, dtype, (*shape, 2))
        with pytest.raises(CandidateError, match="after others"):
            session.infer(MODEL, inputs)


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
        assert (
            build_rows(session, table, [config], runtime=ORT) == 3
        )  # and the reference and the empty row
        assert build_rows(session, table, [config], runtime=ORT) == 0
