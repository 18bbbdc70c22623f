"""Recovery after compression: batch-norm recalibration and distillation from the dense network.

The batches are a fixed, seeded sequence, so the teacher's outputs are computed once and shared by
all candidates, and the same candidate always recovers to the same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.errors import CandidateError
from hwloop.task import Task
from hwloop.tasks.calls import call_user

SHRINKS = (1.0, 0.1, 0.01)
"""Of the peak rate: what suits residual networks of a classifier is far too fast for others."""

DIVERGED = 10.0
"""Times the first loss, or times one where that is less."""

ENDS = 5
"""Steps at both ends whose mean losses tell whether training helped."""

WORSE = 1.1
"""Times the loss that it began with: training that ends there has hurt."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

SHARED_INPUTS = 2
"""A network is run on so many to see which of its layers are shared."""

MOST_TEACHER_BYTES = 2**28
"""Of the dense network's outputs that are kept; for maps, and long recoveries, they are many."""

SHORT_STEPS = 20
"""Of a candidate in the search, where no batch norms can be renewed."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a candidate recovers.

    Attributes:
        steps: gradient steps; 0 leaves the weights alone.
        peak_lr: of the one-cycle schedule (Smith and Topin, 2019).
        batch_size: samples per step.
        recalibration_batches: batches that renew the batch-norm statistics; 0 for none.
        label_share: weight of the task's own loss; the rest is distillation.
        weight_decay: of SGD with Nesterov momentum 0.9.
    """

    steps: int
    peak_lr: float = 0.05
    batch_size: int = 128
    recalibration_batches: int = 8
    label_share: float = 0.1
    weight_decay: float = 1e-4
    warmup_share: float = 0.2


NO_RECOVERY = Schedule(steps=0, recalibration_batches=0)
RECALIBRATED = Schedule(steps=0)


def batch_norms(module: nn.Module) -> list[Any]:
    """Every batch norm of a network."""
    return [child for child in module.modules() if isinstance(child, BATCH_NORMS)]


def short_recovery(module: nn.Module, steps: int | None) -> Schedule:
    """The recovery of candidates in the search: so many steps, or what ranks best for its time.

    Renewed batch norms rank candidates at least as well as twenty steps, in a quarter of the time
    (benchmarks/proxy.py); without any, nothing but steps gives a cut network its scale back.
    """
    if steps is None:
        steps = 0 if batch_norms(module) else SHORT_STEPS
    return Schedule(steps=steps)


class Recovery:
    """Recovers compressed copies of one dense network on one task's training split."""

    def __init__(self, task: Task, dense: nn.Module, *, seed: int) -> None:
        self.task = task
        self.dense = dense
        self.seed = seed
        self.split = task.train()
        self._order = np.empty(0, dtype=np.int64)
        self._epochs = 0
        self._teacher: dict[tuple[int, int], Tensor] = {}
        self._teacher_bytes = 0

    def recover(
        self,
        module: nn.Module,
        schedule: Schedule,
        *,
        tick: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Train in place by ``schedule``, then renew the batch-norm statistics.

        Args:
            tick: called with (steps done, steps) after each step.

        Raises:
            CandidateError: stage ``recover``: training diverges at every rate that was tried.
        """
        frozen = bool(schedule.steps) and self._shares_norms
        if frozen:
            self.recalibrate(module, schedule)
        if schedule.steps:
            self._train(module, schedule, tick or (lambda done, total: None), frozen=frozen)
        if schedule.recalibration_batches and not frozen:
            self.recalibrate(module, schedule)
        return module.eval()

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
                self.dense.eval()(self._batch(0, SHARED_INPUTS)[0])
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
            yield self._batch(step, schedule.batch_size)[0]

    def calibration_inputs(self, count: int) -> NDArray[np.float32]:
        """The first inputs of the sequence: what int8 ranges are taken from."""
        return self._batch(0, count)[0].numpy().astype(np.float32)

    def _train(
        self,
        module: nn.Module,
        schedule: Schedule,
        tick: Callable[[int, int], None],
        *,
        frozen: bool,
    ) -> None:
        """By the schedule; where that diverges or hurts, with a tenth of its rate, and once more.

        What is hurt at every rate stays as it was.

        Args:
            frozen: batch norms keep their statistics.
        """
        inherited = copy.deepcopy(module.state_dict())
        finite = False
        for shrink in SHRINKS:
            slower = replace(schedule, peak_lr=schedule.peak_lr * shrink)
            losses = self._losses(module, slower, tick, frozen=frozen)
            if losses is not None and not _hurt(losses):
                return
            finite = finite or losses is not None
            module.load_state_dict(inherited)
        if not finite:
            raise CandidateError(
                "recover",
                f"training diverges at a peak rate of {schedule.peak_lr:g}, and at a hundredth "
                "of it",
            )

    def _losses(
        self,
        module: nn.Module,
        schedule: Schedule,
        tick: Callable[[int, int], None],
        *,
        frozen: bool,
    ) -> list[float] | None:
        """Train in place; None as soon as a loss is not finite, or far above the first one."""
        # Also what was frozen: that was a choice for another training, and pruning undoes it.
        parameters = [p.requires_grad_() for p in module.parameters() if p.is_floating_point()]
        optimizer = torch.optim.SGD(
            parameters,
            schedule.peak_lr,
            momentum=0.9,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        )
        # One step more than is taken; below six, OneCycleLR divides by zero.
        total = max(schedule.steps + 1, 6)
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, schedule.peak_lr, total_steps=total, pct_start=schedule.warmup_share
        )
        _trained_mode(module, frozen=frozen)
        limit, losses = math.inf, []
        for step in range(schedule.steps):
            inputs, targets = self._batch(step, schedule.batch_size)
            outputs = module(inputs)
            teacher = self._teacher_outputs(step, schedule.batch_size, inputs)
            loss = self._loss(outputs, targets, teacher, label_share=schedule.label_share)
            losses.append(loss.item())
            if not losses[-1] < limit:
                return None
            limit = DIVERGED * max(losses[0], 1.0)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
            tick(step + 1, schedule.steps)
        return losses

    def _loss(
        self, outputs: Tensor, targets: Tensor, teacher: Tensor, *, label_share: float
    ) -> Tensor:
        task, what = self.task, f"loss of the task {self.task.name}"
        distilled = call_user(task.distillation_loss, outputs, teacher, what=f"distillation_{what}")
        return (1 - label_share) * distilled + label_share * call_user(
            task.loss, outputs, targets, what=what
        )

    def _teacher_outputs(self, step: int, batch_size: int, inputs: Tensor) -> Tensor:
        key = (step, batch_size)
        if key in self._teacher:
            return self._teacher[key]
        self.dense.eval()
        with torch.no_grad():
            outputs: Tensor = self.dense(inputs)
        if self._teacher_bytes + outputs.nbytes <= MOST_TEACHER_BYTES:
            self._teacher[key] = outputs
            self._teacher_bytes += outputs.nbytes
        return outputs

    def _batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Batch number ``step`` of the seeded sequence of shuffled epochs."""
        end = (step + 1) * batch_size
        while len(self._order) < end:
            rng = np.random.default_rng([self.seed, self._epochs])
            self._order = np.concatenate([self._order, rng.permutation(len(self.split))])
            self._epochs += 1
        chosen = self._order[end - batch_size : end]
        return call_user(self.split.batch, chosen, what=f"the train split of {self.task.name}")


def _trained_mode(module: nn.Module, *, frozen: bool) -> None:
    """Training mode; frozen batch norms go on with their statistics."""
    module.train()
    if frozen:
        for norm in batch_norms(module):
            norm.eval()


def _hurt(losses: list[float]) -> bool:
    """Whether training ended worse than it began; too few steps say nothing."""
    began, ended = losses[:ENDS], losses[-ENDS:]
    return len(losses) >= 4 * ENDS and sum(ended) > WORSE * sum(began)
