"""INT8 and FP8 for TensorRT: explicit Q/DQ where its builder fuses them, and nowhere else.

The rules (TensorRT documentation, "Explicit quantization"; NVIDIA Model Optimizer, ``onnx``):

* Everything is symmetric int8 with zero point 0: weights per output channel in [-127, 127],
  activations per tensor. Biases stay float: the parser refuses an int32 dequantize node.
* Q and DQ sit at the *inputs* of operators that run in int8. An output has none: where the next
  operator runs in int8, its own Q is fused into the kernel in front of it.
* A residual addition takes its skip operand in int8, the branch of the convolution directly, so
  that convolution, addition and activation become one kernel with an int8 output. The skip
  decides the precision of that output, so it is quantized only where the output is.
* Tensors that a pool, a reshape or a concatenation only passes on share one scale: the builder
  moves Q through these operators, and equal scales cancel.
* Scales are numbers that FP16 has, and above zero: a dead channel's scale of 0 is refused.
* FP8 has a pair at what such a node reads and at its weights, one scale each, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwloop.errors import CandidateError
from hwloop.runtimes.calibration import ranges
from hwloop.runtimes.fp8 import LARGEST, zero_point
from hwloop.runtimes.graph import GraphIndex

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
PASSING_ON = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat")
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh")
"""Operators as TensorRT treats them, so more than rows of the latency table have words for."""

LIMIT = 127
SMALLEST_SCALE = 2.0**-24
"""The smallest positive number of FP16."""

Use = tuple[Any, int]
"""A node and the position of one of its inputs."""


def quantize_tensorrt(
    graph: bytes,
    nodes: Sequence[str],
    *,
    calibration: NDArray[Any],
    fp8: Sequence[str] = (),
) -> bytes:
    """Make the named weighted nodes run in int8 on TensorRT, and others in FP8.

    Args:
        graph: an exported FP32 graph; convert the result to FP16 afterwards, not before.
        nodes: names of convolutions and linear layers.
        fp8: names of linear layers that are to run in FP8.
        calibration: (N, ...) real inputs; a tensor's range is the largest magnitude seen.

    Raises:
        CandidateError: stage ``compress``: a tensor's range is not finite, or the graph is one
            that ONNX Runtime cannot calibrate.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    model = onnx.load_from_string(graph)
    reader = _Placement(model.graph, frozenset(nodes))
    uses = reader.uses()
    in_fp8 = [node for node in model.graph.node if node.name in fp8]
    read = {node.input[position] for node, position in uses}
    read |= {node.input[0] for node in in_fp8}
    seen = ranges(model, read, calibration, optimized=True)
    magnitudes = {name: float(np.abs(extremes).max()) for name, extremes in seen.items()}
    writer = _Writer(model.graph, reader.shared(magnitudes))
    writer.add_int8(uses, reader.chosen)
    writer.add_fp8(in_fp8)
    writer.write()
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Placement:
    """Which inputs of which nodes are quantized, and which of them share a scale."""

    def __init__(self, graph: Any, names: Collection[str]) -> None:
        self.graph = graph
        self.constants = {weight.name for weight in graph.initializer}
        self.constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
        self.index = GraphIndex(graph)
        self.chosen = [node for node in graph.node if node.name in names]
        self.names = set(names)

    def uses(self) -> list[Use]:
        """Every (node, input) that reads int8, in no particular order."""
        found: list[Use] = [(node, 0) for node in self.chosen]
        for node in self.graph.node:
            if node.op_type in POOLS and self._comes_from_int8(node.input[0]):
                found.append((node, 0))
        quantized = {node.input[position] for node, position in found}
        # From the back: whether an addition's output is int8 may hang on a later addition.
        for node in reversed(self.graph.node):
            skip = self._skip(node) if node.op_type == "Add" else None
            if skip is not None and self._activated(node.output[0]) in quantized:
                found.append((node, skip))
                quantized.add(node.input[skip])
        return found

    def shared(self, ranges: dict[str, float]) -> dict[str, float]:
        """The ranges with the largest of those that must be equal in place of each."""
        roots: dict[str, str] = {}

        def root(name: str) -> str:
            while name in roots:
                name = roots[name]
            return name

        for node in self.graph.node:
            if node.op_type in PASSING_ON:
                own = root(node.output[0])
                for name in self._computed(node):
                    if root(name) != own:
                        roots[root(name)] = own
        largest: dict[str, float] = {}
        for name, value in ranges.items():
            largest[root(name)] = max(largest.get(root(name), 0.0), value)
        return {name: largest[root(name)] for name in ranges}

    def _skip(self, add: Any) -> int | None:
        """Position of the operand that does not come straight from the int8 convolution."""
        if len(self._computed(add)) != 2:
            return None
        fused = [
            (self.index.order[node.name], position)
            for position, name in enumerate(add.input)
            if (node := self.index.producers.get(name)) is not None
            and node.name in self.names
            and len(self.index.users[name]) == 1
        ]
        # Of two convolutions the later takes the addition in, as in the rows of the table.
        return 1 - max(fused)[1] if fused else None

    def _activated(self, tensor: str) -> str:
        """The tensor behind the activation that is fused with its producer."""
        user = self.index.only_user(tensor)
        if user is not None and user.op_type in ACTIVATIONS:
            return str(user.output[0])
        return tensor

    def _comes_from_int8(self, tensor: str) -> bool:
        node = self.index.producers.get(tensor)
        if node is None or node.op_type in WEIGHTED:
            return node is not None and node.name in self.names
        computed = self._computed(node)
        return bool(computed) and all(self._comes_from_int8(name) for name in computed)

    def _computed(self, node: Any) -> list[str]:
        return [name for name in node.input if name and name not in self.constants]


class _Writer:
    """Adds the nodes, each pair in front of the first node that reads it."""

    def __init__(self, graph: Any, ranges: dict[str, float]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.outputs: dict[str, str] = {}
        self.fp8_outputs: dict[str, str] = {}
        self.before: dict[str, list[Any]] = {}

    def add_int8(self, uses: Sequence[Use], chosen: Sequence[Any]) -> None:
        order = {node.name: index for index, node in enumerate(self.graph.node)}
        for node, position in sorted(uses, key=lambda use: order[use[0].name]):
            name = node.input[position]
            if name not in self.outputs:
                self._pair(node, name, _scale(name, np.float32(self.ranges[name])))
            node.input[position] = self.outputs[name]
        for node in chosen:
            name = node.input[1]
            if name not in self.outputs:
                self._quantize_weight(node, name)
            node.input[1] = self.outputs[name]

    def add_fp8(self, chosen: Sequence[Any]) -> None:
        """A pair at what each linear layer reads and at its weights.

        Args:
            chosen: in the order of the graph: a pair that several read is in front of the first.
        """
        for node in chosen:
            for position in (0, 1):
                name = node.input[position]
                if name not in self.fp8_outputs:
                    self._fp8_pair(node, name)
                node.input[position] = self.fp8_outputs[name]

    def write(self) -> None:
        """Put all new nodes in their places."""
        ordered = [item for node in self.graph.node for item in (*self._new(node), node)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _new(self, node: Any) -> list[Any]:
        return self.before.get(node.name, [])

    def _quantize_weight(self, node: Any, name: str) -> None:
        """Weights stay float behind a Q node, the form that every TensorRT reads.

        They are moved to the quantizer's own grid, so that FP16 rounding changes none of them.
        """
        values = numpy_helper.to_array(self.weights[name]).astype(np.float32)
        axis = _output_axis(node, values.ndim)
        others = tuple(index for index in range(values.ndim) if index != axis)
        scale = _scale(name, np.abs(values).max(axis=others))
        spread = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        grid = np.clip(np.rint(values / spread), -LIMIT, LIMIT) * spread
        self.weights[name].CopyFrom(numpy_helper.from_array(grid.astype(np.float32), name))
        self._pair(node, name, scale, axis=axis)

    def _fp8_pair(self, user: Any, name: str) -> None:
        weight = self.weights.get(name)
        values = self.ranges[name] if weight is None else numpy_helper.to_array(weight)
        scale, zero = f"{name}_fp8_scale", f"{name}_fp8_zero"
        value = _scale(name, np.abs(values).max(), limit=LARGEST)
        self.graph.initializer.extend((numpy_helper.from_array(value, scale), zero_point(zero)))
        self._nodes(user, name, f"{name}_fp8", [scale, zero])
        self.fp8_outputs[name] = f"{name}_fp8_dequantized"

    def _pair(self, user: Any, name: str, scale: NDArray[np.float32], **attributes: Any) -> None:
        """Q and DQ behind the tensor ``name``; ``outputs[name]`` is what their users read."""
        zero = np.zeros(scale.shape, np.int8)
        constants = []
        for word, value in (("scale", scale), ("zero_point", zero)):
            constants.append(f"{name}_{word}")
            self.graph.initializer.append(numpy_helper.from_array(value, constants[-1]))
        self._nodes(user, name, name, constants, **attributes)
        self.outputs[name] = f"{name}_dequantized"

    def _nodes(
        self, user: Any, source: str, name: str, constants: list[str], **attributes: Any
    ) -> None:
        middle, output = f"{name}_quantized", f"{name}_dequantized"
        for op, given, target in (
            ("QuantizeLinear", source, middle),
            ("DequantizeLinear", middle, output),
        ):
            node = helper.make_node(
                op, [given, *constants], [target], name=f"{name}_{op}", **attributes
            )
            self.before.setdefault(user.name, []).append(node)


def _output_axis(node: Any, rank: int) -> int:
    """The axis of a weight that holds the output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(item.name == "transB" and item.i for item in node.attribute) else 1
    return rank - 1


def _scale(name: str, largest: Any, limit: int = LIMIT) -> NDArray[np.float32]:
    """Steps so that ``largest`` becomes ``limit``, rounded up to what FP16 has, above zero.

    Raises:
        CandidateError: stage ``compress``: the range is not finite in FP16.
    """
    wanted = np.maximum(np.asarray(largest, np.float32) / limit, SMALLEST_SCALE)
    with np.errstate(over="ignore"):
        rounded = wanted.astype(np.float16)
    lower = rounded.astype(np.float32) < wanted
    scale = np.where(lower, np.nextafter(rounded, np.float16(np.inf)), rounded).astype(np.float32)
    if not np.isfinite(scale).all():
        word = "INT8" if limit == LIMIT else "FP8"
        raise CandidateError("compress", f"{word}: the range of tensor {name!r} is not finite")
    return scale
