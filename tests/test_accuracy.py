"""Scoring: a split is read in chunks, and one metric scores whatever computed the outputs."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scoring import Peak
from torch import nn

from hwloop.errors import CandidateError, EnvironmentProblem, UsageError
from hwloop.run.clock import Stopwatch
from hwloop.run.scoring import Scorer
from hwloop.task import ClassificationTask, Task, TensorSplit
from hwloop.tasks import bulk
from hwloop.tasks import score as accuracy
from hwloop.tasks.bulk import CHUNK, Stack, handed_back
from hwloop.tasks.divergence import divergence, mean_kl, unexplained
from hwloop.tasks.score import ScoredSplit, torch_run
from hwloop.tasks.splits import Indices

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
    assert sizes == [1, CHUNK, CHUNK, 6]
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


# ------------------------------------------------------------------------------ what is large


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Next to nothing is kept in memory; the folder in which the files are."""
    monkeypatch.setattr(bulk, "KEPT_BYTES", 4096)
    monkeypatch.setattr(accuracy, "RESAMPLED_BYTES", 4096)
    monkeypatch.setattr(bulk, "CHUNK_BYTES", 512)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_large_split_is_read_and_run_in_chunks_sized_by_bytes(tight: Path) -> None:
    read, ran = [], []

    class Watched(Counted):
        def batch(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(len(indices))
            return super().batch(indices)

    def wide(inputs: np.ndarray) -> np.ndarray:
        ran.append(len(inputs))
        return np.repeat(inputs, 16, axis=1)

    outputs = ScoredSplit(Parity(), Watched()).outputs(wide)
    assert outputs.tolist() == [[number] * 16 for number in range(COUNT)]
    assert read[0] == 1
    assert max(read) == 512 // 8  # a target has eight bytes, an input four
    assert ran[0] == 1
    assert max(ran) == 512 // 64
    assert sum(ran) == COUNT


def test_a_split_that_is_too_large_to_keep_is_read_again_but_not_for_its_targets(
    tight: Path,
) -> None:
    split = Counted()
    scored = ScoredSplit(Parity(), split)
    assert scored.score(itself) == 1.0
    assert len(split.read) == COUNT
    assert scored.score(itself) == 1.0
    assert len(split.read) == 2 * COUNT
    assert scored._kept == []


def test_rows_in_a_file_are_the_rows_that_were_given(tight: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 3, 5)).astype(np.float32)
    stack = Stack(len(rows), "rows")
    for start in range(0, len(rows), 64):
        stack.append(rows[start : start + 64][:, ::-1])
    found = stack.array()
    assert type(found) is np.ndarray
    assert np.array_equal(found, rows[:, ::-1])
    found[:] = 0  # a metric may work in place
    assert np.array_equal(stack.array(), rows[:, ::-1])
    assert list(tight.iterdir()) == [], "the file has no name"


def test_what_was_read_of_a_file_is_handed_back_and_what_was_changed_is_kept() -> None:
    rows = np.arange(160 << 18, dtype=np.float32).reshape(-1, 1 << 10)  # 160 MiB
    stack = Stack(len(rows), "rows")
    stack.append(rows)
    found = stack.array()
    found[0, 0] = 42.0
    with Peak(os.getpid()) as peak, handed_back(found):
        for _ in range(3):
            for start in range(0, len(found), 1 << 10):
                assert found[start + 1, 0] == rows[start + 1, 0]
                assert found[start : start + (1 << 10)].max() == rows[start + (1 << 10) - 1, -1]
                time.sleep(0.005)
    assert found[0, 0] == 42.0
    assert peak.resident_bytes < 100 << 20


def test_rows_that_do_not_fit_together_are_refused(tight: Path) -> None:
    stack = Stack(10_000, "rows")
    stack.append(np.zeros((2, 3), np.float32))
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float64)):
        with pytest.raises(ValueError, match="rows"):
            stack.append(wrong)


def test_no_room_on_the_disk_is_said_with_the_folder_and_the_way_out(tight: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=str(tight)) as caught:
        Stack(1 << 50, "a network's outputs").append(np.zeros((1, 64), np.float32))
    assert "TMPDIR" in caught.value.hint
    assert caught.value.exit_code == 5


def test_a_disk_that_fills_up_on_the_way_is_said_as_well(
    tight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(bulk, "_file_for", lambda size_bytes, what: full)
        stack = Stack(1 << 20, "a network's outputs")
        with pytest.raises(EnvironmentProblem, match="No space left"):
            stack.append(np.zeros((64, 64), np.float32))


def test_without_a_folder_of_ones_own_files_are_not_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert bulk._folder() == Path("/var/tmp")


def test_one_output_that_is_not_finite_ends_a_large_split_at_its_chunk(tight: Path) -> None:
    ran = []

    def run(inputs: np.ndarray) -> np.ndarray:
        ran.append(len(inputs))
        return np.where(inputs == 5, np.nan, inputs)

    with pytest.raises(CandidateError, match="not finite"):
        ScoredSplit(Parity(), Counted()).score(run)
    assert sum(ran) < COUNT / 4


# ------------------------------------------------------------------------- how sure a drop is


class Half(Parity):
    """Right where the output is above zero."""

    def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
        return float((outputs[:, 0] > 0).mean())


def scores(seed: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random((COUNT, 1)) < share).astype(np.float32)


def test_the_bound_of_small_outputs_is_the_bootstraps() -> None:
    """Bit for bit as it was when runs that may be resumed were made."""
    dense, outputs = scores(1, 0.9), scores(2, 0.85)
    scored = ScoredSplit(Half(), Counted())
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(200):
        chosen = rng.integers(0, COUNT, COUNT)
        drops.append(float((dense[chosen] > 0).mean()) - float((outputs[chosen] > 0).mean()))
    found = scored.upper_drop(dense, outputs, drop=math.nan)
    assert found == float(np.percentile(drops, 80.0))


@pytest.mark.parametrize("kept_bytes", [4000, 200])
def test_the_bound_of_large_outputs_agrees_with_the_bootstraps(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many pairs of networks; with the smaller limit the blocks hold 50 samples of 1,007."""
    above = {"bootstrap": 0, "blocks": 0}
    widths: dict[str, list[float]] = {"bootstrap": [], "blocks": []}
    for seed in range(60):
        dense, outputs = scores(seed, 0.9), scores(1000 + seed, 0.87)
        drop = float(dense.mean() - outputs.mean())
        for kind in above:
            most = kept_bytes if kind == "blocks" else 1 << 20
            monkeypatch.setattr(accuracy, "RESAMPLED_BYTES", most)
            monkeypatch.setattr(bulk, "KEPT_BYTES", most)
            bound = ScoredSplit(Half(), Counted()).upper_drop(dense, outputs, drop=drop)
            above[kind] += bound >= 0.03
            widths[kind].append(bound - drop)
    assert np.mean(widths["blocks"]) == pytest.approx(np.mean(widths["bootstrap"]), rel=0.15)
    assert all(0.65 * 60 < count <= 0.95 * 60 for count in above.values()), above


def test_maps_of_a_few_megabytes_are_not_scored_two_hundred_times() -> None:
    scored = []

    class Maps(Half):
        def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
            scored.append(len(outputs))
            return float((outputs > 0).mean())

    outputs = np.ones((COUNT, 3, 20, 20), np.float32)
    assert ScoredSplit(Maps(), Counted()).upper_drop(outputs, outputs, drop=0.0) == 0.0
    assert sum(scored) <= 2 * COUNT


def test_a_metric_that_scores_no_part_of_a_split_is_the_users_error(tight: Path) -> None:
    class Whole(Parity):
        def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
            return 1.0 if len(outputs) == COUNT else math.nan

    outputs = np.zeros((COUNT, 2), np.float32)
    with pytest.raises(UsageError, match="on parts of 50 samples"):
        ScoredSplit(Whole(), Counted()).upper_drop(outputs, outputs, drop=0.0)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_metric_that_some_resamples_have_no_samples_for_still_has_a_bound(refuses: bool) -> None:
    """The mean over classes, one of which has a single sample: every third resample lacks it."""

    class Balanced(ClassificationTask):
        name = "balanced"

        def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
            right = outputs.argmax(axis=1) == targets
            if refuses and len(np.unique(targets)) < 2:
                raise ValueError("needs two classes")
            with np.errstate(invalid="ignore"):
                return float(
                    np.mean(
                        [
                            right[targets == label].sum() / (targets == label).sum()
                            for label in (0, 1)
                        ]
                    )
                )

    split = TensorSplit(torch.zeros(200, 1), torch.arange(200) == 7)
    dense = np.stack([np.zeros(200), np.arange(200) == 7], axis=1).astype(np.float32)
    worse = dense.copy()
    worse[::20, 1] = 1.0
    found = ScoredSplit(Balanced(), split)
    drop = found.metric(dense) - found.metric(worse)
    assert drop < found.upper_drop(dense, worse, drop=drop) < 2 * drop


def test_a_metric_that_is_no_number_of_a_candidate_fails_that_candidate() -> None:
    class Correlation(Parity):
        def metric(self, outputs: np.ndarray, targets: np.ndarray) -> Any:
            return math.nan if np.ptp(outputs) == 0 else 0.5

    found = ScoredSplit(Correlation(AssertionError("called")), Counted())
    assert found.metric(np.arange(COUNT, dtype=np.float32), of_candidate=True) == 0.5
    constant = np.zeros(COUNT, np.float32)
    with pytest.raises(CandidateError, match="nan of its outputs") as caught:
        found.metric(constant, of_candidate=True)
    assert caught.value.stage == "score"
    with pytest.raises(UsageError, match="not a finite number"):
        found.metric(constant)


def test_outputs_that_are_no_logits_are_held_against_their_own_spread() -> None:
    """Of one output a softmax is always 1, and of pixels it is 1 for the largest."""
    dense = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)

    class Logits(ClassificationTask):
        name = "logits"

    task, logits = Task(), Logits()
    for scale, offset in ((1.0, 0.0), (1e-3, 5.0), (200.0, 300.0)):
        for columns in (dense, dense[:, :1], dense[:, 0]):
            moved = scale * (columns + 0.1) + offset
            apart = divergence(task, scale * columns + offset, moved)
            assert apart == pytest.approx(0.01 / columns.var(axis=0).mean(), rel=0.01)
    assert divergence(task, dense, dense) == 0.0
    assert divergence(task, np.ones((4, 2)), np.ones((4, 2)) + 2) == pytest.approx(4.0)
    assert divergence(logits, dense, dense + 0.1) == pytest.approx(mean_kl(dense, dense + 0.1))


def test_the_divergence_of_large_outputs_is_that_of_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = (np.random.default_rng(seed).standard_normal((300, 40)) for seed in (1, 2))
    for kind in (np.float32, np.float64):
        first, second = a.astype(kind), b.astype(kind)
        logs = [x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (first, second)]
        whole = mean_kl(first, second)
        assert whole == pytest.approx(
            float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean()), rel=1e-5
        )
        error = unexplained(first, second)
        monkeypatch.setattr(bulk, "CHUNK_BYTES", 4096)
        assert mean_kl(first, second) == whole
        assert unexplained(first, second) == pytest.approx(error, rel=1e-6)
        monkeypatch.undo()


@pytest.mark.parametrize("judged_on", [COUNT, COUNT // 4])
def test_the_bound_of_a_run_leaves_room_for_the_noise_of_the_test_split(judged_on: int) -> None:
    dense, outputs = scores(1, 0.9), scores(2, 0.88)
    split, given = ScoredSplit(Half(), Counted()), {"dense": dense, "other": outputs}
    session: Any = SimpleNamespace(
        infer=lambda model, inputs: given[model][inputs[:, 0].astype(int)]
    )
    dense_model: Any = "dense"
    other_model: Any = "other"
    scorer = Scorer(
        task=split.task,
        split=split,
        dense=dense_model,
        dense_metric=float(dense.mean()),
        judged_on=judged_on,
        max_drop=0.5,
        session=session,
        clock=Stopwatch(),
    )
    found = scorer.scored(other_model)
    narrow = split.upper_drop(dense, outputs, drop=found.drop) - found.drop
    assert found.upper_drop is not None
    assert found.upper_drop - found.drop == pytest.approx(narrow * math.sqrt(1 + COUNT / judged_on))
