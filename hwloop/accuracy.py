"""Scoring: one metric for PyTorch and for the engine that ships."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwloop.errors import CandidateError, UsageError
from hwloop.spec import call_user
from hwloop.splits import Split
from hwloop.task import Task

CHUNK = 500
KEPT_BYTES = 256 << 20
BOOTSTRAPS = 200
ONE_SIDED_80 = 80.0
METRIC = "the task's metric"

Run = Callable[[NDArray[Any]], NDArray[Any]]


class ScoredSplit:
    """One split of a task, read in chunks; small splits stay in memory.

    Args:
        count: use the first ``count`` samples only (of a seeded shuffle), or all.
    """

    def __init__(self, task: Task, split: Split, *, count: int | None = None) -> None:
        self.task = task
        self.split = split
        order = np.arange(len(split))
        if count is not None and count < len(split):
            order = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
        self.order = order
        self._kept: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def chunks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """(inputs float32, targets) of up to 500 samples at a time."""
        if self._kept:
            yield from self._kept
            return
        keep: list[tuple[NDArray[Any], NDArray[Any]]] = []
        size = 0
        for start in range(0, len(self.order), CHUNK):
            chosen = self.order[start : start + CHUNK]
            inputs, targets = call_user(self.split.batch, chosen, what="reading a split's batch")
            chunk = inputs.numpy().astype(np.float32, copy=False), targets.numpy()
            size += chunk[0].nbytes
            if size <= KEPT_BYTES:
                keep.append(chunk)
            yield chunk
        if size <= KEPT_BYTES:
            self._kept = keep

    def outputs(self, run: Run) -> NDArray[Any]:
        """Everything that ``run`` gives for the split, stacked."""
        return np.concatenate([run(inputs) for inputs, _ in self.chunks()])

    def score(self, run: Run) -> float:
        """The metric of what ``run`` computes.

        Raises:
            CandidateError: stage ``score``: outputs that are not finite.
            UsageError: the user's metric failed, or gave no number.
        """
        return self.metric(self.finite_outputs(run))

    def finite_outputs(self, run: Run) -> NDArray[Any]:
        """Everything that ``run`` gives. Raises CandidateError where it is not finite."""
        outputs = self.outputs(run)
        if not np.isfinite(outputs).all():
            raise CandidateError("score", "the network's outputs are not finite")
        return outputs

    def upper_drop(self, dense: NDArray[Any], outputs: NDArray[Any]) -> float:
        """One-sided 80 % bound of the drop: both networks scored on the same resampled inputs.

        A percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) over the samples.

        Args:
            dense, outputs: (N, ...) of the two networks, in the split's order.
        """
        targets = self._targets()
        rng = np.random.default_rng(0)
        drops = []
        for _ in range(BOOTSTRAPS):
            chosen = rng.integers(0, len(targets), len(targets))
            before, after = (
                call_user(self.task.metric, values[chosen], targets[chosen], what=METRIC)
                for values in (dense, outputs)
            )
            drops.append(self.task.drop(before, after))
        return float(np.percentile(drops, ONE_SIDED_80))

    def metric(self, outputs: NDArray[Any]) -> float:
        """The user's metric of all outputs against the split's targets."""
        value = call_user(self.task.metric, outputs, self._targets(), what=METRIC)
        if isinstance(value, str) or not math.isfinite(value := _number(value)):
            raise UsageError(
                f"the task's metric returned {value!r}, not a finite number",
                f"correct {type(self.task).__name__}.metric",
            )
        return value

    def _targets(self) -> NDArray[Any]:
        return np.concatenate([targets for _, targets in self.chunks()])


def torch_run(module: nn.Module) -> Run:
    """Run a module in eval mode on numpy inputs."""

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        module.eval()
        with torch.no_grad():
            outputs: NDArray[Any] = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run


def mean_kl(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Mean KL divergence of softmax(outputs) from softmax(reference), in nats.

    For outputs that are no logits it still measures how far two networks are apart.
    """
    a, b = (_log_softmax(value.reshape(len(value), -1)) for value in (reference, outputs))
    return float((np.exp(a) * (a - b)).sum(axis=1).mean())


def _log_softmax(values: NDArray[Any]) -> NDArray[Any]:
    shifted = values - values.max(axis=1, keepdims=True)
    result: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
