"""The TensorRT runtime on a GPU that is played: order of calls, graphs, timing, failures.

The engine descriptions in tests/data were written by hand after published ones; none was recorded.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import fake_trt
import numpy as np
import pytest
from fake_cuda import DEVICE, FakeCuda
from test_jetson import plant

from hwloop.device import trt_child
from hwloop.device.cuda import CudaError
from hwloop.device.trt import TrtRuntime
from hwloop.device.trt_audit import engine_audit, sparsity
from hwloop.device.trt_build import BuildRequest, build
from hwloop.device.trt_import import NoTensorRT, check_version, import_tensorrt
from hwloop.device.trt_limits import default_workspace_mib
from hwloop.device.trt_run import OpenEngine, RunFailed
from hwloop.device.trt_timing import EventSampler
from hwloop.findings import Measurement, Protocol
from hwloop.measure import answers

DATA = Path(__file__).parent / "data"
PROTOCOL = {
    "warmup_s": 0.0,
    "rounds": 2,
    "sample_s": 0.004,
    "turn_s": 0.008,
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
    return TrtRuntime(settings, trt=fake_trt, cuda=cuda, clock=DEVICE.clock)


def compared(
    candidate: bytes, reference: bytes, made: TrtRuntime | None = None, **changes: float
) -> dict[str, Any]:
    made = made or runtime()
    return made.compare((candidate, {}), (reference, {}), {**PROTOCOL, **changes})


def test_samples_are_the_gpus_time_per_run() -> None:
    found = compared(fake_trt.model(ms=0.5), fake_trt.model(ms=2.0))
    assert found["samples_ms"] == pytest.approx([0.5] * len(found["samples_ms"]))
    assert found["reference_ms"] == pytest.approx([2.0] * len(found["reference_ms"]))
    assert len(found["samples_ms"]) == len(found["reference_ms"]) == sum(found["rounds"])
    assert (found["clock"], found["meaning"]) == ("gpu", "computeMs")
    assert found["warmup_count"] >= 4 * 10  # both engines, both rounds
    assert (found["cuda_graph"], found["graph_refused"]) == (True, None)


def test_two_plain_runs_come_before_each_capture() -> None:
    compared(fake_trt.model(plain_extra_ms=0.0), fake_trt.model(ms=2.0), rounds=1)
    overhead_runs = 5 * (1 + 5)  # pairs; one leads, the others fill 5 ms
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


@pytest.mark.parametrize("refused", ["candidate", "reference"])
def test_where_one_engine_cannot_be_captured_both_are_run_plainly(refused: str) -> None:
    models = [fake_trt.model(capturable=name != refused) for name in ("candidate", "reference")]
    found = compared(*models)
    assert found["samples_ms"] == pytest.approx([1.25] * len(found["samples_ms"]))
    assert found["reference_ms"] == pytest.approx([1.25] * len(found["reference_ms"]))
    assert (found["cuda_graph"], found["runs_per_graph"]) == (False, 1)
    assert "when stream is capturing" in found["graph_refused"]
    assert found["launch_overhead_ms"] is None


# ------------------------------------------------------- what else the GPU and its clock are doing

SIZES = {"one run a graph": 1.2, "many runs a graph": 0.1}
QUIET_RATIO = 1.7


def measured(scale: float, **changes: float) -> Measurement:
    """So many times 0.85 ms beside 0.5 ms, under the protocol that is used where none is given."""
    models = (fake_trt.model(ms=ms * scale) for ms in (0.5 * QUIET_RATIO, 0.5))
    found = compared(*models, **{**dataclasses.asdict(Protocol()), **changes})
    return answers.measurement({**found, "temperature_c": None}, 0.0)


def off_in_pairs(found: Measurement) -> float:
    """How wrong the median of the samples' ratios is, one by one."""
    ratios = np.asarray(found.samples_ms) / np.asarray(found.reference_ms)
    return abs(float(np.median(ratios)) / QUIET_RATIO - 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_time_that_others_take_of_most_runs_is_not_in_the_ratio(size: str, seed: int) -> None:
    scale = SIZES[size]

    def others_ms(now_ms: float) -> float:
        """In two of three slices of 1.5 ms, a little more than a sample, each run waits."""
        is_busy = random.Random(seed << 32 | int(now_ms / 1.5)).random() < 2 / 3
        return 0.3 * scale if is_busy else 0.0

    DEVICE.others_ms = others_ms
    found = measured(scale)
    assert found.clock == "gpu"
    assert found.disturbed_share > 0.5
    assert found.ratio == pytest.approx(QUIET_RATIO, rel=0.01)
    assert off_in_pairs(found) > 0.05


DRIFT_MS = 500
DRIFTS: dict[str, Callable[[float], float]] = {
    "slower and slower": lambda now_ms: 1 + 0.2 * min(now_ms / DRIFT_MS, 1),
    "faster and faster": lambda now_ms: 1.2 - 0.2 * min(now_ms / DRIFT_MS, 1),
    "slower in steps": lambda now_ms: 1 + 0.05 * min(now_ms // 100, 4),
    "up and down": lambda now_ms: 1 + 0.2 * (now_ms // 70 % 2),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("size", SIZES)
def test_a_clock_of_the_gpu_that_drifts_or_steps_is_not_in_the_ratio(size: str, drift: str) -> None:
    DEVICE.drift = DRIFTS[drift]
    found = measured(SIZES[size], min_samples=400)
    assert max(found.samples_ms) > 1.15 * min(found.samples_ms)
    assert found.ratio == pytest.approx(QUIET_RATIO, rel=0.01)


@pytest.mark.parametrize(
    ("ms", "burst_ms"), [(2.0, 20.0), (0.003, 20.0), (50.0, 50.0)], ids=["some", "tiny", "one"]
)
def test_the_power_meter_gets_bursts_of_20_ms_and_their_number(ms: float, burst_ms: float) -> None:
    DEVICE.launch_ms = 0.02
    with runtime().running(fake_trt.model(ms=ms), {}) as run:
        before = DEVICE.host_ms
        assert run() * ms == pytest.approx(burst_ms, rel=0.05)
        assert DEVICE.host_ms - before == pytest.approx(burst_ms, rel=0.05)
    assert DEVICE.left_over() == {}


def test_the_power_meter_runs_what_cannot_be_captured() -> None:
    with runtime().running(fake_trt.model(capturable=False), {}) as run:
        assert run() == 16  # of 1.25 ms


# ------------------------------------------------------- small kernels, and the host that launches


def floor(**settings: Any) -> dict[str, Any]:
    """Kernels of 3 and 6 us, whose launches cost the host 20 us."""
    DEVICE.launch_ms = 0.02
    small = fake_trt.model(ms=0.003, plain_extra_ms=0.0)
    large = fake_trt.model(ms=0.006, plain_extra_ms=0.0)
    return compared(small, large, runtime(**settings), sample_s=0.002)


def test_kernels_shorter_than_their_launch_are_timed_and_not_the_launch() -> None:
    found = floor()
    # Not even in part: the GPU is busy when the first of the launches arrives.
    assert found["samples_ms"] == pytest.approx([0.003] * len(found["samples_ms"]), rel=1e-3)
    assert found["reference_ms"] == pytest.approx([0.006] * len(found["samples_ms"]), rel=1e-3)
    assert found["runs_per_graph"] * 0.003 >= 0.5
    assert found["host_share"] < 0.1
    assert found["stopped"] == "precise"


@pytest.mark.parametrize("can_graph", [True, False])
def test_one_launch_for_each_kernel_is_told_as_the_hosts_time(
    can_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwloop.device.trt_timing.MAX_RUNS_PER_GRAPH", 1)
    found = floor(can_graph=can_graph)
    assert found["runs_per_graph"] == 1
    assert found["samples_ms"][0] == pytest.approx(found["reference_ms"][0], rel=0.05)  # nonsense
    assert found["host_share"] > 0.8


def test_long_runs_are_not_run_once_more_to_lead() -> None:
    plan = runtime().build(fake_trt.model(ms=5.0), {})
    cuda = FakeCuda()
    with cuda.current():
        opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
        sampler = EventSampler(opened, cuda=cuda, use_graph=True, clock=DEVICE.clock)
        replays = DEVICE.runs["replay"]
        assert sampler.sample_ms(2) == pytest.approx(5.0)
        assert DEVICE.runs["replay"] - replays == 2
        sampler.close()


def test_large_networks_are_captured_one_run_at_a_time() -> None:
    found = compared(fake_trt.model(ms=0.7), fake_trt.model(ms=0.2))
    assert found["runs_per_graph"] == 1
    assert found["samples_ms"][0] == pytest.approx(0.7)
    assert found["reference_ms"][0] == pytest.approx(0.2)


def test_a_graph_is_never_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwloop.device.trt_timing.MAX_RUNS_PER_GRAPH", 8)
    found = compared(fake_trt.model(ms=0.01), fake_trt.model(ms=0.01))
    assert found["runs_per_graph"] == 8
    assert found["samples_ms"][0] == pytest.approx(0.01)


def test_every_round_has_graphs_of_the_same_length() -> None:
    captured: list[int] = []
    plain_capture = FakeCuda.capture

    class Counting(FakeCuda):
        def capture(self, stream: int, work: Any) -> int:
            graph = plain_capture(self, stream, work)
            captured.append(len(DEVICE.graphs[graph]))
            return graph

    made = TrtRuntime({}, trt=fake_trt, cuda=Counting(), clock=DEVICE.clock)
    compared(fake_trt.model(ms=0.11), fake_trt.model(ms=0.11), made, rounds=3)
    assert captured == [1, 6] * 2 + [6, 6] * 2 + [6]  # the last for the launch overhead


def test_loops_and_warm_up_are_counted_in_runs() -> None:
    plan = runtime().build(fake_trt.model(ms=0.11), {})
    cuda = FakeCuda()
    with cuda.current():
        opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
        sampler = EventSampler(opened, cuda=cuda, use_graph=True, clock=DEVICE.clock)
        assert (sampler.runs_per_graph, sampler.warmup_loops) == (6, 12)
        replays = DEVICE.runs["replay"]
        assert sampler.sample_ms(13) == pytest.approx(0.11)
        assert DEVICE.runs["replay"] - replays == 1 + 3  # the first leads and is not timed
        before, replays = DEVICE.host_ms, DEVICE.runs["replay"]
        assert sampler.run(13) == 18
        assert DEVICE.runs["replay"] - replays == 3
        assert DEVICE.host_ms - before == pytest.approx(18 * 0.11)
        sampler.close()


def test_a_launch_alone_is_compared_with_one_of_many() -> None:
    DEVICE.launch_ms = 0.02
    found = runtime().launch_floor(fake_trt.model(ms=0.003), {})
    assert found["single_ms"] == pytest.approx(0.02, rel=0.02)
    assert found["in_graph_ms"] == pytest.approx(0.003, rel=0.03)
    assert found["runs_per_graph"] == 32
    assert found["host_share"] > 0.9


def test_without_graphs_there_is_only_the_launch_alone() -> None:
    DEVICE.launch_ms = 0.02
    model = fake_trt.model(ms=0.003, plain_extra_ms=0.0, capturable=False)
    for made in (runtime(), runtime(can_graph=False)):
        found = made.launch_floor(model, {})
        assert found["single_ms"] == pytest.approx(0.02, rel=0.02)
        assert found["in_graph_ms"] is None


@pytest.mark.parametrize("capturable", [True, False])
def test_copies_are_timed_beside_the_same_without(capturable: bool) -> None:
    DEVICE.copy_ms_per_byte = 0.001
    model = fake_trt.model(ms=0.1, plain_extra_ms=0.0, capturable=capturable)
    found = runtime().copies(model, {})
    assert found["copied_bytes"] == 4 * (2 * 4 + 2 * 3)
    assert found["without_copies_ms"] == pytest.approx(0.1)
    assert found["with_copies_ms"] == pytest.approx(0.1 + 0.056)


# ----------------------------------------------------------------- rows, whose tensors lie anyhow


CONV = {
    "inputs": [["input", [1, 20, 4, 4], "INT8"]],
    "outputs": [["output", [1, 40, 4, 4], "INT8"]],
    "likes": "CHW32",
    "reformat_ms": 0.2,
}


def test_a_row_is_timed_in_the_layout_that_its_kernel_likes() -> None:
    made, model = runtime(), fake_trt.model(**CONV)
    found = made.compare((model, {"row": True}), (model, {}), PROTOCOL)
    assert found["samples_ms"][0] == pytest.approx(1.0)
    assert found["reference_ms"][0] == pytest.approx(1.4)  # a network's ends are row-major
    assert found["reformats"] == 0


def test_copies_that_a_row_still_has_are_counted() -> None:
    model = fake_trt.model(**{**CONV, "likes": "DHWC8"})  # not a layout of images
    made = runtime()
    found = made.compare((model, {"row": True}), (model, {"row": True}), PROTOCOL)
    assert found["reformats"] == 2
    assert made.compare((model, {}), (model, {}), PROTOCOL)["reformats"] is None


def test_an_engine_without_details_has_an_unknown_number_of_copies() -> None:
    model = fake_trt.model()
    found = runtime().compare((model, {"row": True}), (model, {"row": True}), PROTOCOL)
    assert found["reformats"] is None


@pytest.mark.parametrize("likes", ["CHW4", "CHW32"])
def test_memory_is_as_large_as_the_layout_needs(likes: str) -> None:
    # The fake's engine objects to memory that its strides would run out of.
    model = fake_trt.model(**{**CONV, "likes": likes})
    plan = runtime().build(model, {"row": True})
    cuda = FakeCuda()
    with cuda.current():
        opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
        assert [tensor.layout for tensor in opened.tensors] == [likes, likes]
        opened.enqueue()
        assert all(bytes(DEVICE.memory[tensor.address]) for tensor in opened.tensors)
        opened.close()


def test_an_engine_of_a_row_takes_no_inputs() -> None:
    made = runtime()
    plan = made.build(fake_trt.model(**CONV), {"row": True})
    with pytest.raises(RunFailed, match="'input' is CHW32: an engine built for a row"):
        made.infer(plan, np.zeros((1, 20, 4, 4), np.int8))
    linear = made.build(fake_trt.model(**CONV), {})
    assert made.infer(linear, np.zeros((1, 20, 4, 4), np.int8))[0].shape == (1, 40, 4, 4)


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


# --------------------------------------------------------------------- when CUDA itself is broken


VERBS = {
    "compare": lambda made, model: made.compare((model, {}), (model, {}), PROTOCOL),
    "infer": lambda made, model: made.infer(made.build(model, {}), np.zeros((2, 4), np.float32)),
    "copies": lambda made, model: made.copies(model, {}),
    "launch_floor": lambda made, model: made.launch_floor(model, {}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_illegal_address_is_told_and_the_process_is_lost(verb: str) -> None:
    made = runtime()
    assert made.lost() is None
    with pytest.raises(CudaError, match=r"^cudaStreamSynchronize: an illegal memory access"):
        VERBS[verb](made, fake_trt.model(fail="illegal"))
    assert "illegal memory access was encountered (700)" in str(made.lost())


@pytest.mark.parametrize("fail", ["deserialize", "context", "enqueue"])
def test_a_candidates_own_fault_loses_nothing(fail: str) -> None:
    made = runtime()
    with pytest.raises(RunFailed):
        compared(fake_trt.model(fail=fail), fake_trt.model(), made)
    assert made.lost() is None


def test_a_full_device_is_not_a_lost_one() -> None:
    made = runtime()
    DEVICE.broken = "cudaStreamCreateWithFlags: out of memory (2)"
    assert made.lost() is None


def test_the_first_failure_is_told_when_freeing_fails_too() -> None:
    class Freeing(FakeCuda):
        def free(self, address: int) -> None:
            super().free(address)
            raise CudaError("cudaFree: something (1)")

    made = TrtRuntime({}, trt=fake_trt, cuda=Freeing(), clock=DEVICE.clock)
    with pytest.raises(RunFailed, match="cannot run the engine"):
        compared(fake_trt.model(fail="enqueue"), fake_trt.model(), made)
    with pytest.raises(CudaError, match="cudaFree"):  # and is not kept back when it is alone
        made.audit(fake_trt.model(), {})
    assert DEVICE.left_over() == {}


def test_a_sampler_can_be_closed_twice() -> None:
    plan = runtime().build(fake_trt.model(), {})
    cuda = FakeCuda()
    with cuda.current():
        opened = OpenEngine(plan.data, trt=fake_trt, cuda=cuda)
        sampler = EventSampler(opened, cuda=cuda, use_graph=True)
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
    monkeypatch.setattr("hwloop.device.trt_plans.KEPT_PLAN_BYTES", 1)
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
    assert [default_workspace_mib(mib) for mib in (100, 7600, 15700, 80_000)] == [
        16,
        512,
        1024,
        1024,
    ]


def test_memory_limits_are_those_of_the_start_and_can_be_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free_mib = [6000]
    monkeypatch.setattr(
        "hwloop.device.state.memory", lambda: {"available_bytes": free_mib[0] << 20}
    )
    first = runtime(integrated=True)
    assert first.fixed() == {"workspace_mib": 128, "tactic_dram_mib": 4096}
    plan = first.build(fake_trt.model(), {})
    free_mib[0] = 900
    assert first.build(fake_trt.model(ms=2.0), {}).record["tactic_dram_bytes"] == 4096 << 20
    later = runtime(integrated=True, **first.fixed())
    again = later.build(fake_trt.model(), {})
    for name in ("workspace_bytes", "tactic_dram_bytes"):
        assert again.record[name] == plan.record[name]
    assert later.fingerprint() == first.fingerprint()
    assert later.fixed() == first.fixed()
    # Another session has less to spare, and yet the same key.
    another = runtime(integrated=True)
    assert another.fixed() == {"workspace_mib": 128, "tactic_dram_mib": 512}
    assert another.fingerprint() == first.fingerprint()


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


def test_the_harness_and_the_events_have_versions_of_their_own() -> None:
    assert dict(runtime().fingerprint()["settings"])["harness"] == "2.2"


def test_timings_of_other_clocks_are_in_another_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions: dict[str, Any] = {"mode": "15W", "locked": False}
    monkeypatch.setattr(
        "hwloop.device.state.fingerprint_settings", lambda: [["power_mode", conditions["mode"]]]
    )
    monkeypatch.setattr(
        "hwloop.device.jetson.snapshot", lambda: {"gpu": {"locked": conditions["locked"]}}
    )

    def cached() -> str:
        return str(runtime().build(fake_trt.model(), {}).record["timing_cache"])

    assert [cached(), cached()] == ["new", "loaded"]
    conditions["mode"] = "25W"
    assert [cached(), cached()] == ["new", "loaded"]
    conditions["locked"] = True
    assert [cached(), cached()] == ["new", "loaded"]


@pytest.mark.parametrize("version", ["8.6.2", "10.2.0"])
def test_an_old_tensorrt_is_refused_with_what_to_do(version: str, tmp_path: Path) -> None:
    with pytest.raises(NoTensorRT, match=r"JetPack 6\.1"):
        check_version(version, plant("orin_nano", tmp_path))
    with pytest.raises(NoTensorRT, match=r"^(?!.*JetPack).*tensorrt-cu12"):
        check_version(version, tmp_path / "a desktop")
    check_version("10.3.0")
    check_version("11.4.1")


def test_a_missing_tensorrt_is_got_as_the_machine_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NoTensorRT, match=r"^(?!.*pip install).*python3-libnvinfer"):
        import_tensorrt(plant("orin_nano", tmp_path))
    with pytest.raises(NoTensorRT, match=r"^(?!.*JetPack).*tensorrt-cu13"):
        import_tensorrt(tmp_path / "a desktop")


def test_an_engine_file_comes_with_its_digest_and_audit() -> None:
    text = (DATA / "trt_engine_10x.json").read_text()
    found = runtime().engine_file(fake_trt.model(inspector=text), {"precision": "fp16"})
    assert json.loads(found["data"])["ms"] == 1.0
    assert len(found["sha256"]) == 64
    assert found["audit"]["reformats"] == 1
    assert found["audit"]["build"]["dtypes"] == {"FLOAT": 1, "HALF": 2}


def test_the_engine_that_is_timed_is_the_one_that_is_profiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "hwloop.device.trtexec.profile",
        lambda plan, *, version: given.append((plan, version)) or {"layers": 3},
    )
    made = runtime()
    assert made.layer_profile(fake_trt.model(), {}) == {"layers": 3}
    assert given == [(made.build(fake_trt.model(), {}).data, "10.3.0")]


def test_names_in_an_engine_may_hold_control_characters() -> None:
    found = engine_audit('{"Layers": [{"Name": "a\tb", "LayerType": "Reformat"}], "Bindings": []}')
    assert (found["layers"], found["reformats"]) == (1, 1)


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
