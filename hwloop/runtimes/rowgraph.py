"""What the graphs of rows have in common for all runtimes: the operator and how a graph is made.

onnx is imported where a graph is made: runtimes are asked for much else without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.records import LayerConfig
from hwloop.runtimes.graph import ACTIVATIONS, OPSET

TAIL_OPS = {word: op for op, word in ACTIVATIONS.items()}
TAIL_CHAINS = ("gelu", "silu")
"""Activations that are several operators of ONNX, and one kernel of a runtime."""


class RowGraph:
    """Builds the nodes of one row; a runtime's own class says what int8 looks like.

    Attributes:
        types: name of the ONNX type of each precision's tensors.
        domains: operator sets that it needs beside ONNX's own.
        floats: numpy type of the weights that are not quantized.
    """

    types: dict[str, str]
    domains: tuple[str, ...] = ()
    floats: Any = np.float32

    def __init__(self, config: LayerConfig) -> None:
        self.config = config
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.int8 = config.precision == "int8"

    def build(self) -> bytes:
        """The finished graph, checked."""
        raise NotImplementedError

    def _quantized_weight(self, shape: tuple[int, ...]) -> str:
        raise NotImplementedError

    def _quantized_bias(self, count: int) -> str:
        raise NotImplementedError

    # --------------------------------------------------------------------- the operator

    def _operator(self, value: str) -> tuple[tuple[int, ...], str]:
        """Add the operator behind ``value``; its output's shape and name."""
        config = self.config
        batch = config.in_shape[0]
        if config.op == "linear":
            weight = self._quantizable((config.out_channels, config.in_shape[1]))
            inputs = [value, weight, *self._bias()]
            return (batch, config.out_channels), self._node("Gemm", inputs, "linear", transB=1)
        if config.op == "elementwise":
            return config.in_shape, value
        if config.op == "layernorm":
            weights = [self._per_channel(), self._per_channel()]
            node = self._node("LayerNormalization", [value, *weights], "norm", axis=-1)
            return config.in_shape, node
        if config.op == "batchnorm":
            return config.in_shape, self._batch_norm(value)
        if config.op == "concat":
            shape = (batch, config.in_shape[1] // 2, *config.in_shape[2:])
            parts = [value, self._operand("other", shape)]
            return config.in_shape, self._node("Concat", parts, "concat", axis=1)
        if config.op == "resize":
            shape = (*config.in_shape[:2], *config.kernel)
            size = self._weight(np.array(shape))
            return shape, self._node("Resize", [value, "", "", size], "image", mode="linear")
        if config.op == "globalavgpool":
            pooled = (batch, config.out_channels, 1, 1)
            return pooled, self._node("GlobalAveragePool", [value], "pool")
        shape = (batch, config.out_channels, *config.out_sides)
        if config.op in ("maxpool", "avgpool"):
            op = "MaxPool" if config.op == "maxpool" else "AveragePool"
            return shape, self._node(op, [value], "pool", **window(config))
        per_group = config.in_shape[1] // config.groups
        weight = self._quantizable((config.out_channels, per_group, *config.kernel))
        inputs = [value, weight, *self._bias()]
        return shape, self._node("Conv", inputs, "conv", group=config.groups, **window(config))

    def _batch_norm(self, value: str) -> str:
        weights = [self._per_channel() for _ in range(4)]
        return self._node("BatchNormalization", [value, *weights], "norm")

    def _per_channel(self) -> str:
        values = self.rng.uniform(0.5, 1.5, self.config.in_shape[1])
        return self._weight(values.astype(self.floats))

    def _scaled(self, value: str, shape: tuple[int, ...], name: str) -> str:
        """Each channel times a number of its own, as a gate does."""
        rows = shape[0] if len(shape) > 2 else 1
        gate = self._operand("gate", (rows, shape[1], *(1,) * len(shape[2:])))
        return self._node("Mul", [value, gate], name)

    def _read_shape(self) -> tuple[int, ...]:
        """Of the first tensor that the operator is given."""
        shape = self.config.in_shape
        if self.config.op == "concat":
            return (shape[0], shape[1] - shape[1] // 2, *shape[2:])
        return shape

    def _operand(self, name: str, shape: tuple[int, ...]) -> str:
        raise NotImplementedError

    def _activated(self, word: str, value: str, name: str) -> str:
        """An activation, as exporters write it."""
        if word == "silu":
            gate = self._node("Sigmoid", [value], f"{name}_gate")
            return self._node("Mul", [value, gate], name)
        if word == "gelu":
            root, one, half = (self._weight(self.floats(x)) for x in (2**0.5, 1.0, 0.5))
            scaled = self._node("Div", [value, root], f"{name}_scaled")
            error = self._node("Erf", [scaled], f"{name}_erf")
            gate = self._node("Add", [error, one], f"{name}_gate")
            return self._node(
                "Mul", [self._node("Mul", [value, gate], f"{name}_whole"), half], name
            )
        return self._node(TAIL_OPS[word], [value], name)

    def _attention(self) -> bytes:
        """All heads' products and their softmax, between what the linear layers give and read."""
        config, precision = self.config, self.config.precision
        batch, channels, queries, keys = config.in_shape
        heads = config.groups
        split = self._weight(np.array([batch, -1, heads, channels // heads]))
        parts = []
        for name, tokens, order in (
            ("input", queries, [0, 2, 1, 3]),
            ("keys", keys, [0, 2, 3, 1]),
            ("values", keys, [0, 2, 1, 3]),
        ):
            value = self._input(name, (batch, tokens, channels), precision)
            value = self._node("Reshape", [value, split], f"{name}_split")
            parts.append(self._node("Transpose", [value], f"{name}_heads", perm=order))
        scale = self._weight(self.floats((channels // heads) ** 0.5))
        logits = self._node("MatMul", parts[:2], "products")
        logits = self._node("Div", [logits, scale], "logits")
        weights = self._node("Softmax", [logits], "weights", axis=-1)
        mixed = self._node("MatMul", [weights, parts[2]], "mixed")
        mixed = self._node("Transpose", [mixed], "mixed_tokens", perm=[0, 2, 1, 3])
        joined = self._weight(np.array([batch, queries, channels]))
        self._node("Reshape", [mixed, joined], "output")
        return self._finish((batch, queries, channels), precision)

    def _quantizable(self, shape: tuple[int, ...]) -> str:
        if self.int8:
            return self._quantized_weight(shape)
        values = self.rng.standard_normal(shape).astype(np.float32) * 0.1
        return self._weight(self._in_pattern(values).astype(self.floats))

    def _in_pattern(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Of every four input channels two are zero, where the row's weights are 2:4 sparse."""
        if self.config.sparsity == "2:4":
            weight[:, 0::4] = weight[:, 1::4] = 0
        return weight

    def _bias(self) -> list[str]:
        if "bias" not in self.config.tail:
            return []
        count = self.config.out_channels
        if self.int8:
            return [self._quantized_bias(count)]
        values = self.rng.standard_normal(count).astype(np.float32)
        return [self._weight(values.astype(self.floats))]

    # ---------------------------------------------------------------------- the pieces

    def _input(self, name: str, shape: tuple[int, ...], precision: str) -> str:
        self.inputs.append(self._described(name, shape, precision))
        return name

    def _weight(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _finish(self, shape: tuple[int, ...], precision: str) -> bytes:
        from onnx import checker, helper

        output = self._described("output", shape, precision)
        graph = helper.make_graph(self.nodes, "row", self.inputs, [output], self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, 1) for domain in self.domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        checker.check_model(model)
        return bytes(model.SerializeToString())

    def _described(self, name: str, shape: tuple[int, ...], precision: str) -> Any:
        from onnx import TensorProto, helper

        return helper.make_tensor_value_info(
            name, TensorProto.DataType.Value(self.types[precision]), shape
        )


def window(config: LayerConfig) -> dict[str, Any]:
    """ONNX attributes of a kernel that moves over an image."""
    pads = [*config.padding, *config.padding]
    return {"kernel_shape": config.kernel, "strides": config.stride, "pads": pads}
