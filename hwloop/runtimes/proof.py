"""Proof that NVIDIA's own parser and builder take a graph, on a machine without a GPU.

TensorRT for RTX compiles on the CPU for a GPU that is named, from the same parser and builder as
TensorRT; its wheels are the extra ``rtx``. It cannot time anything and knows no Jetson, so it
proves that a graph is legal and has the precisions that it should, not that it is fast.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from hwloop.device import trt_build
from hwloop.errors import CandidateError
from hwloop.runtimes.fp8 import has_fp8

MODULE = "tensorrt_rtx_bindings"
DEADLINE_S = 120.0
WITHOUT_FP8, WITH_FP8 = "SM86", "SM89"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the builder made of a graph.

    Attributes:
        builder: name and version.
        dtypes: (type of a parsed layer's first output, number of such layers), in name order.
        build_s: seconds of the build alone.
        engine_bytes: size of the engine.
    """

    builder: str
    dtypes: tuple[tuple[str, int], ...]
    build_s: float
    engine_bytes: int


def prove(
    graph: bytes, *, precisions: Collection[str] = (), deadline_s: float = DEADLINE_S
) -> Proof | None:
    """Check, parse and build a graph for compute capability 8.6, strongly typed; FP8 needs 8.9.

    Args:
        precisions: fp32, fp16, int8 or fp8, each of which some layer must have.
        deadline_s: the build is cancelled after this many seconds.

    Returns:
        None where NVIDIA's wheels are not installed; then only ONNX's checker has looked.

    Raises:
        CandidateError: stage ``export``: the checker or the parser refuses the graph, with every
            node that it complains about, or a precision is missing; stage ``build``: no engine.
    """
    try:
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CandidateError("export", f"ONNX refuses the graph: {error}") from error
    trt = bindings()
    if trt is None:
        return None
    try:
        gpu = WITH_FP8 if has_fp8(model) else WITHOUT_FP8
        record = trt_build.prove(graph, trt=trt, deadline_s=deadline_s, compute_capability=gpu)
    except trt_build.BuildFailed as error:
        stage = "export" if "parser refuses" in str(error) else "build"
        raise CandidateError(stage, str(error)) from error
    dtypes = record["dtypes"]
    for precision in precisions:
        if not dtypes.get(trt_build.LAYER_TYPES[precision]):
            raise CandidateError("export", f"no layer is {precision}: {dtypes}")
    return Proof(
        builder=f"TensorRT for RTX {record['version']}",
        dtypes=tuple(sorted(dtypes.items())),
        build_s=record["build_s"],
        engine_bytes=record["engine_bytes"],
    )


def layer_types(graph: bytes) -> dict[str, int] | None:
    """What TensorRT's parser makes of a graph: number of layers by type, e.g. CAST; not built.

    Returns:
        None where NVIDIA's wheels are not installed.

    Raises:
        CandidateError: stage ``export``: the parser refuses the graph.
    """
    trt = bindings()
    if trt is None:
        return None
    log = trt_build.logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)  # RTX is strongly typed without being told
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise CandidateError("export", f"the parser refuses: {trt_build.complaints(parser, log)}")
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return dict(sorted(Counter(layer.type.name for layer in layers).items()))


def bindings() -> Any:
    """NVIDIA's module, or None where it is not installed."""
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        return None
