"""ONNX to TensorRT engine: one strongly typed path from 10.3 to 11.x, precision only in the graph.

The module of TensorRT is an argument, so the same lines build with TensorRT for RTX on a machine
without a GPU. Variables are named after TensorRT's classes; tests/test_trt_names.py relies on it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from hwloop.device import trt_audit, trt_cache

KEPT_MESSAGES = 50
SHOWN_MESSAGES = 4
DEADLINE_S = 600.0
IMAGE_RANK = 4  # batch, channels, height, width
LAYER_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}


class BuildFailed(Exception):
    """No engine; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build, as plain JSON values.

    Attributes:
        workspace_bytes, tactic_dram_bytes: limits of the builder's memory, None for its own.
        sparse: whether some layer's weights are 2:4 sparse.
        precision: a precision that some layer must have (fp32, fp16, bf16, int8, fp8).
        row: a block alone: inputs and outputs in whichever layout its kernel likes best.
        timing_cache: path of the cache that all builds of this device share.
        compute_capability: builds for another GPU, e.g. ``SM86``; TensorRT for RTX only.
    """

    optimization_level: int = 3
    avg_timing_iterations: int = 8
    workspace_bytes: int | None = None
    tactic_dram_bytes: int | None = None
    tf32: bool = False
    sparse: bool = False
    precision: str | None = None
    row: bool = False
    deadline_s: float = DEADLINE_S
    timing_cache: str | None = None
    compute_capability: str | None = None


def build(onnx: bytes, request: BuildRequest, *, trt: Any) -> tuple[bytes, dict[str, Any]]:
    """Parse and build.

    Returns:
        The engine's bytes, and a record: version, layers and dtypes of the parsed network,
        parse_s, build_s, engine_bytes, sparsity (eligible, picked), timing_cache, workspace_bytes,
        tactic_dram_bytes, warnings.

    Raises:
        BuildFailed: every complaint of the parser, a missing precision, the deadline, or no engine.
    """
    log = logger(trt)
    log.clear()
    started = time.monotonic()
    builder = _made("builder", log, trt.Builder, log)
    network = _made("network", log, builder.create_network, _network_flags(trt))
    parser = _made("parser", log, trt.OnnxParser, network, log)
    if not parser.parse(onnx):
        raise BuildFailed(f"TensorRT's parser refuses the graph: {complaints(parser, log)}")
    dtypes = trt_audit.census(network)
    _check_precision(request.precision, dtypes)
    if request.row:
        _free_layouts(network, trt)
    parsed = time.monotonic()
    config = _made("builder configuration", log, builder.create_builder_config)
    _configure(config, request, trt)
    monitor = config.progress_monitor = progress_monitor(trt, parsed + request.deadline_s)
    cache_note = "none"
    if request.timing_cache is not None:
        cache_note = trt_cache.attach(config, request.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = f"cancelled after {request.deadline_s:.0f} s" if monitor.cancelled else "no reason"
        raise BuildFailed(f"TensorRT built no engine ({why}): {log.tail()}")
    if request.timing_cache is not None:
        cache_note += trt_cache.save(config, request.timing_cache)
    data = bytes(plan)
    record = {
        "version": str(trt.__version__),
        "layers": int(network.num_layers),
        "dtypes": dtypes,
        "parse_s": parsed - started,
        "build_s": time.monotonic() - parsed,
        "engine_bytes": len(data),
        "sparsity": trt_audit.sparsity(log.sparsity),
        "timing_cache": cache_note,
        **_asked(request),
        "warnings": log.messages("WARNING"),
    }
    return data, record


def _asked(request: BuildRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("workspace_bytes", "tactic_dram_bytes")}


def prove(
    onnx: bytes,
    *,
    trt: Any,
    precision: str | None = None,
    row: bool = False,
    compute_capability: str = "SM86",
    deadline_s: float = DEADLINE_S,
) -> dict[str, Any]:
    """Build in this process and keep only the record of :func:`build`; no GPU with RTX's module.

    Args:
        compute_capability: ignored by a TensorRT that builds for the GPU that it finds.
    """
    named = hasattr(trt, "ComputeCapability")
    request = BuildRequest(
        precision=precision,
        row=row,
        deadline_s=deadline_s,
        compute_capability=compute_capability if named else None,
    )
    return build(onnx, request, trt=trt)[1]


def complaints(parser: Any, log: Any) -> str:
    """Every error of the parser with its node and operator."""
    texts = []
    for index in range(parser.num_errors):
        problem = parser.get_error(index)
        node = f"{problem.node_operator()} {problem.node_name()!r}: "
        texts.append((node if problem.node_operator() else "") + problem.desc())
    return "; ".join(texts) or log.tail()


def _made(what: str, log: Any, make: Any, *args: Any) -> Any:
    """TensorRT says None, or raises about a null pointer, where it cannot make something."""
    try:
        thing = make(*args)
    except Exception as error:  # pybind's own exceptions, by version
        raise BuildFailed(f"TensorRT makes no {what}: {error}; {log.tail()}") from error
    if thing is None:
        raise BuildFailed(f"TensorRT makes no {what}: {log.tail()}")
    return thing


def _network_flags(trt: Any) -> int:
    # 11.x is always strongly typed and may drop the flag; EXPLICIT_BATCH is gone there.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _check_precision(precision: str | None, dtypes: dict[str, int]) -> None:
    if precision is None:
        return
    if precision not in LAYER_TYPES:
        raise BuildFailed(f"precision {precision!r} is none of {', '.join(LAYER_TYPES)}")
    if not dtypes.get(LAYER_TYPES[precision]):
        raise BuildFailed(f"{precision} was asked for and no layer has it: {dtypes}")


def image_layouts(trt: Any) -> dict[Any, tuple[Any, ...]]:
    """The layouts that a GPU has for inputs and outputs of four dimensions, by type.

    NVIDIA, "I/O Formats". TensorRT for RTX refuses others, or finds nothing for them, but for HWC16
    of int8: 10.3 does not have it, and one mask for all releases keeps their rows alike.
    """
    formats, types = trt.TensorFormat, trt.DataType
    linear, grouped_32 = formats.LINEAR, formats.CHW32
    return {
        types.FLOAT: (linear, grouped_32, formats.HWC),
        types.HALF: (linear, formats.CHW2, formats.HWC8, formats.HWC16, grouped_32),
        types.INT8: (linear, formats.CHW4, grouped_32),
    }


def _free_layouts(network: Any, trt: Any) -> None:
    """Let the builder choose the layout of every image-like input and output.

    Within a network it chooses them for all tensors; at the ends it keeps them row-major unless
    asked, so that a block alone pays for copies that it does not need there. All bits at once are
    the default, and ask for nothing.
    """
    layouts = image_layouts(trt)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    for io_tensor in tensors:
        if len(io_tensor.shape) == IMAGE_RANK and io_tensor.dtype in layouts:
            io_tensor.allowed_formats = sum(1 << int(kind) for kind in layouts[io_tensor.dtype])


def _configure(config: Any, request: BuildRequest, trt: Any) -> None:
    config.builder_optimization_level = request.optimization_level
    config.avg_timing_iterations = request.avg_timing_iterations
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the audit sees only names
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.tactic_dram_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, request.tactic_dram_bytes)
    # On by default, which would make an fp32 baseline a tf32 one.
    set_or_clear = config.set_flag if request.tf32 else config.clear_flag
    set_or_clear(trt.BuilderFlag.TF32)
    if request.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request.compute_capability is not None:
        capability = getattr(trt.ComputeCapability, request.compute_capability)
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)


_LOGS: dict[str, Any] = {}


def logger(trt: Any) -> Any:
    """The process's one logger: TensorRT ignores every later one."""
    if trt.__name__ not in _LOGS:
        _LOGS[trt.__name__] = _make_logger(trt)
    return _LOGS[trt.__name__]


def _make_logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """The last warnings and errors, which are the only reasons that TensorRT gives."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.sparsity: list[str] = []
            self._kept: deque[tuple[str, str]] = deque(maxlen=KEPT_MESSAGES)

        def clear(self) -> None:
            self.sparsity = []
            self._kept.clear()

        def log(self, severity: Any, message: str) -> None:
            name = str(severity).rsplit(".", 1)[-1]
            if message.startswith(trt_audit.SPARSITY):
                self.sparsity.append(message)
            elif name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                self._kept.append((name, message[:500]))

        def messages(self, severity: str) -> list[str]:
            return [text for name, text in self._kept if name == severity]

        def tail(self) -> str:
            """Errors before warnings: a warning is seldom the reason."""
            errors = [text for name, text in self._kept if name != "WARNING"]
            texts = errors or self.messages("WARNING")
            return "; ".join(texts[-SHOWN_MESSAGES:]) or "TensorRT logged nothing"

    return Log()


def progress_monitor(trt: Any, ends: float) -> Any:
    """Cancels a build when ``time.monotonic()`` has passed ``ends``."""

    class Deadline(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from several threads of the builder."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            self.cancelled = self.cancelled or time.monotonic() >= ends
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            pass

    return Deadline()
