"""What would fail hours into a search, or silently mislead it, is found before it begins."""

from __future__ import annotations

import itertools
import math
import numbers
from typing import Any

import torch
from torch import Tensor

from hwloop.errors import UsageError
from hwloop.parsing import a_number
from hwloop.tasks.calls import call_user, needed_arguments
from hwloop.tasks.protocol import SPLITS, Task, TaskModel
from hwloop.tasks.splits import Split, spread

REQUIRED = ("example", "train", "search", "test", "loss", "metric")
PROBE_SIZE = 64  # enough for a metric that needs several classes, and still instant


def validate_task(task: Task, model: TaskModel) -> None:
    """Check everything that would otherwise fail, or silently mislead, hours into a search.

    Puts the network in eval mode, reads a few samples of each split and scores a small batch.

    Raises:
        UsageError: a method is missing; a split is empty, overlaps another or does not match
            ``example()``; the weights or outputs are not finite; the loss or metric is no number;
            the share of the labels is none.
    """
    _check_label_share(task)
    for name in REQUIRED if task.label_share else [name for name in REQUIRED if name != "loss"]:
        if getattr(getattr(task, name, None), "__func__", None) is getattr(Task, name):
            raise UsageError(
                f"the task {task.name} has no {name}()",
                f"add to {type(task).__name__}: def {name}(self, ...), see hwloop.task.Task.{name}",
            )
    _check_network(model)
    example = _checked_example(task)
    splits = {name: call_user(getattr(task, name), what=_method(task, name)) for name in SPLITS}
    for name, split in splits.items():
        _probe(task, name, split, example)
    _check_overlaps(task, splits)
    model.eval()
    _outputs(task, model, example)
    inputs, targets = _probe(task, "train", splits["train"], example)
    learned = _outputs(task, model, inputs)
    if task.label_share:
        _check_loss(task, "loss", learned, targets)
    _check_loss(task, "distillation_loss", learned, learned)
    inputs, targets = _probe(task, "search", splits["search"], example)
    outputs = _outputs(task, model, inputs).numpy()
    try:
        score: Any = call_user(task.metric, outputs, targets.numpy(), what=_method(task, "metric"))
    except UsageError as error:
        hint = f"{error.hint}; metric() is given NumPy arrays, unlike loss()"
        raise UsageError(error.message, hint) from error
    # bool is a Real to Python, but a metric that returns one compares where it should count
    if not isinstance(score, numbers.Real) or isinstance(score, bool) or not math.isfinite(score):
        raise UsageError(
            f"{_method(task, 'metric')} returned {score!r} for {len(inputs)} samples, "
            "not a finite number",
            "return a float; for an average, check that nothing is divided by zero",
        )


def _check_label_share(task: Task) -> None:
    try:
        a_number(0, 1)(task.label_share)
    except ValueError as error:
        raise UsageError(
            f"the label_share of the task {task.name} is {task.label_share!r}, not a share",
            f"give {type(task).__name__} one from 0 (the train split has no labels) to 1",
        ) from error


def _check_loss(task: Task, name: str, outputs: Tensor, wanted: Tensor) -> None:
    loss: Any = call_user(getattr(task, name), outputs, wanted, what=_method(task, name))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss)):
        given = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise UsageError(
            f"{_method(task, name)} returned {given}, not one finite number",
            "return a scalar tensor, e.g. nn.functional.cross_entropy(outputs, targets)",
        )


def _method(task: Task, name: str) -> str:
    return f"{name}() of the task {task.name}"


def _check_network(model: TaskModel) -> None:
    needed = needed_arguments(model.forward)
    if len(needed) > 1:
        raise UsageError(
            f"the network {type(model).__name__} takes {len(needed)} inputs "
            f"({', '.join(needed)}), and hwloop compresses networks with one",
            f"wrap it in an nn.Module whose forward({needed[0]}) calls it with the others fixed",
        )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise UsageError(
                f"the network's {name} is {weight.dtype}, and hwloop starts from torch.float32",
                "convert the network where it is made: return network.float()",
            )
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UsageError(
                f"the network's {name} holds NaN or infinite values",
                "load weights from a checkpoint of a training that did not diverge",
            )


def _checked_example(task: Task) -> Tensor:
    what = _method(task, "example")
    example: Any = call_user(task.example, what=what)
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise UsageError(f"{what} returned {kind}, not a float tensor", "return a float tensor")
    if example.dtype != torch.float32:
        raise UsageError(
            f"{what} returned {example.dtype}, and hwloop runs networks on torch.float32",
            "convert the inputs where they are made, in example() and in the splits: .float()",
        )
    if example.dim() < 2 or len(example) != 1:
        raise UsageError(
            f"{what} has shape {tuple(example.shape)}, not (1, ...)",
            "return one input as a batch of 1, e.g. self.search().batch([0])[0]",
        )
    return example


def _probe(task: Task, name: str, split: Any, example: Tensor) -> tuple[Tensor, Tensor]:
    """A few samples spread over a split, checked against the example and each other."""
    where = f"the {name} split of the task {task.name}"
    for method in ("__len__", "batch", "digests"):
        if not hasattr(split, method):
            raise UsageError(
                f"{where} is a {type(split).__name__} without {method}()",
                "return a TensorSplit or a FolderSplit, or write a class like hwloop.task.Split",
            )
    count = call_user(len, split, what=f"len() of {where}")
    if count == 0:
        raise UsageError(f"{where} is empty", f"return at least one sample from {name}()")
    indices = spread(count, PROBE_SIZE)
    pair: Any = call_user(split.batch, indices, what=f"batch() of {where}")
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not is_pair or not all(isinstance(item, Tensor) for item in pair):
        raise UsageError(
            f"batch() of {where} did not return two tensors", "return (inputs, targets) tensors"
        )
    inputs, targets = pair
    if len(inputs) != len(indices) or len(targets) != len(inputs):
        raise UsageError(
            f"batch() of {where} returned {len(inputs)} inputs and {len(targets)} targets "
            f"for {len(indices)} samples",
            "return one input and one target for each index",
        )
    if inputs.shape[1:] != example.shape[1:] or inputs.dtype != example.dtype:
        raise UsageError(
            f"{_method(task, 'example')} is {example.dtype} {tuple(example.shape)}, but {where} "
            f"has inputs {inputs.dtype} {tuple(inputs.shape)}",
            "return from example() what the network is deployed for: self.search().batch([0])[0]",
        )
    return inputs, targets


def _check_overlaps(task: Task, splits: dict[str, Split]) -> None:
    digests = {
        name: frozenset(call_user(split.digests, what=f"digests() of the {name} split"))
        for name, split in splits.items()
    }
    for first, second in itertools.combinations(SPLITS, 2):
        shared = len(digests[first] & digests[second])
        if shared:
            samples = "1 sample is" if shared == 1 else f"{shared} samples are"
            raise UsageError(
                f"{samples} in both the {first} split and the {second} split of {task.name}",
                f"remove them from {first}(): a score on data that was already used is too good",
            )


@torch.no_grad()
def _outputs(task: Task, model: TaskModel, inputs: Tensor) -> Tensor:
    shape = tuple(inputs.shape)
    try:
        outputs: Any = call_user(model, inputs, what=f"the network, given an input {shape},")
    except UsageError as error:
        hint = f"{_method(task, 'example')} must have the shape that the network expects"
        raise UsageError(error.message, hint) from error
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"the network returned a {type(outputs).__name__}, not one tensor",
            "wrap it in an nn.Module whose forward returns the tensor that is scored",
        )
    if outputs.dim() == 0 or len(outputs) != len(inputs):
        raise UsageError(
            f"the network returned {tuple(outputs.shape)} for an input {shape}",
            "return one output for each input of the batch",
        )
    if not bool(torch.isfinite(outputs).all()):
        raise UsageError(
            f"the network's output for an input {shape} holds NaN or infinite values",
            "check its weights and the normalisation of the inputs",
        )
    return outputs
