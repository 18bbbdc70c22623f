"""ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from hwloop.device.cpu_runtime import INPUT_SEED, CpuRuntime, random_input

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}


class OrtRuntime(CpuRuntime):
    """Sessions of ONNX Runtime's CPU provider."""

    name = package = "onnxruntime"
    version = str(onnxruntime.__version__)

    def build(self, model: bytes, hints: dict[str, Any]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Pruned and quantized networks produce denormals, which run a hundred times slower.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def bound_run(self, engine: Any) -> Callable[[], Any]:
        rng = np.random.default_rng(INPUT_SEED)
        for tensor in engine.get_inputs():
            if not all(isinstance(size, int) for size in tensor.shape):
                raise ValueError(f"input {tensor.name!r} has no fixed shape: {tensor.shape}")
        inputs = {
            tensor.name: random_input(TYPES.get(tensor.type, tensor.type), tensor.shape, rng)
            for tensor in engine.get_inputs()
        }
        names = [tensor.name for tensor in engine.get_outputs()]
        # The first run tells the shapes of the outputs, and plans the session's memory.
        outputs = dict(zip(names, engine.run(names, inputs)))  # noqa: B905
        as_ort = onnxruntime.OrtValue.ortvalue_from_numpy
        binding = engine.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, as_ort(value))
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, as_ort(value))
        run: Callable[..., None] = engine.run_with_iobinding
        return lambda: run(binding)

    def batch(self, engine: Any) -> int:
        return int(engine.get_inputs()[0].shape[0])

    def outputs(self, engine: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        found: list[np.ndarray[Any, Any]] = engine.run(None, {engine.get_inputs()[0].name: inputs})
        return found
