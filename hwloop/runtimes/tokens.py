"""Linear layers over tokens, as ONNX Runtime's INT8 kernel takes them.

It has a kernel with a bias for matrices alone. A product of (N, tokens, C) with the bias behind it
becomes two operators in INT8, the second of them as slow as half of the first; its own rewriting
to matrices is for floats.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx

from hwloop.runtimes.graph import GraphIndex


def tokens_as_rows(
    graph: Any, nodes: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Make named products of tokens with weights products of matrices, in place.

    They keep their names. What reads the same tokens reads them as the same matrix.

    Args:
        graph: with the shapes of its tensors; where one is not known, a node stays as it is.
    """
    rewriting = _Rewriting(graph)
    made: list[Any] = []
    taken: set[str] = set()  # what additions wrote that went with their product
    for node in graph.node:
        shape = shapes.get(node.input[0], ()) if node.input else ()
        if node.name in nodes and rewriting.takes(node, shape):
            made += rewriting.gemm(node, shape, taken)
        elif not taken.intersection(node.output):
            made.append(node)
    del graph.node[:]
    graph.node.extend(made)


class _Rewriting:
    """What is known of a graph, and which of its tensors are there as matrices."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        self._index = GraphIndex(graph)
        self._rows: dict[str, str] = {}

    def takes(self, node: Any, shape: tuple[int, ...]) -> bool:
        """Whether it is a product of tokens of known sizes with a weight."""
        if node.op_type != "MatMul" or len(shape) < 3 or min(shape) < 1:
            return False
        return len(self._weights.get(node.input[1], ())) == 2

    def gemm(self, node: Any, shape: tuple[int, ...], taken: set[str]) -> list[Any]:
        """The nodes in place of a product, and of its bias where it has one."""
        source, width = node.input[0], self._weights[node.input[1]][1]
        count, made = math.prod(shape[:-1]), []
        if source not in self._rows:
            self._rows[source] = self._described(f"{source}_rows", (count, shape[-1]))
            made.append(self._reshape(source, self._rows[source], (count, shape[-1])))
        inputs, last = [self._rows[source], node.input[1]], node
        add = self._index.only_user(node.output[0])
        if add is not None and add.op_type == "Add":
            bias = next((name for name in add.input if self._weights.get(name) == (width,)), None)
            if bias is not None:
                inputs, last = [*inputs, bias], add
                taken.add(add.output[0])
        found = self._described(f"{node.output[0]}_of_rows", (count, width))
        self._rows[last.output[0]] = found  # whoever reads it next takes the matrix
        made.append(onnx.helper.make_node("Gemm", inputs, [found], name=node.name))
        made.append(self._reshape(found, last.output[0], (*shape[:-1], width)))
        return made

    def _described(self, name: str, shape: tuple[int, ...]) -> str:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        self._graph.value_info.append(value)
        return name

    def _reshape(self, source: str, target: str, shape: tuple[int, ...]) -> Any:
        name = f"{target}_shape"
        size = onnx.numpy_helper.from_array(np.array(shape, dtype=np.int64), name)
        self._graph.initializer.append(size)
        return onnx.helper.make_node("Reshape", [source, name], [target], name=f"{target}_Reshape")
