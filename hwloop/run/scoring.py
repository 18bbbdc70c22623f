"""Scores of a run's networks, as the target computes their outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from numpy.typing import NDArray

from hwloop.measure.session import DeviceSession
from hwloop.run.choice import is_within
from hwloop.run.clock import Stopwatch
from hwloop.runtimes.graph import OnnxModel
from hwloop.task import Task
from hwloop.tasks.score import ScoredSplit


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model's score on the search split.

    Attributes:
        metric, drop: in the metric's unit; positive drop = worse than the dense network.
        upper_drop: one-sided 80 % bound of the drop on the test split; None where it is of no
            interest, because the drop itself is over the limit.
    """

    metric: float
    drop: float
    upper_drop: float | None


def score(
    model: OnnxModel, split: ScoredSplit, *, session: DeviceSession, clock: Stopwatch
) -> float:
    """The task's metric of a model. Raises CandidateError."""
    with clock("score"):
        return split.score(partial(session.infer, model))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """Scores candidates on the search split, against the dense network.

    Attributes:
        split: the task's search split.
        dense, dense_metric: the dense network and its metric there.
        judged_on: samples of the test split, which says in the end whether the goal was met.
        max_drop: the limit that the bound of a drop is held against; None for no limit.
    """

    task: Task
    split: ScoredSplit
    dense: OnnxModel
    dense_metric: float
    judged_on: int
    max_drop: float | None
    session: DeviceSession
    clock: Stopwatch

    def scored(self, model: OnnxModel) -> Scored:
        """A candidate's score. Raises CandidateError."""
        with self.clock("score"):
            outputs = self.split.finite_outputs(partial(self.session.infer, model))
            metric = self.split.metric(outputs, of_candidate=True)
            drop = self.task.drop(self.dense_metric, metric)
            upper = drop if self.max_drop is None else None
            if self.max_drop is not None and is_within(drop, self.max_drop):
                upper = self._upper(drop, outputs)
        return Scored(metric=metric, drop=drop, upper_drop=upper)

    def _upper(self, drop: float, outputs: NDArray[Any]) -> float:
        """The bound for the test split: a mean of other samples, with noise of its own.

        A prediction interval (Hahn and Meeker, Statistical Intervals, 1991, section 4.2): wider
        than that of the drop itself by the root of one and both splits' ratio.
        """
        upper = self.split.upper_drop(self._dense_outputs, outputs, drop=drop)
        return drop + (upper - drop) * math.sqrt(1 + len(outputs) / self.judged_on)

    @cached_property
    def _dense_outputs(self) -> NDArray[Any]:
        """Needed by bounds alone, and then by all of them."""
        return self.split.outputs(partial(self.session.infer, self.dense))
