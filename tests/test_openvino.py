"""OpenVINO on this machine's CPU: whose time an inference takes, where it runs, what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import row_onnx
from onnx import TensorProto, helper
from tiny import environment

from hwloop.device import SettingsRefused, state
from hwloop.measure.table import REFERENCE

pytest.importorskip("openvino", reason='pip install "hwloop[openvino]"')

from hwloop.device.ov import OpenVinoRuntime

CORES = len(state.usable_cores())
ROW = row_onnx(REFERENCE)
INPUTS = np.random.default_rng(0).standard_normal((4, 32, 14, 14)).astype(np.float32)


def in_a_process(code: str, **extra: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(**extra),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_node(operator: str, *shape: Any) -> bytes:
    """The graph of one operator on a float tensor."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    node = helper.make_node(operator, ["x"], ["y"])
    graph = helper.make_graph([node], "one", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def test_what_it_would_keep_at_home_is_not_there(tmp_path: Path) -> None:
    """In a process of its own: what libraries write when they are loaded counts as well."""
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir()
    (tmp_path / "row.onnx").write_bytes(ROW)
    code = (
        "import sys, numpy as np\n"
        "from hwloop.device.ov import OpenVinoRuntime\n"
        f"row = open({str(tmp_path / 'row.onnx')!r}, 'rb').read()\n"
        "runtime = OpenVinoRuntime({})\n"
        "runtime.infer(runtime.build(row, {}), np.zeros((1, 32, 14, 14), np.float32))\n"
        "print(sys.modules['openvino_telemetry'])\n"
    )
    said = in_a_process(code, **{name: str(place) for name, place in places.items()})
    assert said.split() == ["None"]
    assert [list(place.rglob("*")) for place in places.values()] == [[], [], []]


def test_the_caller_s_own_thread_does_the_work() -> None:
    """Which is why the clock of that thread times an inference."""
    code = (
        "import os, time\n"
        "from graphs import row_onnx\n"
        "from hwloop.device.ov import OpenVinoRuntime\n"
        "from hwloop.measure.table import REFERENCE\n"
        "runtime = OpenVinoRuntime({'threads': 1})\n"
        "run = runtime.bound_run(runtime.build(row_onnx(REFERENCE), {}))\n"
        "own, all_of_them = time.thread_time(), time.process_time()\n"
        "while time.thread_time() < own + 0.3: run()\n"
        "print((time.thread_time() - own) / (time.process_time() - all_of_them))\n"
    )
    assert float(in_a_process(f"import sys; sys.path.insert(0, 'tests')\n{code}")) > 0.98


def test_a_timed_run_copies_no_outputs() -> None:
    runtime = OpenVinoRuntime({})
    run = runtime.bound_run(runtime.build(one_node("Relu", 1, 8, 4, 4), {}))
    assert np.shares_memory(run()[0], run()[0])


def test_denormals_are_zeros() -> None:
    """Arithmetic on them takes a hundred times as long, and pruned networks have them."""
    runtime = OpenVinoRuntime({})
    engine = runtime.build(one_node("Sqrt", 1, 8, 4, 4), {})
    (found,) = runtime.infer(engine, np.full((1, 8, 4, 4), 1e-40, np.float32))
    assert not found.any()


def test_runs_are_timed_on_inputs_that_are_not_zero() -> None:
    runtime = OpenVinoRuntime({})
    run = runtime.bound_run(runtime.build(one_node("Relu", 1, 8, 4, 4), {}))
    found = np.array(run()[0])
    assert 0.3 < np.count_nonzero(found) / found.size < 0.7


def test_the_threads_of_its_pool_stay_on_the_cores_of_the_timing() -> None:
    """Also those that were started before, when outputs were scored on all cores."""
    if CORES < 2:
        pytest.skip("needs two cores")
    runtime = OpenVinoRuntime({"threads": 1})
    runtime.infer(runtime.build(ROW, {}), INPUTS)
    everywhere = os.sched_getaffinity(0)
    kept = runtime.kept_threads()
    assert kept
    with runtime.running(ROW, {}) as burst:
        assert burst() > 0
        pinned = os.sched_getaffinity(0)
        assert len(pinned) == 1
        now = runtime.kept_threads()
        assert set(kept) & set(now)
        assert all(os.sched_getaffinity(thread) == pinned for thread in now)
    again = runtime.kept_threads()
    assert all(os.sched_getaffinity(thread) == everywhere for thread in (0, *again))


def test_a_thread_that_ended_meanwhile_is_none_to_pin() -> None:
    runtime = OpenVinoRuntime({})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runtime.kept_threads = lambda: [gone.pid]  # type: ignore[method-assign]
    with runtime.running(ROW, {}) as burst:
        assert burst() > 0


def test_floats_stay_floats() -> None:
    """It would take bfloat16 by itself where the CPU has it."""
    found = dict(OpenVinoRuntime({}).fingerprint()["settings"])
    engine = OpenVinoRuntime({}).build(ROW, {})
    assert found["precision"] == "f32"
    assert str(engine.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert engine.get_property("NUM_STREAMS") == 1
    assert engine.get_property("INFERENCE_NUM_THREADS") == 1


def test_its_fingerprint_says_what_a_timing_depends_on() -> None:
    found = OpenVinoRuntime({"threads": 1}).fingerprint()
    assert (found["runtime"], found["device"]) == ("openvino", state.cpu_model())
    assert found["runtime_version"].startswith("20")
    names = ["threads", "isa", "governor", "clock", "precision", "harness"]
    assert [name for name, _ in found["settings"]] == names


def test_several_threads_are_timed_on_the_wall() -> None:
    if CORES < 2:
        pytest.skip("needs two cores")
    assert OpenVinoRuntime({"threads": 2}).clock == "wall"


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(SettingsRefused, match=f"only {CORES} cores"):
        OpenVinoRuntime({"threads": CORES + 1})


def test_inputs_of_no_fixed_shape_cannot_be_timed() -> None:
    runtime = OpenVinoRuntime({})
    engine = runtime.build(one_node("Relu", "batch", 8), {})
    with pytest.raises(ValueError, match="'x' has no fixed shape"):
        runtime.bound_run(engine)


def test_a_burst_is_about_as_long_as_asked() -> None:
    with OpenVinoRuntime({}).running(ROW, {}) as burst:
        started = time.perf_counter()
        assert burst() >= 1
        assert time.perf_counter() - started >= 0.02
