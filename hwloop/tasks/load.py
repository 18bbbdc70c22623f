"""Tasks and networks from what the user gave: a shipped task's name, a SPEC, or an object."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from hwloop.errors import UsageError, closest
from hwloop.tasks import TASKS
from hwloop.tasks.calls import call_factory, call_user, shown
from hwloop.tasks.explicit import explicit
from hwloop.tasks.protocol import Task, TaskModel
from hwloop.tasks.spec import load_object

Maker: TypeAlias = Callable[[], nn.Module]  # a class or a function of the user's

_EXPECTED = (
    "give an object or a class derived from hwloop.task.ClassificationTask or hwloop.task.Task, "
    "a function that returns one, or a shipped task's name: " + ", ".join(TASKS)
)


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


def load_model(task: Task, spec: str | TaskModel | Maker | None = None) -> TaskModel:
    """A fresh network in eval mode: the one that SPEC names, or else the task's own.

    Args:
        spec: a SPEC of what :func:`as_model` takes, or the object itself.

    Raises:
        UsageError: see :func:`hwloop.tasks.spec.load_object` and :func:`as_model`.
    """
    if spec is None:
        what = f"model() of the task {task.name}"
        return explicit(_network(call_user(task.model, what=what), what)).eval()
    if isinstance(spec, str):
        return as_model(load_object(spec, what="the model"), spec=spec)
    return as_model(spec)


def as_model(found: TaskModel | Maker, *, spec: str | None = None) -> TaskModel:
    """A network in eval mode from what the user gave: a network, or a class or function of one.

    A network is copied, because it belongs to the user's program and must not be changed.

    Args:
        spec: the SPEC that named it, or None when it was given as an object.

    Raises:
        UsageError: it is no network and makes none, or its class or function needs an argument.
    """
    what = f"the model {spec}" if spec else f"model={shown(found)}"
    if isinstance(found, nn.Module):
        what = f"the model {spec or type(found).__name__}"
        copied: TaskModel = call_user(copy.deepcopy, found, what=f"copying {what}")
        return explicit(copied).eval()
    made: Any = call_factory(found, what=what, spec=spec) if callable(found) else found
    return explicit(_network(made, what)).eval()


def _network(found: Any, what: str) -> TaskModel:
    if isinstance(found, nn.Module):
        return found
    raise UsageError(
        f"{what} is a {type(found).__name__}, not a torch.nn.Module",
        "name a network, or a function without arguments that returns one with its weights",
    )
