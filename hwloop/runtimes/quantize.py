"""INT8 by quantize/dequantize nodes in the ONNX file, for the groups that were chosen.

The recipe belongs to the runtime, because no file suits both: ONNX Runtime fuses an operator
only between asymmetric uint8 tensors, TensorRT refuses those. ``qdq_ort`` and ``qdq_tensorrt``
say what each one writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwloop.errors import CandidateError
from hwloop.runtimes.qdq_ort import quantize_ort
from hwloop.runtimes.qdq_tensorrt import quantize_tensorrt

TENSORRT = "tensorrt"
LARGEST_BYTES = 2_000_000_000
"""ONNX keeps up to 2 GiB in one file; Q and DQ nodes take a little more than the float graph."""


def quantize(
    graph: bytes, nodes: Sequence[str], *, calibration: np.ndarray[Any, Any], recipe: str, isa: str
) -> bytes:
    """Quantize the named weighted nodes and what the runtime keeps in int8 around them.

    Args:
        graph: an exported FP32 graph.
        nodes: names of convolutions and linear layers.
        calibration: (N, ...) real inputs; ranges are the extremes seen.
        recipe: ort-x86, ort-arm or tensorrt.
        isa: instruction sets of the target, ``+``-separated.

    Raises:
        CandidateError: stage ``compress``: the graph cannot be quantized.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    if len(graph) > LARGEST_BYTES:
        size_gb = len(graph) / 1e9
        raise CandidateError("compress", f"INT8: the graph has {size_gb:.1f} GB, 2 at most can be")
    if recipe == TENSORRT:
        return quantize_tensorrt(graph, nodes, calibration=calibration)
    return quantize_ort(graph, nodes, calibration=calibration, recipe=recipe, isa=isa)
