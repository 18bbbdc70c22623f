"""The user's side: what a network is for, on which data, and how it is scored.

Subclass :class:`ClassificationTask`, or :class:`Task` for anything else. The metric sees numpy
arrays only, so the same code scores PyTorch, ONNX Runtime and TensorRT.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.errors import UsageError
from hwloop.spec import call_user, load_object
from hwloop.splits import FolderSplit, Split, TensorSplit

__all__ = [
    "ClassificationTask",
    "FolderSplit",
    "Split",
    "Task",
    "TaskModel",
    "TensorSplit",
    "load_model",
    "validate_task",
]

TaskModel: TypeAlias = nn.Module


class Task:
    """The plug-in protocol. Override every method; ``model`` only if no MODEL will be given.

    Attributes:
        name: short name for reports and messages.
        metric_name: what ``metric`` returns, e.g. ``accuracy``.
        higher_is_better: direction of the metric.
    """

    name: str = "task"
    metric_name: str = "metric"
    higher_is_better: bool = True

    def model(self) -> TaskModel:
        """The trained network: one float tensor (N, ...) in, one tensor (N, ...) out."""
        raise UsageError(
            f"the task {self.name} brings no model", f"name one: hwloop optimize MODEL --task {self.name}"
        )

    def example(self) -> Tensor:
        """One input of the deployed shape, as a batch of 1."""
        raise NotImplementedError

    def train(self) -> Split:
        """What recovery (distillation, batch-norm statistics) may learn from."""
        raise NotImplementedError

    def search(self) -> Split:
        """What candidates are scored on during the search; in neither of the other splits."""
        raise NotImplementedError

    def test(self) -> Split:
        """What the final figures are scored on, once."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Differentiable loss of a batch, a scalar."""
        raise NotImplementedError

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        """Score of all outputs (N, ...) against all targets (N, ...), in the metric's own unit."""
        raise NotImplementedError

    def drop(self, baseline: float, value: float) -> float:
        """How much worse ``value`` is than ``baseline``, in the metric's unit: positive = worse."""
        return baseline - value if self.higher_is_better else value - baseline


class ClassificationTask(Task):
    """Logits (N, classes) against integer targets (N,): cross-entropy, top-1 accuracy in [0, 1]."""

    metric_name = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return float((outputs.argmax(axis=1) == targets).mean())
