"""Run by tests/test_old_python.py with the Python and the numpy of a stock board; no pytest there.

    python on_old_python.py SCRATCH_FOLDER FAKE_CUDART|-

prints a JSON object: each check's name and its traceback, or null where it passed. ``hwloop`` is
then a folder of the modules as they are sent to a board, and nothing else of hwloop is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
NEEDS_A_RUNTIME = {"ort": "onnxruntime", "ov": "openvino"}
"""Modules that cannot be imported without their runtime; those of TensorRT and CUDA can."""

CHECKS: dict[str, Callable[[Path], None]] = {}


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS[function.__name__] = function
    return function


@check
def every_module_is_imported(scratch: Path) -> None:
    package = importlib.import_module("hwloop.device")
    names = sorted(path.stem for path in Path(str(package.__file__)).parent.glob("*.py"))
    assert len(names) > 20, names
    missing = {}
    for name in names:
        try:
            importlib.import_module(f"hwloop.device.{name}")
        except ModuleNotFoundError as error:
            missing[name] = error.name
    assert missing == NEEDS_A_RUNTIME, missing


@check
def what_is_no_runtime_of_ours_is_not_there(scratch: Path) -> None:
    for name in ("onnxruntime", "tensorrt", "cuda", "pycuda", "torch", "onnx", "hwloop.errors"):
        assert importlib.util.find_spec(name) is None, name


@check
def without_cuda_each_way_says_what_it_lacks(scratch: Path) -> None:
    from hwloop.device.cuda import CudaError
    from hwloop.device.cuda_backends import open_backend

    for choice, reason in (
        ("cuda-bindings", "No module named 'cuda'"),
        ("pycuda", "No module named 'pycuda'"),
        ("auto", "cudart: "),
    ):
        said = "nothing"
        try:
            open_backend(choice)
        except CudaError as error:
            said = str(error)
        assert reason in said, (choice, said)


@check
def memory_of_cuda_is_an_array(scratch: Path) -> None:
    import numpy as np

    from hwloop.device.cuda_library import CudaLibrary

    if sys.argv[2] == "-":  # no C compiler here
        return
    backend = CudaLibrary(sys.argv[2])
    with backend.current():
        stream = backend.new_stream()
        pinned = backend.alloc_pinned(16)
        view = pinned.view(np.float32).reshape(2, 2)
        back = np.zeros_like(view)
        backend.to_device(pinned.ctypes.data, np.arange(4, dtype=np.float32), stream)
        backend.to_host(back, pinned.ctypes.data, stream)
        assert view.tolist() == back.tolist() == [[0.0, 1.0], [2.0, 3.0]]
        graph = backend.capture(stream, lambda: None)
        backend.replay(graph, stream)
        backend.free_graph(graph)
        backend.free_pinned(pinned)


PROTOCOL = {
    "warmup_s": 0.0,
    "rounds": 2,
    "sample_s": 0.002,
    "turn_s": 0.008,
    "min_samples": 10,
    "max_samples": 30,
    "target_halfwidth": 0.01,
    "time_limit_s": 5.0,
}


@check
def the_harness_compares_two_engines(scratch: Path) -> None:
    from hwloop.device import harness

    now = [0.0]

    def taking(seconds: float) -> Callable[[], Callable[[], None]]:
        def run() -> None:
            now[0] += seconds

        return lambda: run

    found = harness.compare(taking(0.003), taking(0.001), PROTOCOL, clock=lambda: now[0])
    ratios = [a / b for a, b in zip(found["samples_ms"], found["reference_ms"], strict=True)]
    assert found["stopped"] == "precise"
    assert (len(found["rounds"]), sum(found["rounds"])) == (2, len(ratios)), found["rounds"]
    assert all(abs(ratio - 3) < 1e-6 for ratio in ratios), ratios


@check
def what_others_use_is_counted(scratch: Path) -> None:
    from hwloop.device import contention

    assert contention.thread_clock_is_fine() in (True, False)
    (scratch / "proc").mkdir(parents=True)
    counts = scratch / "proc" / "stat"
    counts.write_text("cpu0 100 0 0 100 0 0 0 0 0 0\n")
    others = contention.Contention([0], scratch)
    assert others.shares() == {"core_taken_share": 0.0, "other_cores_busy_share": 0.0}
    counts.write_text("cpu0 99999 0 0 100 0 0 0 0 0 0\n")
    assert others.shares() == {"core_taken_share": 1.0, "other_cores_busy_share": 0.0}


@check
def boards_are_recognised(scratch: Path) -> None:
    from hwloop.device import jetson, state

    expected = {"orin_nano": "Orin Nano 8GB", "agx_orin": "AGX Orin 64GB", "thor": "Thor T5000"}
    for name, module in expected.items():
        root = plant(name, scratch / name)
        found = state.snapshot(root)
        assert json.loads(json.dumps(found)) == found
        assert found["jetson"]["module"] == module
        assert found["jetson"]["rails_mw"], name
        assert dict(map(tuple, state.fingerprint_settings(root)))["module"] == module
        assert jetson.snapshot(root) is not None


@check
def energy_is_measured(scratch: Path) -> None:
    import time

    from hwloop.device import power

    def burst() -> int:
        time.sleep(0.02)
        return 10

    power.SAMPLE_EVERY_S = 0.02
    found = power.energy_mj(burst, seconds=1.0, root=plant("agx_orin", scratch / "energy"))
    assert found is not None
    assert len(found["rails"]) == 4, found
    assert found["mean_mw"] > 0, found
    # A mean of equal values may differ from them in its last bit.
    assert math.isclose(found["idle_mw"], found["mean_mw"], rel_tol=1e-9), found


@check
def a_table_of_nvidia_smi_is_read(scratch: Path) -> None:
    from hwloop.device import nvidia_smi

    cells = ["RTX", "GPU-1a", "580.1", "P2", "Default", *["1"] * len(nvidia_smi.NUMBERS), "0x4"]
    found = nvidia_smi.snapshot(lambda command: ", ".join(cells), {})
    assert found is not None
    assert (found["driver"], found["throttle_reasons"]) == ("580.1", ["power cap"])


@check
def tensorrt_builds_times_and_infers(scratch: Path) -> None:
    """On the played GPU and TensorRT of the tests, with a real process that builds."""
    import fake_cuda
    import fake_trt
    import numpy as np

    from hwloop.device.trt import TrtRuntime

    fake_cuda.reset()
    runtime = TrtRuntime({}, trt=fake_trt, cuda=fake_cuda.FakeCuda())
    model = fake_trt.model(ms=0.5), {}
    found = runtime.compare(model, (fake_trt.model(ms=2.0), {}), PROTOCOL)
    ratios = [a / b for a, b in zip(found["samples_ms"], found["reference_ms"], strict=True)]
    assert all(0.2 < ratio < 0.3 for ratio in ratios), ratios
    inputs = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    (outputs,) = runtime.infer(runtime.build(*model), inputs)
    assert np.allclose(outputs, 2 * inputs[:, :3]), outputs
    assert runtime.engine_file(*model)["audit"]["build"]["engine_bytes"] > 0


@check
def a_worker_answers(scratch: Path) -> None:
    import numpy as np

    from hwloop.device.fake import FakeRuntime
    from hwloop.device.serve import Worker

    worker = Worker(FakeRuntime({}))
    reply = worker.answer({"id": 2, "verb": "state"})
    assert (reply["id"], reply["result"]["numpy"]) == (2, np.__version__), reply
    assert worker.answer({"id": 3, "verb": "fingerprint"})["result"]["runtime"] == "fake"
    assert "error" in worker.answer({"id": 4, "verb": "nonsense"})


@check
def a_reply_is_kept_on_the_board(scratch: Path) -> None:
    from hwloop.device.replies import Replies

    token, reply = f"{'a' * 32}-1", {"result": {"data": b"\0\xff", "shape": [1, 2]}}
    Replies().keep(token, reply)
    assert Replies().find(token) == reply


@check
def a_board_is_held_once(scratch: Path) -> None:
    from hwloop.device import lock

    name = f"\0hwloop-old-python-{os.getpid()}"
    with lock.acquire(name=name):
        assert lock.holder(name=name) == (os.getpid(), os.getuid())
    assert lock.holder(name=name) is None


def plant(name: str, folder: Path) -> Path:
    """The file tree of a board."""
    files = json.loads((TESTS / "data" / "jetson" / f"{name}.json").read_text())
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def main() -> None:
    sys.path.append(str(TESTS))  # the played TensorRT and GPU
    found: dict[str, Any] = {}
    for name, function in CHECKS.items():
        try:
            function(Path(sys.argv[1]))
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
