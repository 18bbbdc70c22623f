"""The user's side: what a network is for, on which data, and how it is scored.

Subclass :class:`ClassificationTask`, or :class:`Task` for anything else. The metric sees numpy
arrays only, so the same code scores PyTorch, ONNX Runtime and TensorRT.
"""

from __future__ import annotations

from hwloop.tasks.load import as_model, load_model
from hwloop.tasks.protocol import ClassificationTask, Task, TaskModel
from hwloop.tasks.splits import FolderSplit, Split, TensorSplit
from hwloop.tasks.validate import validate_task

__all__ = [
    "ClassificationTask",
    "FolderSplit",
    "Split",
    "Task",
    "TaskModel",
    "TensorSplit",
    "as_model",
    "load_model",
    "validate_task",
]
