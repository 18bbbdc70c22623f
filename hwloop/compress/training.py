"""Gradient steps: a one-cycle training that is slowed, or undone, where it does harm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hwloop.compress.bfloat16 import TRIED, outputs_of, suits_bfloat16
from hwloop.errors import CandidateError

SHRINKS = (1.0, 0.1, 0.01)
"""Of the peak rate: what suits residual networks of a classifier is far too fast for others."""

DIVERGED = 10.0
"""Times the first loss, or times one where that is less."""

ENDS = 5
"""First steps whose losses, then and in the end, tell whether training helped."""

WORSE = 1.1
"""Times the loss that it began with: training that ends there has hurt."""

ADAM_SHARE, ADAM_DECAY = 0.02, 0.01
"""Of SGD's peak rate, and weight decay, where AdamW trains: 0.001 with the default rate."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a candidate recovers.

    Attributes:
        steps: gradient steps; 0 leaves the weights alone.
        peak_lr: of the one-cycle schedule (Smith and Topin, 2019), for SGD.
        batch_size: samples per step.
        recalibration_batches: batches that renew the batch-norm statistics; 0 for none.
        weight_decay: of SGD, whose Nesterov momentum is 0.9.
        cycle_steps: the rate's cycle begins anew after so many steps (Loshchilov and Hutter, ICLR
            2017, "SGDR"): what a shorter schedule left is where a longer one goes on. None for one
            cycle.
    """

    steps: int
    peak_lr: float = 0.05
    batch_size: int = 64
    recalibration_batches: int = 16
    weight_decay: float = 1e-4
    warmup_share: float = 0.2
    cycle_steps: int | None = None

    def __post_init__(self) -> None:
        if self.cycle_steps is not None and (self.cycle_steps < 1 or self.steps % self.cycle_steps):
            raise ValueError(f"{self.steps} steps are no whole cycles of {self.cycle_steps}")

    @property
    def cycle(self) -> Schedule:
        """One of its cycles, for itself."""
        return replace(self, steps=self.cycle_steps or self.steps, cycle_steps=None)

    @property
    def shorter(self) -> Schedule | None:
        """The same with a cycle less; None where that is none at all."""
        if self.cycle_steps is None or self.steps == self.cycle_steps:
            return None
        return in_cycles(self.steps - self.cycle_steps, self.cycle_steps)


def in_cycles(steps: int, cycle_steps: int) -> Schedule:
    """So many steps, in cycles where they are several whole ones."""
    several = 0 < cycle_steps < steps and steps % cycle_steps == 0
    return Schedule(steps=steps, cycle_steps=cycle_steps if several else None)


class Lesson(Protocol):
    """What a network is given in one step, what it should answer, and the loss of its answer."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def teacher(self) -> Tensor: ...

    def loss(self, outputs: Tensor) -> Tensor: ...


Tick = Callable[[int, int], None]
"""Called with (steps done, steps)."""


def batch_norms(module: nn.Module) -> list[Any]:
    """Every batch norm of a network."""
    return [child for child in module.modules() if isinstance(child, BATCH_NORMS)]


def train(
    module: nn.Module,
    schedule: Schedule,
    lesson: Callable[[int], Lesson],
    tick: Tick,
    *,
    frozen: bool,
) -> None:
    """In place, by the schedule; where that diverges or hurts, with a tenth of its rate, and once
    more.

    What is hurt at every rate stays as it was.

    Args:
        lesson: of a step, the same one whenever it is asked for.
        frozen: batch norms keep their statistics.

    Raises:
        CandidateError: stage ``recover``: training diverges at every rate that was tried.
    """
    inherited = copy.deepcopy(module.state_dict())
    finite = False
    for bfloat16 in (True, False) if suits_bfloat16(module, _few(lesson)) else (False,):
        for shrink in SHRINKS:
            slower = replace(schedule, peak_lr=schedule.peak_lr * shrink)
            losses = _losses(module, slower, lesson, tick, bfloat16=bfloat16, frozen=frozen)
            if losses is not None and not _hurt(module, losses, lesson, bfloat16=bfloat16):
                return
            finite = finite or losses is not None
            module.load_state_dict(inherited)
        if finite:
            return
    raise CandidateError(
        "recover",
        f"training diverges at a peak rate of {schedule.peak_lr:g}, and at a hundredth of it",
    )


def _few(lesson: Callable[[int], Lesson]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Inputs and answers of the first lesson, when they are asked for."""

    def few() -> tuple[Tensor, Tensor]:
        first = lesson(0)
        return first.inputs[:TRIED], first.teacher[:TRIED]

    return few


def _losses(
    module: nn.Module,
    schedule: Schedule,
    lesson: Callable[[int], Lesson],
    tick: Tick,
    *,
    bfloat16: bool,
    frozen: bool,
) -> list[float] | None:
    """Train in place; None as soon as a loss is not finite, or far above the first one."""
    # Also what was frozen: that was a choice for another training, and pruning undoes it.
    parameters = [p.requires_grad_() for p in module.parameters() if p.is_floating_point()]
    optimizer, peak_lr = _optimizer(module, parameters, schedule)
    # One step more than is taken; below six, OneCycleLR divides by zero.
    total = max(schedule.steps + 1, 6)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_lr, total_steps=total, pct_start=schedule.warmup_share
    )
    _trained_mode(module, frozen=frozen)
    masks = _masks(module)
    limit, losses = math.inf, []
    for step in range(schedule.steps):
        taught = lesson(step)
        loss = taught.loss(outputs_of(module, taught.inputs, bfloat16=bfloat16))
        losses.append(loss.item())
        if not losses[-1] < limit:
            return None
        limit = DIVERGED * max(losses[0], 1.0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            for weight, mask in masks:
                weight.mul_(mask)
        rate.step()
        tick(step + 1, schedule.steps)
    return losses


_KEEPS_ZEROS = "keeps_zeros"


def keep_zeros(layer: nn.Module) -> None:
    """Whatever is trained from now on, those weights of a layer that are zero stay so."""
    setattr(layer, _KEEPS_ZEROS, True)


def _masks(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weights whose zeros are kept, and where they have none."""
    kept = [layer for layer in module.modules() if getattr(layer, _KEEPS_ZEROS, False)]
    weights = [layer.get_parameter("weight") for layer in kept]
    return [(weight, weight.detach() != 0) for weight in weights]


def _optimizer(
    module: nn.Module, parameters: list[Tensor], schedule: Schedule
) -> tuple[torch.optim.Optimizer, float]:
    """What suits the network's norms, and its peak rate.

    SGD where batch norms keep gradients in scale. Networks of layer norms learn little by it: half
    the widths of a small vision transformer, after 300 steps, lose 4.9 points with it and 0.2 with
    AdamW.
    """
    if batch_norms(module) or not any(isinstance(c, nn.LayerNorm) for c in module.modules()):
        return torch.optim.SGD(
            parameters,
            schedule.peak_lr,
            momentum=0.9,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        ), schedule.peak_lr
    peak_lr = schedule.peak_lr * ADAM_SHARE
    return torch.optim.AdamW(parameters, peak_lr, weight_decay=ADAM_DECAY), peak_lr


def _trained_mode(module: nn.Module, *, frozen: bool) -> None:
    """Training mode; frozen batch norms go on with their statistics."""
    module.train()
    if frozen:
        for norm in batch_norms(module):
            norm.eval()


def _hurt(
    module: nn.Module, losses: list[float], lesson: Callable[[int], Lesson], *, bfloat16: bool
) -> bool:
    """Whether training ended worse than it began; too few steps say nothing.

    On the same batches: a network that has learned all but the last bit differs by more from batch
    to batch than it still can learn.
    """
    if len(losses) < 4 * ENDS:
        return False
    ended = 0.0
    with torch.no_grad():
        for taught in map(lesson, range(ENDS)):
            ended += taught.loss(outputs_of(module, taught.inputs, bfloat16=bfloat16)).item()
    return not ended <= WORSE * sum(losses[:ENDS])
