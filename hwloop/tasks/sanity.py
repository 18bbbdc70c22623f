"""Set-ups that run but mislead: goals that every network meets, or none; data that decide nothing.

What can only be a mistake is refused by :func:`check_goal`; what may be meant is put into words by
:func:`doubts`. Both look at the dense network's score on a few samples of the search split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwloop.errors import CandidateError, UsageError
from hwloop.tasks.bulk import KEPT_BYTES
from hwloop.tasks.calls import call_user
from hwloop.tasks.protocol import ClassificationTask, Task, TaskModel
from hwloop.tasks.score import ScoredSplit

MOST_SAMPLES = 512  # enough to tell a trained network from chance, and seconds on a CPU
MOST_BYTES = KEPT_BYTES  # of outputs: a segmentation network has megabytes for each sample
BATCH = 64
FEWEST_SAMPLES = 10
FEW_SAMPLES = 200
LARGEST_FRACTION = 1.5  # above it, an accuracy can only be in per cent
STANDARD_ERRORS = 3.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The dense network's score in PyTorch, on a seeded choice of at most 512 search samples.

    Attributes:
        score: in the metric's own unit.
        samples: how many were scored.
        classes: size of the outputs' second dimension; 1 where they have none.
    """

    score: float
    samples: int
    classes: int


def probe(task: Task, model: TaskModel) -> Probe:
    """Score the network before anything is measured.

    Raises:
        UsageError: an output is not finite, or the user's code fails.
    """
    one = _outputs(model, task.example().numpy())
    most = max(FEWEST_SAMPLES, min(MOST_SAMPLES, MOST_BYTES // max(one.nbytes, 1)))
    split = ScoredSplit(task, task.search(), count=most)
    try:
        outputs = split.finite_outputs(lambda inputs: _outputs(model, inputs))
    except CandidateError as error:
        raise UsageError(
            f"the network's outputs for the search split of the task {task.name} hold NaN or "
            "infinite values",
            "check its weights and the normalisation of the inputs",
        ) from error
    classes = outputs.shape[1] if outputs.ndim > 1 else 1
    return Probe(score=split.metric(outputs), samples=len(outputs), classes=classes)


def check_goal(
    task: Task, model: TaskModel, *, max_drop: float | None, probed: Probe | None = None
) -> None:
    """Refuse a goal that every network meets, and data on which no goal can be held.

    Args:
        max_drop: largest loss of the metric, in its own unit; None for no such goal.
        probed: what :func:`probe` found, where it was called already.

    Raises:
        UsageError: ``max_drop`` is negative, not finite, or not below the network's own score; a
            classification task with fewer than 10 search samples.
    """
    count = len(task.search())
    if isinstance(task, ClassificationTask) and count < FEWEST_SAMPLES:
        raise UsageError(
            f"the search split of the task {task.name} has {_samples(count)}: a single one is "
            f"worth {100 / count:.0f} points of accuracy",
            f"return at least {FEW_SAMPLES} samples from {type(task).__name__}.search()",
        )
    if max_drop is None:
        return
    if not math.isfinite(max_drop) or max_drop < 0:
        raise UsageError(f"--max-drop is {max_drop}: it must be zero or above", "--max-drop 0.01")
    if not task.higher_is_better:
        return
    score = (probed or probe(task, model)).score
    if 0 < score <= max_drop:
        in_points = score <= 1 <= max_drop
        unit = "; 0.01 is one point" if in_points else ""
        raise UsageError(
            f"--max-drop is {max_drop:g}, but the network's own {task.metric_name} is {score:.4g}: "
            f"every network would be good enough{unit}",
            f"--max-drop {max_drop / 100:g}" if in_points else f"--max-drop {score / 100:.1g}",
        )


def doubts(
    task: Task, model: TaskModel, *, max_drop: float | None, probed: Probe | None = None
) -> tuple[str, ...]:
    """What looks like a mistake but may be meant: one sentence each, for people and the report.

    Arguments and errors are those of :func:`check_goal`.
    """
    found = _about_the_split(task, max_drop)
    grows = not task.higher_is_better and max_drop is not None and max_drop > 0
    if task.metric_name != "accuracy" and not grows:
        return tuple(found)
    probed = probed or probe(task, model)
    if grows and max_drop is not None and 0 < probed.score < max_drop:
        found.append(
            f"the network's own {task.metric_name} is {probed.score:.4g}: --max-drop {max_drop:g} "
            f"allows it to become {1 + max_drop / probed.score:.3g} times as large"
        )
    if task.metric_name == "accuracy":
        found += _about_the_accuracy(task, probed)
    return tuple(found)


def _about_the_split(task: Task, max_drop: float | None) -> list[str]:
    """What so few samples cannot tell."""
    count = len(task.search())
    found = []
    is_stock = type(task).metric is ClassificationTask.metric
    if is_stock and max_drop is not None and max_drop < 1 / count:
        found.append(
            f"--max-drop {max_drop:g} is less than one of the {_samples(count)} of the search "
            f"split ({1 / count:.2g}): no network that loses a single one more would be accepted"
        )
    if count < FEW_SAMPLES:
        found.append(
            f"the search split has only {_samples(count)}: scores on it are coarse, and candidates "
            f"that differ little cannot be told apart; {FEW_SAMPLES} or more are better"
        )
    return found


def _about_the_accuracy(task: Task, probed: Probe) -> list[str]:
    """Its unit, and whether the network was trained at all."""
    found = []
    in_per_cent = probed.score > LARGEST_FRACTION
    if in_per_cent:
        found.append(
            f"the accuracy is {probed.score:.4g}, so it is in per cent: --max-drop 0.01 is a "
            "hundredth of a point there, and one point is --max-drop 1"
        )
    fraction = probed.score / 100 if in_per_cent else probed.score
    if isinstance(task, ClassificationTask) and fraction <= _by_chance(probed):
        found.append(
            f"the network is not clearly better than guessing: its accuracy on "
            f"{_samples(probed.samples)} is {fraction:.3f}, with {probed.classes} classes chance "
            f"alone gives {1 / probed.classes:.3f}; are its trained weights loaded?"
        )
    return found


def _by_chance(probed: Probe) -> float:
    """The accuracy that guessing hardly ever exceeds on so many samples."""
    chance = 1 / probed.classes
    deviation = math.sqrt(chance * (1 - chance) / probed.samples)
    return chance + STANDARD_ERRORS * deviation


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


@torch.no_grad()
def _outputs(model: TaskModel, inputs: NDArray[Any]) -> NDArray[Any]:
    model.eval()
    parts = torch.split(torch.from_numpy(inputs), BATCH)
    what = "the network, given samples of the search split,"
    return np.concatenate([call_user(model, part, what=what).numpy() for part in parts])
