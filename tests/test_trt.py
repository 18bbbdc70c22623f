"""The TensorRT runtime on a GPU that is played: order of calls, graphs, timing, failures.

The engine descriptions in tests/data were written by hand after published ones; none was recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_cuda
import fake_trt
import numpy as np
import pytest
from fake_cuda import DEVICE, FakeCuda

from hwloop.device import trt_child
from hwloop.device.cuda import CudaError
from hwloop.device.trt import NoTensorRT, TrtRuntime, check_version, default_workspace_mib
from hwloop.device.trt_audit import engine_audit, sparsity
from hwloop.device.trt_build import BuildRequest, build
from hwloop.device.trt_run import OpenEngine, RunFailed
from hwloop.device.trt_timing import EventSampler

DATA = Path(__file__).parent / "data"
PROTOCOL = {
    "warmup_s": 0.0,
    "rounds": 2,
    "sample_s": 0.004,
    "min_samples": 10,
    "max_samples": 40,
    "target_halfwidth": 0.01,
    "time_limit_s": 5.0,
}
ALLOCATED = ("memory", "pinned", "streams", "events", "graphs")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A fresh device; builds in this process, as the child does them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def built_here(onnx: bytes, request: BuildRequest, *, module: str) -> Any:
        assert module == "fake_trt"
        return build(onnx, request, trt=fake_trt)

    monkeypatch.setattr(trt_child, "build_in_child", built_here)
    return fake_cuda.reset()


def runtime(*, can_graph: bool = True, integrated: bool = False, **settings: Any) -> TrtRuntime:
    cuda = FakeCuda(can_graph=can_graph, integrated=integrated)
    return TrtRuntime(settings, trt=fake_trt, cuda=cuda)


def compared(
    candidate: bytes, reference: bytes, made: TrtRuntime | None = None, **changes: float
) -> dict[str, Any]:
    made = made or runtime()
    return made.compare((candidate, {}), (reference, {}), {**PROTOCOL, **changes})


def test_samples_are_the_gpus_time_per_run() -> None:
    found = compared(fake_trt.model(ms=0.5), fake_trt.model(ms=2.0))
    assert found["samples_ms"] == pytest.approx([0.5] * len(found["samples_ms"]))
    assert found["reference_ms"] == pytest.approx([2.0] * len(found["reference_ms"]))
    assert found["meaning"] == "computeMs"
    assert found["warmup_count"] >= 4 * 10  # both engines, both rounds
    assert (found["cuda_graph"], found["graph_refused"]) == (True, None)


def test_two_plain_runs_come_before_each_capture() -> None:
    compared(fake_trt.model(plain_extra_ms=0.0), fake_trt.model(ms=2.0), rounds=1)
    overhead_runs = 5 * 5  # pairs, runs that fill 5 ms
    assert DEVICE.runs["plain"] == 2 * 3 + overhead_runs
    assert DEVICE.runs["replay"] > 0


def test_the_launch_overhead_is_a_plain_run_less_a_replay() -> None:
    found = compared(fake_trt.model(plain_extra_ms=0.25), fake_trt.model())
    assert found["launch_overhead_ms"] == pytest.approx(0.25)


@pytest.mark.parametrize("settings", [{"cuda_graph": False}, {"can_graph": False}])
def test_without_a_graph_plain_runs_are_timed_and_it_is_said(settings: dict[str, Any]) -> None:
    made = runtime(**settings)
    found = compared(fake_trt.model(plain_extra_ms=0.25), fake_trt.model(), made)
    assert found["samples_ms"][0] == pytest.approx(1.25)
    assert (found["cuda_graph"], found["launch_overhead_ms"]) == (False, None)
    assert DEVICE.runs["replay"] == 0
    assert dict(made.fingerprint()["settings"])["cuda_graph"] == "false"


def test_an_engine_that_cannot_be_captured_is_run_plainly() -> None:
    found = compared(fake_trt.model(capturable=False), fake_trt.model())
    assert found["samples_ms"][0] == pytest.approx(1.25)
    assert found["reference_ms"][0] == pytest.approx(1.0)
    assert found["cuda_graph"] is False
    assert "when stream is capturing" in found["graph_refused"]
    assert found["launch_overhead_ms"] is None


def test_drift_of_the_device_cancels_in_the_ratios() -> None:
    DEVICE.drift = lambda now_ms: 1 + now_ms / 2000
    found = compared(fake_trt.model(ms=1.0), fake_trt.model(ms=2.0), min_samples=40)
    samples = found["samples_ms"]
    assert samples[-1] > 1.05 * samples[0]
    ratios = np.array(samples) / np.array(found["reference_ms"])
    assert np.median(ratios) == pytest.approx(0.5, rel=0.01)


def test_one_inference_at_a_time_can_be_run_for_the_power_meter() -> None:
    with runtime().running(fake_trt.model(ms=2.0), {}) as run:
        before = DEVICE.now_ms
        run()
        run()
        assert DEVICE.now_ms - before == pytest.approx(4.0)
    assert DEVICE.left_over() == {}


def test_inference_runs_a_batch_at_a_time_and_cuts_the_last() -> None:
    made = runtime()
    inputs = np.arange(20, dtype=np.float32).reshape(5, 4)
    (output,) = made.infer(made.build(fake_trt.model(), {}), inputs)
    assert np.array_equal(output, 2 * inputs[:, :3])


def test_inputs_become_the_engines_own_float_type() -> None:
    made = runtime()
    model = fake_trt.model(inputs=[["x", [1, 4], "HALF"]], outputs=[["y", [1, 2], "HALF"]])
    (output,) = made.infer(made.build(model, {}), np.full((2, 4), 0.5, np.float32))
    assert (output.dtype, output.tolist()) == (np.float16, [[1.0, 1.0], [1.0, 1.0]])


def test_inputs_on_the_device_are_seeded_and_never_zero() -> None:
    plan = runtime().build(fake_trt.model(), {})
    seen = []
    for _ in range(2):
        cuda = FakeCuda()
        with cuda.current():
            opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
            seen.append(bytes(DEVICE.memory[opened.tensors[0].address]))
            opened.close()
    assert seen[0] == seen[1]
    assert np.all(np.frombuffer(seen[0], np.float32) != 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"fail": "deserialize"}, "built by another version"),
        ({"fail": "context"}, "no memory to run the engine .* MiB free"),
        ({"fail": "address"}, "address of 'input' refused"),
        ({"fail": "enqueue"}, "cannot run the engine"),
        ({"inputs": [["input", [-1, 4], "FLOAT"]]}, "dynamic shape"),
        ({"inputs": [["shape", [4], "INT32"]]}, "shape in host memory"),
        ({"outputs": [["output", [2, 3], "BF16"]]}, "numpy lacks"),
    ],
)
def test_what_cannot_run_says_why_and_leaves_nothing(model: dict[str, Any], message: str) -> None:
    # FakeCuda checks, when the context is popped, that everything was freed before.
    with pytest.raises(RunFailed, match=message):
        compared(fake_trt.model(**model), fake_trt.model())
    assert DEVICE.left_over() == {}


def test_a_full_device_is_a_reason_and_leaves_nothing() -> None:
    DEVICE.capacity_bytes = 40
    with pytest.raises(CudaError, match="out of memory"):
        compared(fake_trt.model(), fake_trt.model())
    assert DEVICE.left_over() == {}


@pytest.mark.parametrize(
    "inputs", [np.zeros((2, 5), np.float32), np.zeros((2, 4), np.int8)], ids=["shape", "kind"]
)
def test_inputs_that_do_not_fit_are_refused(inputs: np.ndarray) -> None:
    made = runtime()
    plan = made.build(fake_trt.model(), {})
    with pytest.raises(RunFailed, match=r"takes float32 \(2, 4\)"):
        made.infer(plan, inputs)


def test_a_sampler_can_be_closed_twice() -> None:
    plan = runtime().build(fake_trt.model(), {})
    cuda = FakeCuda()
    with cuda.current():
        opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
        sampler = EventSampler(opened, cuda=cuda, use_graph=True)
        assert sampler.uses_graph
        sampler.close()
        sampler.close()


def test_the_same_graph_is_built_once() -> None:
    made = runtime()
    first = made.build(fake_trt.model(), {})
    assert made.build(fake_trt.model(), {}) is first
    assert made.build(fake_trt.model(), {"configs": [{"sparsity": "2:4"}]}) is not first


def test_old_plans_go_when_memory_is_short_but_not_those_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hwloop.device.trt.KEPT_PLAN_BYTES", 1)
    made = runtime()
    reference, old, new = (fake_trt.model(ms=ms) for ms in (1.0, 2.0, 3.0))
    plans = [made.build(model, {}) for model in (reference, old, reference, new)]
    assert made.build(reference, {}) is plans[0]  # it was used after the old one
    assert made.build(new, {}) is plans[3]
    assert made.build(old, {}) is not plans[1]


def test_settings_reach_the_builder() -> None:
    made = runtime(
        integrated=True, optimization_level=5, avg_timing_iterations=2, workspace_mib=64, tf32=True
    )
    plan = made.build(fake_trt.model(), {"configs": [{"sparsity": "2:4"}]})
    config = json.loads(plan.data)["config"]
    assert (config["level"], config["avg_timing"]) == (5, 2)
    assert config["flags"] == ["SPARSE_WEIGHTS", "TF32"]
    assert config["pools"]["WORKSPACE"] == 64 << 20
    assert config["pools"]["TACTIC_DRAM"] % (512 << 20) == 0


def test_by_default_there_is_no_tf32_and_a_capped_workspace() -> None:
    config = json.loads(runtime().build(fake_trt.model(), {}).data)["config"]
    assert config["flags"] == []
    assert 16 << 20 <= config["pools"]["WORKSPACE"] <= 1024 << 20
    assert "TACTIC_DRAM" not in config["pools"]
    assert [default_workspace_mib(mib) for mib in (40, 3100, 5000)] == [16, 512, 1024]


def test_the_fingerprint_names_all_that_a_figure_depends_on() -> None:
    found = runtime().fingerprint()
    assert (found["device"], found["runtime_version"]) == ("Fake Orin", "10.3.0")
    settings = dict(found["settings"])
    assert settings["cuda"] == "fake"
    assert settings["cuda_graph"] == "true"
    assert settings["sm_count"] == "8"
    assert all(isinstance(value, str) for value in settings.values())
    assert runtime(tf32=True).fingerprint() != found


def test_a_boards_power_mode_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = [["power_mode", "MAXN_SUPER"]]
    monkeypatch.setattr("hwloop.device.state.fingerprint_settings", lambda: mode)
    assert dict(runtime().fingerprint()["settings"])["power_mode"] == "MAXN_SUPER"


@pytest.mark.parametrize("version", ["8.6.2", "10.2.0"])
def test_an_old_tensorrt_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(NoTensorRT, match=r"JetPack 6\.1"):
        check_version(version)
    check_version("10.3.0")
    check_version("11.4.1")


def test_an_engine_file_comes_with_its_digest_and_audit() -> None:
    text = (DATA / "trt_engine_10x.json").read_text()
    found = runtime().engine_file(fake_trt.model(inspector=text), {"precision": "fp16"})
    assert json.loads(found["data"])["ms"] == 1.0
    assert len(found["sha256"]) == 64
    assert found["audit"]["reformats"] == 1
    assert found["audit"]["build"]["dtypes"] == {"FLOAT": 1, "HALF": 2}


@pytest.mark.parametrize("dialect", ["10x", "11x"])
def test_an_engine_is_audited_in_both_dialects(dialect: str) -> None:
    found = engine_audit((DATA / f"trt_engine_{dialect}.json").read_text())
    assert found["layers"] == 5  # a NoOp is no layer that runs
    # An int8 convolution that writes fp16 is an int8 layer.
    assert found["precisions"] == {"fp16": 0.2, "fp32": 0.2, "int8": 0.6}
    assert found["reformats"] == 1
    assert found["sparse_kernels"] == 1
    assert found["tensors"] == [
        {"name": "input", "precision": "fp32", "shape": [1, 3, 32, 32]},
        {"name": "output", "precision": "fp32", "shape": [1, 10]},
    ]


def test_an_engine_without_details_is_audited_as_such() -> None:
    found = engine_audit('{"Layers": ["conv1", "fc"], "Bindings": ["input"]}')
    assert (found["detailed"], found["layers"], found["precisions"]) == (False, 2, {})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], (None, None)),
        (
            [
                "(Sparsity) Layers eligible for sparse math: Conv_0, Conv_1 + Relu_2",
                "(Sparsity) TRT inference plan picked sparse implementation for layers: ",
            ],
            (2, 0),
        ),
        (
            [
                "(Sparsity) Found 39 layer(s) eligible to use sparse tactics: a, b",
                "(Sparsity) Chose 7 layer(s) using sparse tactics: a",
                "(Sparsity) Chose 0 layer(s) using sparse tactics",
            ],
            (39, 0),
        ),
    ],
)
def test_sparse_layers_are_counted_in_both_wordings(lines: list[str], expected: Any) -> None:
    found = sparsity(lines)
    assert (found["eligible"], found["picked"]) == expected
