"""ONNX Runtime on the host: the quantizer, the FP16 converter and the reference for checks."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.errors import EnvironmentProblem

TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""From 1.29 on ONNX Runtime reports to its makers what it runs, and keeps an identity and a cache
in the home folder, unless this is set before it is loaded. Whoever wants that sets it to 0."""


def part_of_onnxruntime(name: str, *, needed_for: str) -> Any:
    """The module ``onnxruntime`` or one below it.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    os.environ.setdefault(*TELEMETRY_OFF)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{needed_for} ONNX Runtime on this machine", 'pip install "hwloop[cpu]"'
        ) from error


def open_on_cpu(graph: bytes, *, needed_for: str, threads: int = 0, optimized: bool = True) -> Any:
    """A session on this machine's CPU. Raises EnvironmentProblem, or what ONNX Runtime says.

    Args:
        threads: within an operator; 0 for as many as there are cores.
        optimized: let it fuse operators; otherwise the graph runs as it is written.
    """
    onnxruntime = part_of_onnxruntime("onnxruntime", needed_for=needed_for)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def batches(session: Any, inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """The inputs in batches of the size that the graph takes; the last repeats some of them."""
    size = int(session.get_inputs()[0].shape[0])
    count = -(-len(inputs) // size)
    whole = np.resize(inputs, (count * size, *inputs.shape[1:]))
    return np.split(whole, count)
