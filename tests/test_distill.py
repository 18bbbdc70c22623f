"""Recovery: batch-norm statistics, distillation, determinism."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hwloop.compress import bfloat16, training
from hwloop.compress.layout import suits_channels_last
from hwloop.compress.lessons import Batches, Teacher
from hwloop.compress.recover import NO_RECOVERY, RECALIBRATED, Recovery
from hwloop.compress.training import Schedule, in_cycles
from hwloop.errors import CandidateError, UsageError
from hwloop.run.config import LARGEST_SEED
from hwloop.task import ClassificationTask, TensorSplit
from hwloop.tasks.divergence import mean_kl
from hwloop.tasks.score import ScoredSplit, torch_run


class Small(ClassificationTask):
    name = "small"
    broken_metric: object = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
        ).eval()

    def train(self) -> TensorSplit:
        rng = torch.Generator().manual_seed(1)
        return TensorSplit(torch.randn(256, 1, 8, 8, generator=rng) + 2, torch.arange(256) % 3)

    search = train

    def metric(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return (
            super().metric(outputs, targets) if self.broken_metric is None else self.broken_metric
        )


@pytest.fixture
def recovery() -> Recovery:
    task = Small()
    return Recovery(task, task.model(), seed=3)


def damaged(dense: nn.Module) -> nn.Module:
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module[4].weight.mul_(0.3)
    return module


def distance(dense: nn.Module, module: nn.Module) -> float:
    inputs = Small().train().batch(range(64))[0].numpy()
    return mean_kl(torch_run(dense)(inputs), torch_run(module)(inputs))


def test_recalibration_takes_the_statistics_of_the_data(recovery: Recovery) -> None:
    module = copy.deepcopy(recovery.dense)
    module[1].running_mean.fill_(9.0)  # the statistics of a long training are forgotten
    module[1].num_batches_tracked.fill_(1000)
    recovery.recover(module, RECALIBRATED)
    inputs = torch.cat([recovery.batches.split.batch(range(256))[0]])
    with torch.no_grad():
        expected = module[0](inputs).mean((0, 2, 3))
    assert torch.allclose(module[1].running_mean, expected, atol=0.05)
    assert not module.training
    assert module[1].momentum == 0.1


def test_distillation_comes_closer_to_the_teacher(recovery: Recovery) -> None:
    module = damaged(recovery.dense)
    recovery.recover(module, RECALIBRATED)
    before = distance(recovery.dense, module)
    recovery.recover(module, Schedule(steps=30))
    assert distance(recovery.dense, module) < 0.5 * before


def test_a_train_split_without_labels_is_enough() -> None:
    class Unlabelled(Small):
        label_share = 0.0

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise AssertionError("there is nothing to ask it")

    task = Unlabelled()
    recovery = Recovery(task, task.model(), seed=3)
    module = damaged(recovery.dense)
    before = distance(recovery.dense, module)
    recovery.recover(module, Schedule(steps=30))
    assert distance(recovery.dense, module) < 0.5 * before


def test_a_frozen_network_is_recovered_like_any_other(recovery: Recovery) -> None:
    recovery.dense.requires_grad_(False)
    module = damaged(recovery.dense)
    before = distance(recovery.dense, module)
    recovery.recover(module, Schedule(steps=30))
    assert distance(recovery.dense, module) < 0.5 * before
    assert not any(parameter.requires_grad for parameter in recovery.dense.parameters())


def test_the_same_candidate_recovers_to_the_same_weights(recovery: Recovery) -> None:
    task = Small()
    again = Recovery(task, task.model(), seed=3)
    first, second = damaged(recovery.dense), damaged(recovery.dense)
    recovery.recover(first, Schedule(steps=5))
    again.recover(second, Schedule(steps=5))
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_teacher_sees_each_batch_once(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)  # else students try it
    calls = []
    recovery.dense.register_forward_hook(lambda *_: calls.append(1))
    for steps in (4, 8):
        recovery.recover(damaged(recovery.dense), in_cycles(steps, 4))
    # The copies carry the hook too: they account for what is left.
    students = 4 + 8 + 3 * RECALIBRATED.recalibration_batches
    # Of 256 samples by 64, and of few: what suits it, how much it says, which layers it shares.
    assert len(calls) - students == 4 + 3


def noisy(split: TensorSplit) -> TensorSplit:
    return TensorSplit(
        *split.batch(range(len(split))), transform=lambda batch: batch + torch.randn(batch.shape)
    )


def test_what_a_split_draws_at_random_is_drawn_once_for_a_step(recovery: Recovery) -> None:
    """The dense network's answers are to what the candidate is given, also in another process."""
    split = recovery.batches.split
    batches = recovery.batches = Batches(noisy(split), seed=3, task_name="small")
    first = batches.of(1, 16)[0]
    torch.rand(7)
    assert torch.equal(batches.of(1, 16)[0], first)
    assert not torch.equal(first, split.batch(batches.indices(1, 16))[0])


@pytest.mark.parametrize("split", [Small().train(), noisy(Small().train())])
@pytest.mark.parametrize("size", [100, 128, 300])
def test_the_teacher_answers_what_it_is_asked_in_every_epoch(split: TensorSplit, size: int) -> None:
    batches = Batches(split, seed=3, task_name="small")
    dense = Small().model()
    teacher = Teacher(dense, batches)
    for step in (0, 1, 2, 9, 0, 2):  # of 256 samples
        inputs = batches.of(step, size)[0]
        with torch.no_grad():
            expected = dense(inputs)
        assert torch.allclose(teacher.answers(step, inputs), expected, atol=1e-5)


def test_answers_are_the_same_wherever_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, also where products depend on what else is in a batch."""
    asked = Teacher._asked
    monkeypatch.setattr(
        Teacher, "_asked", lambda self, inputs: asked(self, inputs) + inputs.sum() * 1e-3
    )
    batches = Batches(Small().train(), seed=3, task_name="small")
    from_the_start, later = (Teacher(Small().model(), batches) for _ in range(2))
    for step in range(9):
        answers = from_the_start.answers(step, batches.of(step, 100)[0])
        if step > 5:
            assert torch.equal(later.answers(step, batches.of(step, 100)[0]), answers)
    for step in range(2):
        inputs = batches.of(step, 100)[0]
        assert torch.equal(later.answers(step, inputs), from_the_start.answers(step, inputs))


def test_the_largest_seed_is_one_like_others() -> None:
    recovery = Recovery(Small(), Small().model(), seed=LARGEST_SEED)
    recovery.recover(damaged(recovery.dense), in_cycles(4, 2))


class Dropping(Small):
    def model(self) -> nn.Module:
        return nn.Sequential(*super().model()[:4], nn.Dropout(0.5), super().model()[4]).eval()


def test_what_training_draws_at_random_is_the_same_in_a_run_that_goes_on() -> None:
    recovery = Recovery(Dropping(), Dropping().model(), seed=3)
    found = []
    for draws in (0, 7):
        torch.rand(draws)
        module = copy.deepcopy(recovery.dense)
        recovery.recover(module, Schedule(steps=5))
        found.append(module[5].weight)
    assert torch.equal(*found)
    assert not torch.equal(found[0], recovery.dense[5].weight)


class Viewing(nn.Module):
    """Takes for granted that a tensor lies in memory as its axes are named."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3), nn.Linear(288, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.first(x)).view(len(x), -1))


def test_weights_lie_as_before_when_recovery_ends(recovery: Recovery) -> None:
    last: list[bool] = []
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3), *damaged(recovery.dense)[1:])
    module[1].register_forward_hook(lambda conv, *_: last.append(not conv.weight.is_contiguous()))
    recovery.recover(module, Schedule(steps=2))
    assert last
    assert all(last)
    assert all(value.is_contiguous() for value in module.state_dict().values())


def test_a_network_whose_code_needs_the_usual_order_is_trained_in_it() -> None:
    inputs = torch.randn(4, 1, 8, 8)
    assert not suits_channels_last(Viewing(), inputs)
    assert suits_channels_last(Small().model(), inputs)
    assert not suits_channels_last(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inputs)
    recovery = Recovery(Small(), Viewing(), seed=3)
    module = copy.deepcopy(recovery.dense)
    recovery.recover(module, Schedule(steps=2))
    assert not torch.equal(module.conv.weight, recovery.dense.conv.weight)


def test_a_longer_recovery_goes_on_where_a_shorter_one_ended(recovery: Recovery) -> None:
    """What was trained in one go and what went on from a shorter recovery are the same network."""
    at_once, first = damaged(recovery.dense), damaged(recovery.dense)
    seen: list[tuple[int, int]] = []
    schedule = in_cycles(9, 3)
    recovery.recover(at_once, schedule, tick=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 9) for step in range(1, 10)]
    recovery.recover(first, in_cycles(3, 3))
    went_on = copy.deepcopy(first)
    for done in (3, 6):
        recovery.recover(went_on, in_cycles(done + 3, 3), done=done)
    pairs = zip(at_once.state_dict().values(), went_on.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first[4].weight, went_on[4].weight)


def test_the_rate_begins_anew_with_each_cycle_and_the_batches_do_not(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    of = Batches.of

    def noted(self: Batches, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(step)
        return of(self, step, size)

    monkeypatch.setattr(Batches, "of", noted)
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)  # else it is tried
    recovery.recover(damaged(recovery.dense), replace(in_cycles(8, 4), recalibration_batches=0))
    assert [step for step in asked if step] == list(range(1, 8))


def test_a_schedule_has_whole_cycles() -> None:
    assert in_cycles(900, 300).shorter == in_cycles(600, 300)
    assert in_cycles(600, 300).shorter == Schedule(steps=300) == in_cycles(300, 300)
    assert in_cycles(300, 300).shorter is None
    assert in_cycles(500, 300) == Schedule(steps=500)
    assert in_cycles(0, 0) == Schedule(steps=0)
    with pytest.raises(ValueError, match="no whole cycles of 300"):
        Schedule(steps=500, cycle_steps=300)


def test_no_recovery_changes_nothing(recovery: Recovery) -> None:
    module = damaged(recovery.dense)
    before = copy.deepcopy(module.state_dict())
    recovery.recover(module, NO_RECOVERY)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_loss_that_explodes_at_every_rate_fails_the_candidate(recovery: Recovery) -> None:
    with pytest.raises(CandidateError, match="training diverges at a peak rate of 1e"):
        recovery.recover(damaged(recovery.dense), Schedule(steps=30, peak_lr=1e8))


def test_a_rate_that_is_too_fast_is_lowered_and_begins_with_the_inherited_weights(
    recovery: Recovery,
) -> None:
    fast, slow = damaged(recovery.dense), damaged(recovery.dense)
    recovery.recover(fast, Schedule(steps=12, peak_lr=1.0))
    recovery.recover(slow, Schedule(steps=12, peak_lr=0.1))
    for name, value in slow.state_dict().items():
        assert torch.equal(fast.state_dict()[name], value), name
    assert distance(recovery.dense, fast) < 2 * distance(recovery.dense, damaged(recovery.dense))


def test_training_that_hurts_at_every_rate_is_undone(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def losses(*arguments: object, **options: object) -> list[float]:
        schedule = arguments[1]
        assert isinstance(schedule, Schedule)
        tries.append(schedule.peak_lr)
        nn.init.normal_(module[4].weight, std=9.0)
        return [0.1] * 20

    monkeypatch.setattr(training, "_losses", losses)
    module = damaged(recovery.dense)
    before = copy.deepcopy(module.state_dict())
    recovery.recover(module, Schedule(steps=20, recalibration_batches=0))
    assert tries == pytest.approx([0.05, 0.005, 0.0005])
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


class Twice(nn.Module):
    """A layer and its batch norm that are used twice, on inputs of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.layer(x))
        x = self.norm(self.layer(x * 0.1 + 3))
        return self.last(torch.flatten(x, 1))


def test_a_norm_that_is_shared_keeps_its_statistics_while_training() -> None:
    torch.manual_seed(0)
    task, dense = Small(), Twice()
    recovery = Recovery(task, dense, seed=3)
    recovery.recalibrate(dense)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.last.weight.mul_(0.3)
    recalibrated = copy.deepcopy(module)
    recovery.recalibrate(recalibrated)
    recovery.recover(module, Schedule(steps=40))
    assert torch.equal(module.norm.running_mean, recalibrated.norm.running_mean)
    assert torch.equal(module.norm.running_var, recalibrated.norm.running_var)
    assert not torch.equal(module.last.weight, recalibrated.last.weight)
    assert distance(dense, module) < distance(dense, recalibrated) / 2


@pytest.mark.parametrize("value", ["0.9", float("nan"), None.__class__])
def test_a_metric_that_is_no_number_is_the_users_error(value: object) -> None:
    task = Small()
    task.broken_metric = value
    with pytest.raises(UsageError, match="metric"):
        ScoredSplit(task, task.search()).score(torch_run(task.model()))


def test_outputs_that_are_not_finite_fail_the_candidate() -> None:
    task = Small()

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.full((len(inputs), 3), np.nan, np.float32)

    with pytest.raises(CandidateError, match="score"):
        ScoredSplit(task, task.search()).score(run)


def test_equal_outputs_are_no_distance_apart() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 4))
    assert mean_kl(logits, logits + 3) == pytest.approx(0, abs=1e-12)
    assert mean_kl(logits, -logits) > 0.1
