"""Recovery after compression: batch-norm recalibration and distillation from the dense network.

The batches are a fixed, seeded sequence, so the teacher's outputs are computed once and shared by
all candidates, and the same candidate always recovers to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.compress.layout import channels_last
from hwloop.compress.lessons import Batches, Teacher
from hwloop.compress.training import Schedule, batch_norms, train
from hwloop.task import Task
from hwloop.tasks.calls import call_user
from hwloop.tasks.splits import seeded

SHARED_INPUTS = 2
"""A network is run on so many to see which of its layers are shared."""

SHORT_STEPS = 40
"""Of a candidate in the search, where no batch norms can be renewed."""


NO_RECOVERY = Schedule(steps=0, recalibration_batches=0)
RECALIBRATED = Schedule(steps=0)


def short_recovery(module: nn.Module, steps: int | None) -> Schedule:
    """The recovery of candidates in the search: so many steps, or what ranks best for its time.

    Renewed batch norms rank candidates at least as well as forty steps, in a quarter of the time
    (benchmarks/proxy.py, with twenty of twice as many samples); without any, nothing but steps
    gives a cut network its scale back.
    """
    if steps is None:
        steps = 0 if batch_norms(module) else SHORT_STEPS
    return Schedule(steps=steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Distilled:
    """A batch, and the dense network's answers to it."""

    task: Task
    inputs: Tensor
    targets: Tensor
    teacher: Tensor

    def loss(self, outputs: Tensor) -> Tensor:
        task, what = self.task, f"loss of the task {self.task.name}"
        distilled = call_user(
            task.distillation_loss, outputs, self.teacher, what=f"distillation_{what}"
        )
        if not task.label_share:
            return distilled
        return (1 - task.label_share) * distilled + task.label_share * call_user(
            task.loss, outputs, self.targets, what=what
        )


class Recovery:
    """Recovers compressed copies of one dense network on one task's training split."""

    def __init__(self, task: Task, dense: nn.Module, *, seed: int) -> None:
        self.task = task
        self.dense = dense
        self.seed = seed
        self.batches = Batches(task.train(), seed=seed, task_name=task.name)
        self.teacher = Teacher(dense, self.batches)

    def recover(
        self,
        module: nn.Module,
        schedule: Schedule,
        *,
        done: int = 0,
        tick: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Train in place by ``schedule``, and renew the batch-norm statistics after each cycle.

        Args:
            done: steps of whole cycles that the module has behind it.
            tick: called with (steps done, steps) after each step.

        Raises:
            CandidateError: stage ``recover``: training diverges at every rate that was tried.
        """
        cycle = schedule.cycle
        frozen = bool(schedule.steps) and self._shares_norms
        starts = range(done, schedule.steps, cycle.steps) if cycle.steps else range(1)
        with channels_last(module, suits=self.teacher.suits_channels_last):
            for start in starts:
                if frozen:
                    self.recalibrate(module, schedule)
                if cycle.steps:
                    self._train(
                        module, cycle, start=start, total=schedule.steps, tick=tick, frozen=frozen
                    )
                if schedule.recalibration_batches and not frozen:
                    self.recalibrate(module, schedule)
        return module.eval()

    def _train(
        self,
        module: nn.Module,
        cycle: Schedule,
        *,
        start: int,
        total: int,
        tick: Callable[[int, int], None] | None,
        frozen: bool,
    ) -> None:
        """One cycle, with the batches that follow those of ``start`` steps."""

        def told(done: int, steps: int) -> None:
            if tick is not None:
                tick(start + done, total)

        def lesson(step: int) -> _Distilled:
            return self._lesson(start + step, cycle)

        with seeded(self.seed + start):  # of what is random in training, as dropout is
            train(module, cycle, lesson, told, frozen=frozen)

    @cached_property
    def _shares_norms(self) -> bool:
        """Whether a batch norm is applied more than once, as in a layer that is shared.

        Its statistics are of all that it is given; trained by those of each batch, the network
        would learn another function than the one that is deployed.
        """
        norms = batch_norms(self.dense)
        calls: list[nn.Module] = []
        handles = [
            norm.register_forward_pre_hook(lambda norm, inputs: calls.append(norm))
            for norm in norms
        ]
        try:
            with torch.no_grad():
                self.dense.eval()(self.batches.of(0, SHARED_INPUTS)[0])
        finally:
            for handle in handles:
                handle.remove()
        return len(calls) > len(set(calls))

    def recalibrate(self, module: nn.Module, schedule: Schedule = RECALIBRATED) -> None:
        """Replace the batch-norm statistics by those of the compressed network.

        A plain average over the batches (EagleEye, Li et al., ECCV 2020, section 3.3).
        """
        norms = batch_norms(module)
        if not norms:
            return
        module.eval()
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for inputs in self.recalibration_inputs(schedule):
                module(inputs)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        module.eval()

    def recalibration_inputs(self, schedule: Schedule = RECALIBRATED) -> Iterator[Tensor]:
        """The inputs that batch-norm statistics are taken from, batch by batch."""
        for step in range(schedule.recalibration_batches):
            yield self.batches.of(step, schedule.batch_size)[0]

    def calibration_inputs(self, count: int) -> NDArray[np.float32]:
        """The first inputs of the sequence: what int8 ranges are taken from."""
        return self.batches.of(0, count)[0].numpy().astype(np.float32)

    def _lesson(self, step: int, schedule: Schedule) -> _Distilled:
        inputs, targets = self.batches.of(step, schedule.batch_size)
        return _Distilled(
            task=self.task,
            inputs=inputs,
            targets=targets,
            teacher=self.teacher.answers(step, inputs),
        )
