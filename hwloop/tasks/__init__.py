"""The user's network, data and metric; the shipped tasks by name."""

from __future__ import annotations

from typing import Any

from hwloop.errors import UsageError

TASKS: dict[str, str] = {
    "demo": "bundled: ResNet-20 on a subset of Fashion-MNIST; needs no download",
    "fashion-mnist": "all of Fashion-MNIST with the bundled ResNet-20; --data FOLDER or download",
    "cifar10": "CIFAR-10 for a MODEL of yours; --data FOLDER or download",
    "images": "image folders in ImageNet's layout for a MODEL of yours; needs --data FOLDER",
}


def task_for(model: Any, task: Any) -> Any:
    """The task that goes with a model: the demo where neither is given.

    Raises:
        UsageError: a model without a task: no data set goes without saying.
    """
    if task is None and model is not None:
        raise UsageError(
            "a MODEL needs the data that it was trained for, and there is no --task",
            "--task my.py:MyTask, or a shipped task: --task images --data FOLDER "
            "(--task demo is Fashion-MNIST)",
        )
    return "demo" if task is None else task
