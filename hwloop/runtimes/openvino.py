"""OpenVINO on an x86 CPU, of any maker.

It reads the Q/DQ files that ONNX Runtime's recipe writes: an operator runs in int8 where it finds
quantized weights and a dequantize node in front of it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hwloop.records import LayerConfig
from hwloop.runtimes.onnxruntime import OnnxRuntime
from hwloop.runtimes.rows import ZERO_POINT, OrtRow, channels_last

_TO_CHANNELS_FIRST = [0, 3, 1, 2]


class OpenVino(OnnxRuntime):
    """ONNX Runtime's recipe for x86, without what keeps that runtime's own passes away."""

    name = "openvino"
    protects_float = False  # here what protects a float layer keeps int8 ones from int8
    recipes: ClassVar[tuple[str, ...]] = ("openvino",)

    @classmethod
    def recipe_for(cls, isa: str) -> str:
        return cls.recipes[0]

    @classmethod
    def install(cls, *, target: str, python: str, remote: bool) -> str:
        on_board = f"on the board: {python} -m pip install numpy openvino"
        return on_board if remote else 'pip install "hwloop[openvino]"'

    @property
    def reduces_range(self) -> bool:
        """On CPUs without VNNI sums of eight-bit products saturate here as well."""
        return "vnni" not in self.isa

    def row_graph(self, config: LayerConfig) -> bytes:
        return OpenVinoRow(config).build()


class OpenVinoRow(OrtRow):
    """A row for OpenVINO, which keeps tensors channels last within a network.

    What a kernel reads lies so: a transposition of floats in front of it is then found to change
    nothing, also where the float is an int8 tensor behind its dequantize node. Behind it such a
    transposition can cost more than the block itself, so a row gives one pixel of what the block
    has written, which stays where and as it is.
    """

    domains: tuple[str, ...] = ()

    def build(self) -> bytes:
        config = self.config
        if config.op in ("empty", "attention"):
            return super().build()
        if config.op == "quantize":
            value = self._input("input", config.in_shape, "fp32")
            return self._given(value, config.in_shape, "int8", ZERO_POINT)
        if config.op == "dequantize":
            value = self._dequantized(self._input("input", config.in_shape, "int8"))
            return self._given(value, config.in_shape, "fp32", 0)
        shape, value = self._operator(self._operand("input", self._read_shape()))
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        rectified = bool({"relu", "clip"} & {step.split(":")[0] for step in config.tail})
        given = "int8" if self.gives_int8 else "fp32"
        return self._given(value, shape, given, 0 if rectified else ZERO_POINT)

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        precision = "int8" if self.int8 else "fp32"
        last = self._reads_channels_last()
        value = self._input(name, channels_last(shape) if last else shape, precision)
        if self.int8:
            value = self._dequantized(value)
        if last:
            value = self._node("Transpose", [value], f"{name}_first", perm=_TO_CHANNELS_FIRST)
        return value

    def _reads_channels_last(self) -> bool:
        """Whether the block's kernel does, as the first of its graph.

        Pools of floats choose a layout by the CPU; the others read any.
        """
        op = self.config.op
        return op == "conv" or (self.int8 and op in ("maxpool", "avgpool"))

    def _given(self, value: str, shape: tuple[int, ...], precision: str, zero_point: int) -> bytes:
        """The finished graph, whose output is of a float value in a precision."""
        if precision == "int8":
            value = self._quantized(value, "quantized", zero_point)
        if len(shape) == 4 and max(shape[2:]) > 1:
            bounds = [self._weight(np.array(items)) for items in ([0, 0], [1, 1], [2, 3])]
            self._node("Slice", [value, *bounds], "pixel")
            shape = (*shape[:2], 1, 1)
        self.nodes[-1].output[0] = "output"
        return self._finish(shape, precision)
