"""Proof that NVIDIA's own parser and builder take a graph, on a machine without a GPU.

TensorRT for RTX compiles on the CPU for a GPU that is named, from the same parser and builder as
TensorRT; its wheels are the extra ``rtx``. It cannot time anything and knows no Jetson, so it
proves that a graph is legal and has the precisions that it should, not that it is fast.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from hwloop.errors import CandidateError

MODULE = "tensorrt_rtx_bindings"
DEADLINE_S = 120.0
LAYER_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "int8": "INT8"}


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
    """Check, parse and build a graph for compute capability 8.6, strongly typed.

    Args:
        precisions: fp32, fp16 or int8, each of which some layer must have.
        deadline_s: the build is cancelled after this many seconds.

    Returns:
        None where NVIDIA's wheels are not installed; then only ONNX's checker has looked.

    Raises:
        CandidateError: stage ``export``: the checker or the parser refuses the graph, with every
            node that it complains about, or a precision is missing; stage ``build``: no engine.
    """
    try:
        onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CandidateError("export", f"ONNX refuses the graph: {error}") from error
    trt = bindings()
    if trt is None:
        return None
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise CandidateError("export", f"NVIDIA's parser refuses the graph: {_complaints(parser)}")
    dtypes = _census(network)
    for precision in precisions:
        if not dtypes[LAYER_TYPES[precision]]:
            raise CandidateError("export", f"no layer is {precision}: {dict(dtypes)}")
    started = time.monotonic()
    engine = builder.build_serialized_network(network, _config(trt, builder, deadline_s))
    build_s = time.monotonic() - started
    if engine is None:
        late = f"no engine after {deadline_s:.0f} s" if build_s >= deadline_s else "no engine"
        raise CandidateError("build", "; ".join([late, *log.errors[:3]]))
    return Proof(
        builder=f"TensorRT for RTX {trt.__version__}",
        dtypes=tuple(sorted(dtypes.items())),
        build_s=build_s,
        engine_bytes=engine.nbytes,
    )


def bindings() -> Any:
    """NVIDIA's module, or None where it is not installed."""
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        return None


def _config(trt: Any, builder: Any, deadline_s: float) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.progress_monitor = _deadline(trt, time.monotonic() + deadline_s)
    return config


def _census(network: Any) -> Counter[str]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return Counter(layer.get_output(0).dtype.name for layer in layers if layer.num_outputs)


def _complaints(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors
    )


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors, which are the only reason that a failed build gives."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _deadline(trt: Any, ends: float) -> Any:
    class Deadline(trt.IProgressMonitor):  # type: ignore[misc]
        """Cancels the build when its time is over; called from the builder's threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            pass

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            return time.monotonic() < ends

    return Deadline()
