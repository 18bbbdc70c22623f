"""FP8 (E4M3) for TensorRT: linear layers between FP16 tensors, on GPUs from Ada on.

What a linear layer reads is quantized in front of it and what it gives is FP16, so that nothing
else of the network has to know of it. Scales are per tensor, for weights too, the largest value
becomes 448 and nothing has to be recovered (NVIDIA Model Optimizer 0.47, ``onnx.quantization``).
Convolutions stay as they are: none was found faster in FP8 than in FP16 (NVIDIA/TensorRT#4081).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwloop.runtimes.rows import TensorRTRow

LARGEST = 448
"""Of E4M3, whose numbers beyond it are no numbers."""

_SCALE = 0.01


def zero_point(name: str) -> Any:
    """The constant that says which type a quantize node gives: NumPy has no such type."""
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)


def has_fp8(model: Any) -> bool:
    """Whether an ONNX model has FP8 in it: not every GPU can be built for then."""
    from onnx import TensorProto

    return any(item.data_type == TensorProto.FLOAT8E4M3FN for item in model.graph.initializer)


class Fp8Row(TensorRTRow):
    """A linear layer, and the quantizing of what it reads, as both are one layer to the search."""

    floats = np.float16

    def build(self) -> bytes:
        config = self.config
        shape, value = self._operator(self._in_fp8(self._operand("input", config.in_shape)))
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        self.nodes[-1].output[0] = "output"
        return self._finish(shape, config.precision_out)

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        return self._input(name, shape, self.config.precision_in)

    def _quantizable(self, shape: tuple[int, ...]) -> str:
        return self._in_fp8(super()._quantizable(shape))

    def _in_fp8(self, value: str) -> str:
        scale = self._weight(self.floats(_SCALE))
        self.weights.append(zero_point(f"{value}_zero"))
        ends = [scale, f"{value}_zero"]
        quantized = self._node("QuantizeLinear", [value, *ends], f"{value}_q")
        return self._node("DequantizeLinear", [quantized, *ends], f"{value}_dq")
