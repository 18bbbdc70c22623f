"""Scoring: one metric for PyTorch and for the engine that ships.

Inputs are read, and outputs computed, in chunks of bounded size. What is large as a whole is kept
in a file, which the metric sees as an array: memory does not grow with the number of inputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwloop import stats
from hwloop.errors import CandidateError, UsageError
from hwloop.tasks import bulk
from hwloop.tasks.bulk import Stack, handed_back
from hwloop.tasks.calls import call_user
from hwloop.tasks.protocol import Task
from hwloop.tasks.splits import Split

BOOTSTRAPS = 200
RESAMPLED_BYTES = 4 << 20
"""Outputs larger than this are not resampled 200 times: that takes long for maps."""

BLOCKS = 20
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
        self._target_stack: Stack | None = None

    def chunks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """(inputs float32, targets) of at most 500 samples and 32 MiB at a time.

        The first chunk is a single sample: it tells how large the others are.
        """
        if self._kept:
            yield from self._kept
            return
        keep: list[tuple[NDArray[Any], NDArray[Any]]] = []
        stack = Stack(len(self.order), "the targets of a split")
        size, start, count = 0, 0, 1
        while start < len(self.order):
            chosen = self.order[start : start + count]
            inputs, targets = call_user(self.split.batch, chosen, what="reading a split's batch")
            chunk = inputs.numpy().astype(np.float32, copy=False), targets.numpy()
            stack.append(chunk[1])
            size += chunk[0].nbytes + chunk[1].nbytes
            if size <= bulk.KEPT_BYTES:
                keep.append(chunk)
            else:
                keep.clear()
            start += count
            count = bulk.fitting(max(value.nbytes for value in chunk), len(chosen))
            del inputs, targets
            yield chunk
            del chunk  # or the next one is read while this one is held
            if not keep:
                _trim()
        self._target_stack = stack
        self._kept = keep

    def outputs(self, run: Run) -> NDArray[Any]:
        """Everything that ``run`` gives for the split, stacked."""
        return self._outputs(run, only_finite=False)

    def finite_outputs(self, run: Run) -> NDArray[Any]:
        """Everything that ``run`` gives. Raises CandidateError where it is not finite."""
        return self._outputs(run, only_finite=True)

    def _outputs(self, run: Run, *, only_finite: bool) -> NDArray[Any]:
        stack = Stack(len(self.order), "a network's outputs")
        count = 1  # until the size of an output is known
        for inputs, _ in self.chunks():
            start = 0
            while start < len(inputs):
                part = run(inputs[start : start + count])
                if only_finite and not np.isfinite(part).all():
                    raise CandidateError("score", "the network's outputs are not finite")
                stack.append(part)
                start += count
                count = bulk.fitting(part.nbytes, len(part))
        return stack.array()

    def score(self, run: Run) -> float:
        """The metric of what ``run`` computes.

        Raises:
            CandidateError: stage ``score``: outputs that are not finite.
            UsageError: the user's metric failed, or gave no number.
        """
        return self.metric(self.finite_outputs(run))

    def upper_drop(self, dense: NDArray[Any], outputs: NDArray[Any], *, drop: float) -> float:
        """One-sided 80 % bound of the drop: both networks scored on the same resampled inputs.

        A percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) over the samples; for
        outputs above 4 MiB :meth:`_bound_from_blocks`, which scores each sample once. A metric may
        be undefined on some of the resamples, as where a class is missing.

        Args:
            dense, outputs: (N, ...) of the two networks, in the split's order.
            drop: of the metric, on all samples.

        Raises:
            UsageError: the metric is no number on most of the resamples.
        """
        if max(dense.nbytes, outputs.nbytes) > RESAMPLED_BYTES:
            return self._bound_from_blocks(dense, outputs, drop)
        targets = self._targets()
        rng = np.random.default_rng(0)
        drops = []
        for _ in range(BOOTSTRAPS):
            chosen = rng.integers(0, len(targets), len(targets))
            drops.append(self._drop_of(chosen, dense, outputs, targets))
        found = self._defined(drops, least=BOOTSTRAPS // 2, size=len(targets))
        return float(np.percentile(found, ONE_SIDED_80))

    def _bound_from_blocks(self, dense: NDArray[Any], outputs: NDArray[Any], drop: float) -> float:
        """The same from the drops of 20 disjoint blocks of random samples, of bounded size.

        Their spread around the drop of the whole, which is smaller by the root of a block's share
        of the samples (Politis, Romano and Wolf, Subsampling, 1999, chapter 2), times Student's t.
        """
        targets = self._targets()
        count = len(targets)
        blocks = min(BLOCKS, count)
        largest = max(dense.nbytes, outputs.nbytes) // count
        size = max(1, min(count // blocks, bulk.KEPT_BYTES // largest))
        order = np.random.default_rng(0).permutation(count)
        parts = [np.sort(order[start : start + size]) for start in range(0, blocks * size, size)]
        with handed_back(dense, outputs, targets):
            drops = [self._drop_of(part, dense, outputs, targets) for part in parts]
        found = self._defined(drops, least=max(blocks // 2, 2), size=size)
        spread = math.sqrt(sum((value - drop) ** 2 for value in found) / (len(found) - 1))
        student = stats.student_quantile(ONE_SIDED_80 / 100, len(found) - 1)
        return drop + student * spread * math.sqrt(size / count)

    def _defined(self, drops: list[float], *, least: int, size: int) -> list[float]:
        """Those that are numbers, of parts of so many samples; at least so many have to be."""
        found = [value for value in drops if math.isfinite(value)]
        if len(found) < least:
            raise UsageError(
                f"the task's metric is no finite number on parts of {size} samples, so nothing "
                "can be said about how sure its drop is",
                f"let {type(self.task).__name__}.metric score any part of a split",
            )
        return found

    def _drop_of(
        self,
        chosen: NDArray[Any],
        dense: NDArray[Any],
        outputs: NDArray[Any],
        targets: NDArray[Any],
    ) -> float:
        """NaN where the metric refuses a part, as one does that needs samples of each class."""
        try:
            before, after = (
                call_user(self.task.metric, values[chosen], targets[chosen], what=METRIC)
                for values in (dense, outputs)
            )
        except UsageError:
            return math.nan
        return self.task.drop(before, after)

    def metric(self, outputs: NDArray[Any], *, of_candidate: bool = False) -> float:
        """The user's metric of all outputs against the split's targets.

        Raises:
            CandidateError: stage ``score``: it is no finite number of a candidate, as a correlation
                is none of outputs that are all the same.
            UsageError: it failed, or is no finite number of the dense network.
        """
        targets = self._targets()
        with handed_back(outputs, targets):
            found = call_user(self.task.metric, outputs, targets, what=METRIC)
        value = math.nan if isinstance(found, str) else _number(found)
        if math.isfinite(value):
            return value
        if of_candidate and isinstance(found, float | np.floating):
            raise CandidateError("score", f"the task's metric is {value} of its outputs")
        raise UsageError(
            f"the task's metric returned {found!r}, not a finite number",
            f"correct {type(self.task).__name__}.metric",
        )

    def _targets(self) -> NDArray[Any]:
        if self._target_stack is None:
            for _ in self.chunks():
                pass
        assert self._target_stack is not None, "chunks() leaves it when it ends"
        return self._target_stack.array()


def _trim() -> None:
    """Give free memory back: glibc's allocator fragments where large aligned blocks come and go.

    PyTorch's tensors are such blocks; without this, reading 2,000 images costs a gigabyte.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def torch_run(module: nn.Module) -> Run:
    """Run a module in eval mode on numpy inputs."""

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        module.eval()
        with torch.no_grad():
            outputs: NDArray[Any] = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
