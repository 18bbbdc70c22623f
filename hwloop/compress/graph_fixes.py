"""What the exporter writes in ways that runtimes or quantizers do not take, written otherwise."""

from __future__ import annotations

import math
from typing import Any

import onnx

from hwloop.runtimes.graph_shapes import attributes_of, with_shapes


def write_padding(model: Any) -> None:
    """In numbers where the exporter says "same": ONNX Runtime refuses that of a dilated kernel."""
    same = [
        node
        for node in model.graph.node
        if any(item.name == "auto_pad" and item.s.startswith(b"SAME") for item in node.attribute)
    ]
    shapes = with_shapes(model)[1] if same else {}
    for node in same:
        attributes = attributes_of(node)
        kernel = attributes["kernel_shape"]
        strides, dilations = (
            attributes.get(name) or [1] * len(kernel) for name in ("strides", "dilations")
        )
        sizes = zip(shapes[node.input[0]][2:], kernel, strides, dilations, strict=True)
        around = [
            max((math.ceil(side / stride) - 1) * stride + (taps - 1) * apart + 1 - side, 0)
            for side, taps, stride, apart in sizes
        ]
        kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend(kept)
        pads = [*(each // 2 for each in around), *(each - each // 2 for each in around)]
        node.attribute.append(onnx.helper.make_attribute("pads", pads))


def copy_shared_weights(graph: Any) -> None:
    """Give each user of a shared weight its own copy.

    The exporter merges equal weights through Identity nodes; quantizers need initializers.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        if node.input[0] not in weights:
            continue
        copy = onnx.TensorProto()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        weights[copy.name] = copy
        graph.initializer.append(copy)
        graph.node.remove(node)
