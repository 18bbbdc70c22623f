"""One fused block as an ONNX graph of its own: what a row of the latency table measures.

The graphs are those that the runtime makes of such a block *within* a network, so they differ by
runtime. docs/measuring.md has the reasons and figures.

* ONNX Runtime: int8 tensors lie channels last (N, H, W, C), so changing the layout is part of a
  change of precision and of nothing else. A linear layer gives floats, also in int8.
* OpenVINO: tensors lie channels last, floats too; a row gives one pixel of what its block wrote.
* TensorRT: tensors are FP16 or symmetric int8, channels first. An int8 row takes and gives int8
  tensors, as the block does between int8 neighbours, where the Q at the next operator's input is
  fused into this block's kernel. The Q in front of an int8 block behind an FP16 one is a row of
  its own (``quantize``); an int8 kernel writes FP16 as easily as int8, so there is no row for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwloop.runtimes.rowgraph import TAIL_CHAINS, TAIL_OPS, RowGraph, window

_ACTIVATION_SCALE, _WEIGHT_SCALE, ZERO_POINT = 0.02, 0.01, 128
_WEIGHT_LIMIT = 63  # reduce_range: seven bits, as the x86 recipe without VNNI quantizes
_FULL_WEIGHT_LIMIT = 127
_RUNTIME_DOMAIN = "com.microsoft"
_POOLS = {
    "maxpool": "NhwcMaxPool",
    "avgpool": "QLinearAveragePool",
    "globalavgpool": "QLinearGlobalAveragePool",
}
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class OrtRow(RowGraph):
    """A row for ONNX Runtime."""

    types = {"fp32": "FLOAT", "int8": "UINT8"}  # noqa: RUF012
    domains: tuple[str, ...] = (_RUNTIME_DOMAIN,)

    def build(self) -> bytes:
        config = self.config
        if config.op == "empty":
            self._node("Identity", [self._input("input", config.in_shape, "fp32")], "output")
            return self._finish(config.in_shape, "fp32")
        if config.op == "attention":
            return self._attention()
        if config.op == "quantize":
            value = self._input("input", config.in_shape, "fp32")
            self._int8_output(self._node("QuantizeLinear", [value, *self._scale()], "quantized"))
            return self._finish(channels_last(config.in_shape), "int8")
        if config.op == "dequantize":
            if config.tail:  # for each that reads it; the layout is changed once for all
                self._dequantized(self._input("input", config.in_shape, "int8"))
            else:
                self._dequantized_by_channel(self._int8_input("input", config.in_shape))
            self.nodes[-1].output[0] = "output"
            return self._finish(config.in_shape, "fp32")
        if self.int8 and config.op in _POOLS and not config.tail:
            return self._finish(channels_last(self._int8_pool()), "int8")
        shape, value = self._operator(self._operand("input", self._read_shape()))
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        if not self.gives_int8:
            self.nodes[-1].output[0] = "output"
            return self._finish(shape, "fp32")
        rectified = bool({"relu", "clip"} & {step.split(":")[0] for step in config.tail})
        self._int8_output(self._quantized(value, "quantized", 0 if rectified else ZERO_POINT))
        return self._finish(channels_last(shape), "int8")

    @property
    def gives_int8(self) -> bool:
        """Whether what it writes is int8: a linear layer gives floats in any precision."""
        return self.int8 and self.config.op != "linear"

    def _tail_step(self, step: str, value: str, shape: tuple[int, ...]) -> str:
        word, *bounds = step.split(":")
        name = f"{word}{len(self.nodes)}"
        if word == "add":
            other = self._operand("residual", shape)
            # The runtime adds int8 tensors: the convolution's sum is rounded first.
            if self.gives_int8 and self.config.op != "elementwise":
                value = self._dequantized(self._quantized(value, f"{name}_q", ZERO_POINT))
            return self._node("Add", [value, other], name)
        if word == "scale":
            return self._scaled(value, shape, name)
        # Quantizers drop a rectifier in front of uint8 with zero point 0, which cannot go below.
        if word == "clip" and not self.gives_int8:
            limits = [self._weight(np.float32(item)) for item in bounds]
            return self._node("Clip", [value, *limits], name)
        if (word in TAIL_OPS or word in TAIL_CHAINS) and not (self.gives_int8 and word == "relu"):
            if self.gives_int8:
                value = self._dequantized(self._quantized(value, f"{name}_q", ZERO_POINT))
            return self._activated(word, value, name)
        return value

    def _int8_pool(self) -> tuple[int, ...]:
        """Next to int8 convolutions the runtime pools channels last, by operators of its own.

        It would not replace a pool that stands alone, and its 8-bit MaxPool for channels first
        takes fifty times as long.
        """
        config = self.config
        op, own_op = config.op, _POOLS[config.op]
        value = self._input("input", channels_last(config.in_shape), "int8")
        attributes: dict[str, Any] = {} if op == "globalavgpool" else window(config)
        scales = [] if op == "maxpool" else [*self._scale(), *self._scale()]
        if op != "maxpool":
            attributes = {**attributes, "channels_last": 1}
        self._node(own_op, [value, *scales], "output", domain=_RUNTIME_DOMAIN, **attributes)
        size = (1, 1) if op == "globalavgpool" else config.out_sides
        return (config.in_shape[0], config.out_channels, *size)

    def _quantized_weight(self, shape: tuple[int, ...]) -> str:
        quantized = self.rng.integers(-_WEIGHT_LIMIT, _WEIGHT_LIMIT + 1, shape).astype(np.int8)
        scales = self._weight(np.full(shape[0], _WEIGHT_SCALE, np.float32))
        zeros = self._weight(np.zeros(shape[0], np.int8))
        weight = self._weight(quantized)
        return self._node("DequantizeLinear", [weight, scales, zeros], "weight_dq", axis=0)

    def _quantized_bias(self, count: int) -> str:
        quantized = self._weight(self.rng.integers(-500, 500, count).astype(np.int32))
        scales = self._weight(np.full(count, _ACTIVATION_SCALE * _WEIGHT_SCALE, np.float32))
        zeros = self._weight(np.zeros(count, np.int32))
        return self._node("DequantizeLinear", [quantized, scales, zeros], "bias_dq", axis=0)

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        """A float tensor to compute with, from an input in the row's precision."""
        if not self.int8:
            return self._input(name, shape, "fp32")
        return self._dequantized(self._int8_input(name, shape))

    def _int8_input(self, name: str, shape: tuple[int, ...]) -> str:
        value = self._input(name, channels_last(shape), "int8")
        if len(shape) == 2:
            return value
        return self._node("Transpose", [value], f"{name}_first", perm=_TO_CHANNELS_FIRST)

    def _int8_output(self, value: str) -> None:
        if len(self.config.in_shape) == 2:
            self.nodes[-1].output[0] = "output"
        else:
            self._node("Transpose", [value], "output", perm=_TO_CHANNELS_LAST)

    def _dequantized(self, value: str) -> str:
        return self._node("DequantizeLinear", [value, *self._scale()], f"{value}_dq")

    def _dequantized_by_channel(self, value: str) -> str:
        """With one scale per channel, as the recipe writes it in front of a float layer."""
        channels = self.config.in_shape[1]
        scales = self._weight(np.full(channels, _ACTIVATION_SCALE, np.float32))
        zeros = self._weight(np.full(channels, ZERO_POINT, np.uint8))
        inputs = [value, scales, zeros]
        return self._node("DequantizeLinear", inputs, f"{value}_dq", axis=1)

    def _quantized(self, value: str, output: str, zero_point: int) -> str:
        return self._node("QuantizeLinear", [value, *self._scale(zero_point)], output)

    def _scale(self, zero_point: int = ZERO_POINT) -> list[str]:
        scale = self._weight(np.float32(_ACTIVATION_SCALE))
        return [scale, self._weight(np.uint8(zero_point))]


class TensorRTRow(RowGraph):
    """A row for TensorRT; the float parts of an int8 row are FP16."""

    types = {  # noqa: RUF012
        "fp32": "FLOAT",
        "fp16": "FLOAT16",
        "int8": "INT8",
    }

    def build(self) -> bytes:
        config = self.config
        ends = {config.precision_in, config.precision}
        self.floats = np.float32 if "fp32" in ends else np.float16
        base = "fp32" if "fp32" in ends else "fp16"
        if config.op == "empty":
            self._node("Identity", [self._input("input", config.in_shape, base)], "output")
            return self._finish(config.in_shape, base)
        if config.op == "attention":
            return self._attention()
        if config.op == "quantize":
            self._quantized(self._input("input", config.in_shape, base), "output")
            return self._finish(config.in_shape, "int8")
        if config.op == "dequantize":
            self._dequantized(self._input("input", config.in_shape, "int8"), "output")
            return self._finish(config.in_shape, base)
        shape, value = self._operator(self._operand("input", self._read_shape()))
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        if self.int8:
            self._quantized(value, "output")
        else:
            self.nodes[-1].output[0] = "output"
        return self._finish(shape, config.precision)

    def _tail_step(self, step: str, value: str, shape: tuple[int, ...]) -> str:
        word, *bounds = step.split(":")
        name = f"{word}{len(self.nodes)}"
        if word == "add":
            return self._node("Add", [value, self._operand("residual", shape)], name)
        if word == "scale":
            return self._scaled(value, shape, name)
        if word == "clip":
            limits = [self._weight(self.floats(item)) for item in bounds]
            return self._node("Clip", [value, *limits], name)
        known = word in TAIL_OPS or word in TAIL_CHAINS
        return self._activated(word, value, name) if known else value

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        if not self.int8:
            return self._input(name, shape, self.config.precision)
        return self._dequantized(self._input(name, shape, "int8"), f"{name}_dq")

    def _quantized_weight(self, shape: tuple[int, ...]) -> str:
        limit = _FULL_WEIGHT_LIMIT
        steps = self._in_pattern(self.rng.integers(-limit, limit + 1, shape))
        weight = self._weight((steps * _WEIGHT_SCALE).astype(self.floats))
        scales = self._weight(np.full(shape[0], _WEIGHT_SCALE, self.floats))
        zeros = self._weight(np.zeros(shape[0], np.int8))
        quantized = self._node("QuantizeLinear", [weight, scales, zeros], "weight_q", axis=0)
        return self._node("DequantizeLinear", [quantized, scales, zeros], "weight_dq", axis=0)

    def _quantized_bias(self, count: int) -> str:
        return self._weight(self.rng.standard_normal(count).astype(self.floats))

    def _quantized(self, value: str, output: str) -> str:
        return self._node("QuantizeLinear", [value, *self._scale()], output)

    def _dequantized(self, value: str, output: str) -> str:
        return self._node("DequantizeLinear", [value, *self._scale()], output)

    def _scale(self) -> list[str]:
        scale = self._weight(self.floats(_ACTIVATION_SCALE))
        return [scale, self._weight(np.int8(0))]


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, H, W) as (N, H, W, C); (N, C) as it is."""
    return shape if len(shape) == 2 else (shape[0], *shape[2:], shape[1])
