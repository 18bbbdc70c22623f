"""The shipped tasks by name, and how a user's own task is loaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwloop.errors import UsageError, closest
from hwloop.tasks.spec import call_factory, load_object, shown

if TYPE_CHECKING:  # the names below are shown by --help, which must not wait for torch
    from hwloop.task import Task

TASKS: dict[str, str] = {
    "demo": "bundled: ResNet-20 on a subset of Fashion-MNIST; needs no download",
    "fashion-mnist": "all of Fashion-MNIST with the bundled ResNet-20; --data FOLDER or download",
    "cifar10": "CIFAR-10 for a MODEL of yours; --data FOLDER or download",
    "images": "image folders in ImageNet's layout for a MODEL of yours; needs --data FOLDER",
}

_EXPECTED = (
    "give an object or a class derived from hwloop.task.ClassificationTask or hwloop.task.Task, "
    "a function that returns one, or a shipped task's name: " + ", ".join(TASKS)
)


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


def load_task(spec: str, *, data: Path | None = None) -> Task:
    """The shipped task of that name, or the task that a SPEC names.

    Args:
        spec: a name in TASKS, or a SPEC of a Task, of a Task class, or of a function that
            returns a Task.
        data: folder of the data set, for shipped tasks that read one.

    Raises:
        UsageError: unknown name, wrong or missing data folder, or a SPEC that is no task.
    """
    if ":" not in spec:
        return _shipped(spec, data)
    if data is not None:
        raise UsageError(
            f"--data is for shipped tasks; {spec} is your own",
            f'pass the folder in the call instead: {spec.partition("(")[0]}("{data}")',
        )
    found = load_object(spec, what="the task")
    return as_task(found, spec=spec)


def as_task(found: Any, *, spec: str | None = None) -> Task:
    """A task from what the user gave: a class is instantiated, a function is called.

    Args:
        spec: the SPEC that named it, or None when it was given as an object.

    Raises:
        UsageError: it is no task and makes none, or its class or function needs an argument.
    """
    from hwloop.task import Task

    what, verb = f"the task {spec}" if spec else f"task={shown(found)}", "is"
    if inspect.isclass(found) and not issubclass(found, Task):
        raise UsageError(f"{what} is a class, but none of a Task", _EXPECTED)
    if not isinstance(found, Task) and callable(found):
        found, verb = call_factory(found, what=what, spec=spec), "returned"
    if not isinstance(found, Task):
        raise UsageError(f"{what} {verb} a {type(found).__name__}, not a Task", _EXPECTED)
    return found


def _shipped(name: str, data: Path | None) -> Task:
    if name == "demo":
        from hwloop.tasks.demo.task import DemoTask

        return DemoTask()
    if name == "fashion-mnist":
        from hwloop.tasks.fashion_mnist import FashionMnistTask

        return FashionMnistTask(data)
    if name == "cifar10":
        from hwloop.tasks.cifar10 import Cifar10Task

        return Cifar10Task(data)
    if name == "images":
        from hwloop.tasks.images import ImageFolderTask

        return ImageFolderTask(data)
    raise UsageError(
        f"there is no task {name!r}", f"{closest(name, TASKS)} Your own: --task file.py:MyTask"
    )
