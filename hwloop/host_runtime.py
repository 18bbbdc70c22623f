"""ONNX Runtime on the host: the quantizer, the FP16 converter and the reference for checks."""

from __future__ import annotations

import importlib
from typing import Any

from hwloop.errors import EnvironmentProblem


def part_of_onnxruntime(name: str, *, needed_for: str) -> Any:
    """The module ``onnxruntime`` or one below it.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{needed_for} ONNX Runtime on this machine", 'pip install "hwloop[cpu]"'
        ) from error


def open_on_cpu(graph: bytes, *, needed_for: str) -> Any:
    """A session on this machine's CPU. Raises EnvironmentProblem, or what ONNX Runtime says."""
    onnxruntime = part_of_onnxruntime("onnxruntime", needed_for=needed_for)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
