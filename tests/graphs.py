"""What a runtime makes of a graph, and graphs to give it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hwloop.records import LayerConfig
from hwloop.runtimes.known import writing
from hwloop.runtimes.proof import bindings

NO_BUILDER = """NVIDIA's builder is not installed: pip install "hwloop[rtx]\""""
needs_builder = pytest.mark.skipif(bindings() is None, reason=NO_BUILDER)


def row_onnx(config: LayerConfig, recipe: str = "ort-x86") -> bytes:
    """The graph of a row in one of the recipes."""
    return writing(recipe).row_graph(config)


def quantize(
    graph: bytes, nodes: Sequence[str], *, calibration: np.ndarray, recipe: str, isa: str
) -> bytes:
    """The graph with some nodes in int8, by one of the recipes."""
    return writing(recipe, isa).quantized(graph, nodes, calibration=calibration)


def optimized_ops(graph: bytes, folder: Path) -> list[onnx.NodeProto]:
    """The nodes that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return list(onnx.load(folder / "optimized.onnx").graph.node)


def nodes(graph: bytes, *ops: str) -> list[onnx.NodeProto]:
    """The nodes of these operators, or all."""
    found = onnx.load_from_string(graph).graph.node
    return [node for node in found if not ops or node.op_type in ops]


def weights(graph: bytes) -> dict[str, np.ndarray]:
    """The graph's constants by name."""
    found = onnx.load_from_string(graph).graph.initializer
    return {weight.name: onnx.numpy_helper.to_array(weight) for weight in found}


def node_graph(
    made: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, opset: int = 19
) -> bytes:
    """A hand-written graph from ``input`` (1, 16, 8, 8) to ``output``, both FP32."""
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", (1, 16, 8, 8)), ("output", (1, 32, 8, 8)))
    ]
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(made, "hand", ends[:1], ends[1:], values)
    opsets: Any = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())
