"""INT8 for ONNX Runtime: its own quantizer, kept to the layers that were chosen.

``ort-x86``: asymmetric uint8 activations, symmetric int8 weights per channel, quantized biases,
seven-bit weights where the CPU has no VNNI (its 16-bit sums of two products would saturate; ONNX
Runtime documentation, "Quantize ONNX models"). ``ort-arm``: the same with full-range weights.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from hwloop.errors import CandidateError
from hwloop.runtimes.calibration import ranges
from hwloop.runtimes.graph import GraphIndex
from hwloop.runtimes.graph_shapes import with_shapes
from hwloop.runtimes.host import part_of_onnxruntime
from hwloop.runtimes.tokens import tokens_as_rows

FOLLOWERS = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")
"""Operators that run in int8 when everything that feeds them does."""

GIVES_FLOATS = ("Gemm", "MatMul")
"""What gives floats also in int8: the runtime's kernel does so at no cost, and what follows linear
layers (norms, GELU, softmax) is fused, and exact, as floats alone."""

RECTIFIERS = ("Relu", "Clip")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

MARKED_BYTES = 991
"""From this size on a weight says that it lies in the file, as ``quantize_static`` leaves it: a
network is then the same file, and known under the same digest, whichever of the two wrote it."""


def quantize_ort(
    graph: bytes,
    nodes: Sequence[str],
    *,
    calibration: np.ndarray[Any, Any],
    reduce_range: bool,
    protect: bool,
) -> bytes:
    """Quantize the named weighted nodes and what follows them in int8.

    Args:
        graph: an exported FP32 graph.
        nodes: names of convolutions and linear layers.
        calibration: (N, ...) real inputs; ranges are the extremes seen.
        reduce_range: weights have seven bits.
        protect: float layers and pools next to int8 ones, and int8 linear layers in front of a
            rectifier, are kept from ONNX Runtime's own passes.

    Raises:
        CandidateError: stage ``compress``: the quantizer refused the graph.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    if any(node.op_type == "MatMul" and node.name in nodes for node in model.graph.node):
        tokens_as_rows(model.graph, set(nodes), with_shapes(model)[1])
    channels = _channels(model.graph)
    chosen = sorted(_with_followers(model.graph, set(nodes)))
    seen = ranges(model, _float_tensors(model.graph, chosen), calibration, optimized=False)
    try:
        result = _rewritten(model, chosen, seen, reduce_range=reduce_range)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CandidateError("compress", f"INT8: {type(error).__name__}: {error}") from error
    if protect:
        _protect_float_layers(result.graph)
        _protect_float_pools(result.graph, channels)
        _rectify_apart(result.graph)
    return bytes(result.SerializeToString())


def _float_tensors(graph: Any, nodes: Collection[str]) -> set[str]:
    """What these nodes compute with: floats that are not constant."""
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    wanted = [node for node in graph.node if node.name in nodes]
    read = {name for node in wanted for name in (*node.input, *node.output)}
    return (read & floats) - {weight.name for weight in graph.initializer}


def _rewritten(
    model: Any,
    nodes: Sequence[str],
    seen: Mapping[str, np.ndarray[Any, Any]],
    *,
    reduce_range: bool,
) -> Any:
    """ONNX Runtime's quantizer on a model in memory: all that is known of its insides.

    ``quantize_static`` does the same by way of files, which outlive a process that is killed.

    Args:
        model: with inferred shapes; it is changed.
        seen: smallest and largest value of every tensor that the nodes read or write.
    """
    quantization = part_of_onnxruntime("onnxruntime.quantization", needed_for="INT8 needs")
    # Without this mark the quantizer infers the shapes again, in a folder of its own.
    onnx.helper.set_model_props(model, {"onnx.infer": "onnxruntime.quant"})
    for weight in model.graph.initializer:
        if len(weight.raw_data) >= MARKED_BYTES:
            weight.data_location = onnx.TensorProto.DEFAULT
    extremes = {
        name: quantization.TensorData(lowest=low.reshape(1), highest=high.reshape(1))
        for name, (low, high) in seen.items()
    }
    names = {node.name: node.op_type for node in model.graph.node}
    with _quiet():
        quantizer = quantization.QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QUInt8,
            tensors_range=extremes,
            nodes_to_quantize=list(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({names[name] for name in nodes}),
            extra_options={"OpTypesToExcludeOutputQuantization": list(GIVES_FLOATS)},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _with_followers(graph: Any, chosen: Collection[str]) -> set[str]:
    """Add the operators whose computed inputs all come from chosen nodes."""
    constants = {weight.name for weight in graph.initializer}
    # The bounds of a Clip are nodes; with one that is left out each convolution is rounded twice.
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    inside = set(chosen)
    tensors = {
        output
        for node in graph.node
        if node.name in inside and node.op_type not in GIVES_FLOATS
        for output in node.output
    }
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
    producers = GraphIndex(graph).producers
    for node in list(graph.node):
        source = producers.get(node.input[0]) if node.input else None
        if (
            node.op_type not in ("Conv", "Gemm")
            or node.input[1] not in weights
            or source is None
            or source.op_type != DEQUANTIZE
        ):
            continue
        new = onnx.NodeProto()
        new.CopyFrom(source)
        new.name = f"{node.name}_input_DequantizeLinear"
        new.output[0] = f"{node.name}_input"
        _make_per_channel(graph, new, weights, _input_channels(node, weights[node.input[1]]))
        node.input[0] = new.output[0]
        graph.node.insert(list(graph.node).index(node), new)
        if not any(source.output[0] in user.input for user in graph.node):
            graph.node.remove(source)


def _protect_float_pools(graph: Any, channels: dict[str, int]) -> None:
    """Keep a max-pool between a float layer and an int8 one float.

    ONNX Runtime moves a per-tensor quantize node from behind a pool to its front (its
    QDQPropagation pass), where it finds the slow 8-bit kernel for channels first: 4.1 ms instead
    of 0.1 ms behind the stem of ResNet-18. It leaves a per-channel quantize node where it is.

    Args:
        channels: channels of every tensor of the float graph, by name.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    producers = GraphIndex(graph).producers
    for node in [node for node in graph.node if node.op_type == QUANTIZE]:
        pool = producers.get(node.input[0])
        if pool is None or pool.op_type != "MaxPool":
            continue
        source = producers.get(pool.input[0])
        if source is None or source.op_type != DEQUANTIZE:
            _make_per_channel(graph, node, weights, channels[node.input[0]])


def _rectify_apart(graph: Any) -> None:
    """Keep an int8 linear layer int8 whose rectified floats are read as floats.

    ONNX Runtime takes a Relu or a Clip for part of the layer's group of Q and DQ nodes. Where no
    quantize node ends that group it leaves the layer float and dequantizes its weights in every
    run. The same as Max and Min does not concern it.
    """
    index = GraphIndex(graph)
    for node in [node for node in graph.node if node.op_type in RECTIFIERS]:
        layer = index.producers.get(node.input[0])
        if layer is None or layer.op_type != "Gemm":
            continue
        weight = index.producers.get(layer.input[1])
        readers = {user.op_type for user in index.users.get(node.output[0], ())}
        if weight is not None and weight.op_type == DEQUANTIZE and readers != {QUANTIZE}:
            _as_extremes(graph, node)


def _as_extremes(graph: Any, node: Any) -> None:
    """A Relu or a Clip by Max and Min."""
    lowest, highest = (*node.input[1:], "", "")[:2]
    if node.op_type == "Relu":
        lowest = f"{node.name}_lowest"
        zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), lowest)
        graph.initializer.append(zero)
    value, made = node.input[0], []
    for op, bound in (("Max", lowest), ("Min", highest)):
        if bound:
            name = f"{node.name}_{op}"
            made.append(onnx.helper.make_node(op, [value, bound], [name], name=name))
            value = name
    if not made:
        return
    made[-1].output[0] = node.output[0]
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for step, new in enumerate(made):
        graph.node.insert(place + step, new)


def _make_per_channel(graph: Any, node: Any, weights: dict[str, Any], channels: int) -> None:
    """Spell the one scale and zero point of a Q or DQ node out for each channel."""
    for position in (1, 2):
        value = np.full(channels, onnx.numpy_helper.to_array(weights[node.input[position]]))
        name = f"{node.name}_{position}"
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        node.input[position] = name
    node.attribute.append(onnx.helper.make_attribute("axis", 1))


def _channels(graph: Any) -> dict[str, int]:
    return {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in (*graph.input, *graph.value_info, *graph.output)
        if len(value.type.tensor_type.shape.dim) > 1
    }


def _input_channels(node: Any, weight: Any) -> int:
    attributes = {item.name: item.i for item in node.attribute if item.name in ("group", "transB")}
    if node.op_type == "Conv":
        return int(weight.dims[1] * attributes.get("group", 1))
    return int(weight.dims[1] if attributes.get("transB") else weight.dims[0])


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
