"""INT8 by quantize/dequantize nodes in the ONNX file, for the groups that were chosen.

The recipe belongs to the runtime. ``ort-x86``: asymmetric uint8 activations, symmetric int8
weights per channel, quantized biases, seven-bit weights where the CPU has no VNNI (its 16-bit
sums of two products would saturate; ONNX Runtime documentation, "Quantize ONNX models").
``ort-arm``: the same with full-range weights.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwloop.errors import CandidateError, EnvironmentProblem

RECIPE_VERSION = "1"
FOLLOWERS = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")
"""Operators that run in int8 when everything that feeds them does."""


def quantize(
    graph: bytes, nodes: Sequence[str], *, calibration: np.ndarray[Any, Any], recipe: str, isa: str
) -> bytes:
    """Quantize the named weighted nodes and what follows them in int8.

    Args:
        graph: an exported FP32 graph.
        nodes: names of convolutions and linear layers.
        calibration: (N, ...) real inputs; ranges are the extremes seen.
        recipe: ort-x86 or ort-arm.
        isa: instruction sets of the target, ``+``-separated.

    Raises:
        CandidateError: stage ``compress``: the quantizer refused the graph.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise EnvironmentProblem(
            "INT8 needs ONNX Runtime on this machine", 'pip install "hwloop[cpu]"'
        ) from error
    model = onnx.load_from_string(graph)
    chosen = sorted(_with_followers(model.graph, set(nodes)))
    names = {node.name: node.op_type for node in model.graph.node}
    try:
        with tempfile.TemporaryDirectory(prefix="hwloop-") as folder, _quiet():
            path = Path(folder) / "int8.onnx"
            quantization.quantize_static(
                model,
                path,
                _Reader(model.graph.input[0].name, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=recipe == "ort-x86" and "vnni" not in isa,
                nodes_to_quantize=chosen,
                op_types_to_quantize=sorted({names[name] for name in chosen}),
            )
            result = onnx.load(path)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CandidateError("compress", f"INT8: {type(error).__name__}: {error}") from error
    _protect_float_layers(result.graph)
    return bytes(result.SerializeToString())


def _with_followers(graph: Any, chosen: Collection[str]) -> set[str]:
    """Add the operators whose computed inputs all come from chosen nodes."""
    constants = {weight.name for weight in graph.initializer}
    inside = set(chosen)
    tensors = {output for node in graph.node if node.name in inside for output in node.output}
    for node in graph.node:
        computed = [name for name in node.input if name and name not in constants]
        if node.op_type in FOLLOWERS and computed and all(name in tensors for name in computed):
            inside.add(node.name)
            tensors.update(node.output)
    return inside


def _protect_float_layers(graph: Any) -> None:
    """Keep layers float that were meant to be, between int8 neighbours.

    ONNX Runtime quantizes the weights of any convolution that it finds between a per-tensor
    dequantize and a quantize node (its WeightBiasQuantization pass), which would make the file
    lie about its precisions. It leaves a per-channel dequantize node alone, so such a layer reads
    its input through one of its own, with equal scales.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for node in list(graph.node):
        source = producers.get(node.input[0]) if node.input else None
        if (
            node.op_type not in ("Conv", "Gemm")
            or node.input[1] not in weights
            or source is None
            or source.op_type != "DequantizeLinear"
        ):
            continue
        channels = _input_channels(node, weights[node.input[1]])
        new = onnx.NodeProto()
        new.CopyFrom(source)
        new.name = f"{node.name}_input_DequantizeLinear"
        new.output[0] = f"{node.name}_input"
        for position in (1, 2):
            value = np.full(channels, onnx.numpy_helper.to_array(weights[source.input[position]]))
            name = f"{new.name}_{position}"
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))
            new.input[position] = name
        new.attribute.append(onnx.helper.make_attribute("axis", 1))
        node.input[0] = new.output[0]
        graph.node.insert(list(graph.node).index(node), new)
        if not any(source.output[0] in user.input for user in graph.node):
            graph.node.remove(source)


def _input_channels(node: Any, weight: Any) -> int:
    attributes = {item.name: item.i for item in node.attribute if item.name in ("group", "transB")}
    if node.op_type == "Conv":
        return int(weight.dims[1] * attributes.get("group", 1))
    return int(weight.dims[1] if attributes.get("transB") else weight.dims[0])


class _Reader:
    """Feeds calibration inputs one by one, in ONNX Runtime's protocol."""

    def __init__(self, name: str, inputs: np.ndarray[Any, Any]) -> None:
        self.feeds = iter([{name: inputs[i : i + 1]} for i in range(len(inputs))])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self.feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice about pre-processing, which export has done already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
