"""OpenVINO on this machine's CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# OpenVINO reports to its makers what it reads, and keeps an identity in the home folder. Without
# this package of its it does neither, and a worker is a process of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

from hwloop.device.cpu_runtime import INPUT_SEED, CpuRuntime, random_input  # noqa: E402

PRECISION = "f32"
"""Of what is not int8. OpenVINO would choose bfloat16 by itself on CPUs that have it."""


class OpenVinoRuntime(CpuRuntime):
    """Models compiled for OpenVINO's CPU device: one stream, for the latency of one inference.

    With one thread the caller's own does the work: no other thread of the process gets any time.
    """

    name = package = "openvino"
    version = str(openvino.__version__)

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._core = openvino.Core()
        self._not_its = set(_threads())

    def further_settings(self) -> list[list[str]]:
        return [["precision", PRECISION]]

    def build(self, model: bytes, hints: dict[str, Any]) -> Any:
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISION,
            "ENABLE_CPU_PINNING": False,  # the worker pins its threads itself
            # Pruned and quantized networks produce denormals, which run a hundred times slower.
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        return self._core.compile_model(self._core.read_model(model), "CPU", properties)

    def bound_run(self, engine: Any) -> Callable[[], Any]:
        rng = np.random.default_rng(INPUT_SEED)
        request = engine.create_infer_request()
        for index, port in enumerate(engine.inputs):
            if port.partial_shape.is_dynamic:
                name = port.any_name
                raise ValueError(f"input {name!r} has no fixed shape: {port.partial_shape}")
            shape = [int(size) for size in port.shape]
            value = random_input(_type_name(port), shape, rng)
            request.set_input_tensor(index, openvino.Tensor(value))

        def run() -> Any:
            # It would copy its outputs for the caller: of large ones that takes as long as a layer.
            return request.infer(share_outputs=True)

        run()  # the first one plans its memory
        return run

    def kept_threads(self) -> list[int]:
        """Those of its pool, which begin with the first engine; the worker's own are older."""
        return [thread for thread in _threads() if thread not in self._not_its]

    def batch(self, engine: Any) -> int:
        return int(engine.inputs[0].shape[0])

    def outputs(self, engine: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        found = engine.create_infer_request().infer({0: np.ascontiguousarray(inputs)})
        return [np.array(found[port]) for port in engine.outputs]


def _type_name(port: Any) -> str:
    return str(np.dtype(port.element_type.to_dtype()))


def _threads() -> list[int]:
    """The threads of this process, as the kernel numbers them."""
    return [int(name) for name in os.listdir("/proc/self/task")]
