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
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    index = GraphIndex(graph)
    rows: dict[str, str] = {}
    for node in list(graph.node):
        shape = shapes.get(node.input[0], ()) if node.input else ()
        if node.op_type != "MatMul" or node.name not in nodes or len(shape) < 3:
            continue
        if len(weights.get(node.input[1], ())) == 2 and min(shape) > 0:
            _make_gemm(graph, node, index, shape, weights, rows)


def _make_gemm(
    graph: Any,
    node: Any,
    index: GraphIndex,
    shape: tuple[int, ...],
    weights: dict[str, tuple[int, ...]],
    rows: dict[str, str],
) -> None:
    source, width = node.input[0], weights[node.input[1]][1]
    made = []
    if source not in rows:
        rows[source] = f"{source}_rows"
        made.append(_reshape(graph, source, rows[source], (math.prod(shape[:-1]), shape[-1])))
    inputs, last = [rows[source], node.input[1]], node
    add = index.only_user(node.output[0])
    bias = (
        next((name for name in add.input if weights.get(name) == (width,)), None) if add else None
    )
    if add is not None and add.op_type == "Add" and bias is not None:
        inputs, last = [*inputs, bias], add
    found = f"{node.output[0]}_of_rows"
    rows[last.output[0]] = found  # whoever reads it next takes the matrix
    made.append(onnx.helper.make_node("Gemm", inputs, [found], name=node.name))
    made.append(_reshape(graph, found, last.output[0], (*shape[:-1], width)))
    described = (
        (rows[source], (math.prod(shape[:-1]), shape[-1])),
        (found, (math.prod(shape[:-1]), width)),
    )
    known = {value.name for value in graph.value_info}
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name, size in described
        if name not in known
    )
    position = list(graph.node).index(node)
    for gone in {id(node): node, id(last): last}.values():
        graph.node.remove(gone)
    for offset, each in enumerate(made):
        graph.node.insert(position + offset, each)


def _reshape(graph: Any, source: str, target: str, shape: tuple[int, ...]) -> Any:
    name = f"{target}_shape"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, dtype=np.int64), name))
    return onnx.helper.make_node("Reshape", [source, name], [target], name=f"{target}_Reshape")
