"""What only the hardware can tell: ``make test-target TARGET=cuda [HOST=me@board]``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hwloop import api
from hwloop.compress.methods import describe
from hwloop.compress.subject import Subject, subject
from hwloop.measure import paired as measure
from hwloop.measure.checking import check_target
from hwloop.measure.doctor.engines import Line, Task, examine
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import resolve
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable
from hwloop.records import Action
from hwloop.run.table_check import unrecovered
from hwloop.task import load_model
from hwloop.tasks.load import load_task

pytestmark = pytest.mark.hardware

MAX_FP16_DIFFERENCE = 0.02
MIN_AGREEMENT = 0.95
MAX_CROSS_CHECK = 0.15

HALF, INT8 = Action(kind="prune", amount=0.5), Action(precision="int8")
HALF_INT8 = Action(kind="prune", amount=0.5, precision="int8")


@pytest.fixture(scope="module")
def profile(pytestconfig: pytest.Config) -> TargetProfile:
    host = pytestconfig.getoption("--host")
    return resolve(pytestconfig.getoption("--target"), host=host)


@pytest.fixture(scope="module")
def session(profile: TargetProfile) -> Iterator[DeviceSession]:
    with DeviceSession(profile) as opened:
        yield opened


@pytest.fixture(scope="module")
def demo(profile: TargetProfile, session: DeviceSession) -> Subject:
    task = load_task("demo")
    return subject(
        task, load_model(task, None), rules_for(profile, session.isa), isa=session.isa, name="demo"
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_task("demo").search().batch(range(200))[0].numpy()


def engines_only(profile: TargetProfile) -> None:
    if profile.runtime != "tensorrt":
        pytest.skip(f"target {profile.name!r} has no engines: TensorRT only")


def test_the_worker_says_what_it_runs_on(session: DeviceSession, profile: TargetProfile) -> None:
    """The worker starts, and names device, runtime and settings."""
    found = session.fingerprint
    assert found.runtime == profile.runtime
    assert found.device
    assert found.runtime_version[0].isdigit()
    if profile.runtime == "tensorrt":
        assert {"sm_count", "cuda", "cuda_graph"} <= set(dict(found.settings))


def test_a_layer_is_as_fast_as_itself(profile: TargetProfile, session: DeviceSession) -> None:
    """The protocol's noise: the dense demo against itself is within 2 %."""
    task = load_task("demo")
    found = subject(
        task, load_model(task, None), rules_for(profile, session.isa), isa=session.isa, name="demo"
    )
    dense = found.model(found.dense_candidate, found.graph)
    measured = measure.baseline(session, dense, profile.protocols.loop)
    assert measured.ratio == pytest.approx(1.0, abs=0.02)
    assert measured.stable, measured.unstable


def test_the_dense_engine_gives_the_networks_outputs(
    session: DeviceSession, demo: Subject, images: np.ndarray
) -> None:
    """The dense engine's outputs equal the exported graph's, within FP16's precision."""
    found = session.infer(demo.model(demo.dense_candidate, demo.graph), images)
    local = onnxruntime.InferenceSession(demo.graph, providers=["CPUExecutionProvider"])
    expected = np.concatenate([local.run(None, {"input": image[None]})[0] for image in images])
    assert np.abs(found - expected).max() <= MAX_FP16_DIFFERENCE * np.abs(expected).max()


@pytest.mark.parametrize("action", [HALF, INT8, HALF_INT8], ids=describe)
def test_a_compressed_engine_gives_its_graphs_classes(
    session: DeviceSession, demo: Subject, images: np.ndarray, action: Action
) -> None:
    """Pruned and INT8 engines build, run, and pick the classes that their graphs pick."""
    model = unrecovered(demo, demo.uniform(action))
    local = onnxruntime.InferenceSession(model.data, providers=["CPUExecutionProvider"])
    expected = np.concatenate([local.run(None, {"input": image[None]})[0] for image in images])
    found = session.infer(model, images)
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= MIN_AGREEMENT


def test_an_int8_engine_is_int8(
    profile: TargetProfile, session: DeviceSession, demo: Subject
) -> None:
    """The inspector finds INT8 kernels where INT8 was asked for, and the file's SHA-256 holds."""
    engines_only(profile)
    engine = session.engine(unrecovered(demo, demo.uniform(INT8)))
    assert engine.audit["precisions"].get("INT8", 0) > 0, json.dumps(engine.audit)[:2000]


def test_trtexec_agrees(profile: TargetProfile, session: DeviceSession, demo: Subject) -> None:
    """NVIDIA's own tool times the dense engine within 15 % of hwloop."""
    engines_only(profile)
    dense = demo.model(demo.dense_candidate, demo.graph)
    ours = measure.baseline(session, dense, profile.protocols.loop).latency_ms
    theirs = session.cross_check(dense)["trtexec_ms"]
    assert theirs == pytest.approx(ours, rel=MAX_CROSS_CHECK)


def test_the_doctors_five_checks_find_something(
    profile: TargetProfile, session: DeviceSession
) -> None:
    """The doctor's five checks: each has figures, and no line of theirs fails."""
    engines_only(profile)
    task = Task(profile=profile, state=session.state(), progress=Progress())
    found = examine(Line(lambda: nullcontext(session)), task)
    checks = [check for finding in found for check in finding.checks]
    assert not [check for check in checks if check.state == "fail"]
    results = {finding.name: finding.result for finding in found}
    assert all(results[name] for name in ("import", "launch_floor", "int8_kinds")), results
    assert any(record["built"] for record in results["int8_kinds"]), checks


def test_rows_are_measured_on_it(
    profile: TargetProfile, session: DeviceSession, demo: Subject, tmp_path: Path
) -> None:
    """Twelve rows of the latency table are built, timed and stored."""
    rows = demo.reachable()[:12]
    with Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        measure.build_rows(session, table, rows, runtime=demo.runtime)
        assert not table.missing(rows)


def test_the_target_check_finds_nothing_that_fails(
    pytestconfig: pytest.Config, profile: TargetProfile
) -> None:
    """`hwloop target check` has no failing line."""
    if profile.runtime == "tensorrt" or profile.transport == "ssh":
        pytest.skip("the module's session holds the target's lock; run hwloop target check by hand")
    found = check_target(pytestconfig.getoption("--target"), host=pytestconfig.getoption("--host"))
    assert not [check for check in found["checks"] if check["state"] == "fail"]


def test_a_short_run_ends_with_a_report(
    pytestconfig: pytest.Config, session: DeviceSession, tmp_path: Path
) -> None:
    """`hwloop optimize` on the demo, four evaluations: measured, scored and saved on the target."""
    session.__exit__(None, None, None)  # frees the target's lock for the run
    report = api.optimize(
        target=pytestconfig.getoption("--target"),
        host=pytestconfig.getoption("--host"),
        run=tmp_path / "run",
        evaluations=4,
        loop_steps=2,
        final_steps=10,
        finalists=1,
    )
    assert report["best"]["latency_source"] == "device"
    assert report["baseline"]["metric"] > 0.9
