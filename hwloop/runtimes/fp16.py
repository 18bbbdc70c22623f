"""FP16 graphs: what TensorRT runs where nothing is quantized.

A strongly typed builder takes precisions from the file, so the file has to say FP16. The
conversion is ONNX Runtime's; this module keeps it honest about what FP16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Collection
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx

from hwloop.errors import CandidateError
from hwloop.runtimes.host import part_of_onnxruntime

LARGEST = float(np.finfo(np.float16).max)

NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
SUMS = (
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"),
    *("ReduceLogSumExp", "ReduceProd"),
)
POWERS = (*("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Erf", "Softplus"),)
FALLBACKS: tuple[tuple[str, ...], ...] = ((), (*NORMS, *SUMS), (*NORMS, *SUMS, *POWERS))
"""Operators that stay FP32 between casts, in the order in which it is tried: none is best, because
a cast in the middle of an attention or a GELU keeps TensorRT from fusing it."""


def to_fp16(graph: bytes, kept: Collection[str] = ()) -> bytes:
    """The same network with FP16 tensors and weights; its inputs and outputs stay FP32.

    Quantize first: Q and DQ nodes are converted with the rest (opset 19 allows FP16 scales), so
    no cast comes between a dequantize node and the operator that it belongs to.

    Args:
        graph: an exported FP32 graph, with or without Q/DQ nodes.
        kept: operators that stay FP32, see :data:`FALLBACKS`.

    Raises:
        CandidateError: stage ``export``: a constant that FP16 cannot hold, named; or a graph that
            cannot be converted.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    float16 = _converter()
    model = onnx.load_from_string(graph)
    _check_constants(model.graph)
    try:
        result = float16.convert_float_to_float16(
            model, keep_io_types=True, op_block_list=sorted(stays_float(kept))
        )
        sort_nodes(result.graph)
        # The full check infers every type anew, so a missing cast is found here.
        onnx.checker.check_model(result, full_check=True)
    except (
        *(ValueError, RuntimeError, TypeError, AssertionError),
        *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
    ) as error:
        raise CandidateError("export", f"FP16: {type(error).__name__}: {error}") from error
    return bytes(result.SerializeToString())


def stays_float(kept: Collection[str]) -> frozenset[str]:
    """``kept`` and the operators that the converter knows no FP16 for."""
    return frozenset((*_converter().DEFAULT_OP_BLOCK_LIST, *kept))


def _converter() -> Any:
    return part_of_onnxruntime("onnxruntime.transformers.float16", needed_for="FP16 needs")


def sort_nodes(graph: Any) -> None:
    """Put every node behind the producers of its inputs, in place: the converter appends casts.

    Raises:
        ValueError: the graph has a cycle.
    """
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needs = {
        index: {producers[name] for name in node.input if name in producers}
        for index, node in enumerate(graph.node)
    }
    order = list(TopologicalSorter(needs).static_order())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _check_constants(graph: Any) -> None:
    # The converter would clamp them without a word, which only a bound of Clip survives.
    bounds = {name for node in graph.node if node.op_type == "Clip" for name in node.input[1:]}
    tensors = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for name, tensor in tensors.items():
        if tensor.data_type != onnx.TensorProto.FLOAT or name in bounds:
            continue
        values = np.abs(onnx.numpy_helper.to_array(tensor))
        largest = float(values.max(initial=0.0, where=np.isfinite(values)))
        if largest > LARGEST:
            raise CandidateError(
                "export", f"FP16: tensor {name!r} has {largest:.3g}, beyond FP16's {LARGEST:.0f}"
            )
