"""The shapes within an exported graph, also where the file does not say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from hwloop.runtimes.host import open_on_cpu

READ = ("Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators whose inputs' shapes must be known."""


def with_shapes(model: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A graph, with its shapes inferred where they were not written into it; and all of them.

    Sizes that the graph computes, as ``x.flatten(2)`` does, are found by following the numbers as
    well, or else by running it. The file itself stays as it was exported.
    """
    shapes = _shapes(model.graph)
    if all(min(shape, default=1) > 0 for shape in shapes.values()):
        return model, shapes
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = _shapes(model.graph)
    read = [node for node in model.graph.node if node.op_type in READ]
    unknown = [name for node in read for name in node.input if name not in shapes]
    weights = {weight.name for weight in model.graph.initializer}
    if set(unknown) - weights or any(
        min(shapes.get(name, ()), default=1) < 1 for node in read for name in node.input
    ):
        shapes.update(_seen_shapes(model, shapes))
    return model, shapes


def attributes_of(node: Any) -> dict[str, Any]:
    """What a node says of itself, by name."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _seen_shapes(model: Any, known: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Of all values that are not known, in a run of the graph.

    Raises:
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [
        name
        for node in model.graph.node
        for name in node.output
        if name and min(known.get(name, (0,)), default=1) < 1
    ]
    outputs = {value.name for value in model.graph.output}
    shown.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    session = open_on_cpu(
        shown.SerializeToString(), needed_for="the sizes within this network need", optimized=False
    )
    inputs = {value.name: np.zeros(_dims(value), np.float32) for value in model.graph.input}
    found = session.run(names, inputs)
    return {name: tuple(np.shape(value)) for name, value in zip(names, found, strict=True)}


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Of every value that the graph says something about; 0 where a size is not known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: _dims(v) for v in values if v.type.tensor_type.HasField("shape")}


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
