"""OpenVINO on an x86 CPU, of any maker.

It reads the Q/DQ files that ONNX Runtime's recipe writes: an operator runs in int8 where it finds
quantized weights and a dequantize node in front of it.
"""

from __future__ import annotations

from typing import ClassVar

from hwloop.records import LayerConfig
from hwloop.runtimes.onnxruntime import OnnxRuntime
from hwloop.runtimes.rows import ZERO_POINT, OrtRow, channels_last

_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class OpenVino(OnnxRuntime):
    """ONNX Runtime's recipe for x86, without what keeps that runtime's own passes away."""

    name = "openvino"
    recipes: ClassVar[tuple[str, ...]] = ("openvino",)

    @classmethod
    def recipe_for(cls, isa: str) -> str:
        return cls.recipes[0]

    @classmethod
    def install(cls, *, target: str, python: str, remote: bool) -> str:
        on_board = f"on the board: {python} -m pip install numpy openvino"
        return on_board if remote else 'pip install "hwloop[openvino]"'

    protects_float = False

    @property
    def reduces_range(self) -> bool:
        """On CPUs without VNNI sums of eight-bit products saturate here as well."""
        return "vnni" not in self.isa

    def row_graph(self, config: LayerConfig) -> bytes:
        return OpenVinoRow(config).build()


class OpenVinoRow(OrtRow):
    """A row for OpenVINO, which keeps tensors channels last within a network.

    Inputs and outputs lie so, and the transpositions that say it are between floats: it then reads
    int8 as it lies, while a transposition in front of a dequantize node keeps a block from int8.
    """

    domains: tuple[str, ...] = ()

    def build(self) -> bytes:
        config = self.config
        if config.op == "empty":
            return super().build()
        if config.op == "quantize":
            value = self._first(self._input("input", channels_last(config.in_shape), "fp32"))
            return self._given(value, config.in_shape, "int8", ZERO_POINT)
        if config.op == "dequantize":
            value = self._dequantized(self._input("input", channels_last(config.in_shape), "int8"))
            return self._given(self._first(value), config.in_shape, "fp32", 0)
        shape, value = self._operator(self._operand("input", config.in_shape))
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        rectified = bool({"relu", "clip"} & {step.split(":")[0] for step in config.tail})
        return self._given(value, shape, config.precision, 0 if rectified else ZERO_POINT)

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        precision = "int8" if self.int8 else "fp32"
        value = self._input(name, channels_last(shape), precision)
        return self._first(self._dequantized(value) if self.int8 else value)

    def _first(self, value: str) -> str:
        """A float tensor as operators want it, of one that lies channels last."""
        if len(self.config.in_shape) == 2:
            return value
        return self._node("Transpose", [value], f"{value}_first", perm=_TO_CHANNELS_FIRST)

    def _given(self, value: str, shape: tuple[int, ...], precision: str, zero_point: int) -> bytes:
        """The finished graph, with a float value as its output in a precision."""
        if len(shape) == 4:
            value = self._node("Transpose", [value], f"{value}_last", perm=_TO_CHANNELS_LAST)
        if precision == "int8":
            value = self._quantized(value, "quantized", zero_point)
        self.nodes[-1].output[0] = "output"
        return self._finish(channels_last(shape), precision)
