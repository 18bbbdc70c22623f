"""Scoring: a split is read in chunks, and one metric scores whatever computed the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwloop.accuracy import CHUNK, ScoredSplit, mean_kl, torch_run
from hwloop.errors import CandidateError, UsageError
from hwloop.splits import Indices
from hwloop.task import ClassificationTask, TensorSplit

COUNT = 2 * CHUNK + 7


class Counted(TensorSplit):
    """Remembers which samples were read."""

    def __init__(self) -> None:
        super().__init__(torch.arange(COUNT).float()[:, None], torch.arange(COUNT))
        self.read: list[int] = []

    def batch(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.extend(int(index) for index in indices)
        return super().batch(indices)


class Parity(ClassificationTask):
    """The class of a number is the number itself; ``metric`` may be told to answer anything."""

    name = "parity"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return float((outputs[:, 0] == targets).mean()) if self.answer is None else self.answer


def itself(inputs: np.ndarray) -> np.ndarray:
    return inputs


def test_every_sample_is_scored_once_in_chunks_of_bounded_size() -> None:
    sizes = []

    def run(inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(inputs))
        return inputs

    split = Counted()
    assert ScoredSplit(Parity(), split).score(run) == 1.0
    assert sizes == [CHUNK, CHUNK, 7]
    assert sorted(split.read) == list(range(COUNT))


def test_a_small_split_is_read_from_its_source_once() -> None:
    split = Counted()
    scored = ScoredSplit(Parity(), split)
    assert scored.score(itself) == scored.score(itself) == 1.0
    assert len(split.read) == COUNT


def test_the_first_reading_ended_early_is_not_taken_for_the_whole() -> None:
    scored = ScoredSplit(Parity(), Counted())
    next(scored.chunks())
    assert len(scored.outputs(itself)) == COUNT


def test_a_part_of_a_split_is_always_the_same_part() -> None:
    first, second = (ScoredSplit(Parity(), Counted(), count=100).outputs(itself) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(np.unique(first)) == 100
    assert first.max() > 0.8 * COUNT  # spread over the split, not its beginning
    assert len(ScoredSplit(Parity(), Counted(), count=10 * COUNT).outputs(itself)) == COUNT


def test_pytorch_is_scored_in_eval_mode_without_gradients() -> None:
    module = nn.Dropout(0.9).train()
    outputs = torch_run(module)(np.ones((4, 50), np.float32))
    assert (outputs == 1).all()
    assert not module.training


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), "0.9", object(), [0.1, 0.2]])
def test_a_metric_without_a_finite_number_is_the_users_error(answer: Any) -> None:
    scored = ScoredSplit(Parity(answer), Counted())
    with pytest.raises(UsageError, match="the task's metric") as caught:
        scored.score(itself)
    assert "Parity.metric" in caught.value.hint


def test_a_metric_that_fails_is_the_users_error() -> None:
    scored = ScoredSplit(Parity(ZeroDivisionError("no positives")), Counted())
    with pytest.raises(UsageError, match="no positives"):
        scored.score(itself)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_output_that_is_not_finite_fails_the_candidate_before_the_metric(bad: float) -> None:
    def run(inputs: np.ndarray) -> np.ndarray:
        return np.where(inputs == COUNT - 1, bad, inputs)

    with pytest.raises(CandidateError, match="not finite") as caught:
        ScoredSplit(Parity(AssertionError("called")), Counted()).score(run)
    assert caught.value.stage == "score"


def test_the_divergence_of_two_outputs_against_known_values() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = (p * np.log(p / q)).sum() / 2
    assert mean_kl(np.log(p), np.log(q)) == pytest.approx(expected)
    assert mean_kl(np.log(p), np.log(p)) == 0.0
    large = np.array([[1e4, -1e4]])
    assert np.isfinite(mean_kl(large, -large))


def test_outputs_of_any_shape_can_be_compared() -> None:
    maps = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
    assert mean_kl(maps, maps) == pytest.approx(0.0, abs=1e-12)
    assert mean_kl(maps, 2 * maps) > 0
