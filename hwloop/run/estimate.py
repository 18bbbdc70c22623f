"""How long a run will take: its parts are tried once on this machine, and counted."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwloop.compress.export import host_run
from hwloop.compress.recover import RECALIBRATED, short_recovery
from hwloop.compress.subject import Subject
from hwloop.errors import CandidateError, EnvironmentProblem
from hwloop.measure.profile import TargetProfile
from hwloop.records import Action
from hwloop.run import calibrate, sensitivity
from hwloop.run import table_check as tables
from hwloop.run.evaluate import LOOP_SAMPLES
from hwloop.run.rounds import lessons_in
from hwloop.run.settings import Settings
from hwloop.run.trials import usual_count
from hwloop.task import Task
from hwloop.tasks.splits import spread

BATCH = RECALIBRATED.batch_size
TIMED = 8  # samples: a step of a whole batch may take half a minute
PATIENCE_S = 3.0  # what is expected to take longer is taken from fewer samples
ROW_OVERHEAD_S = 0.01
OPENING_S = 0.1
WORKER_S = 1.0  # until a worker on this machine has started
FORWARD_SHARE = 1 / 3  # of a training step
TRIED = Action(kind="prune", amount=0.5, precision="int8")  # a build with all its steps


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of what a run begins with, of building a candidate, of one training step, and of
    scoring one sample."""

    checks_s: float
    build_s: float
    step_s: float
    sample_s: float
    samples: int
    weights_bytes: int


def times_of(task: Task, found: Subject, *, checks_s: float) -> Times:
    """One candidate, one training step of a copy, and a few samples, on this machine."""

    def build() -> None:
        with contextlib.suppress(CandidateError):
            tables.unrecovered(found, found.uniform(TRIED))

    return Times(
        checks_s=checks_s,
        build_s=_seconds(build),
        step_s=_step_s(task, found.dense),
        sample_s=_sample_s(task, found),
        samples=len(task.search()),
        weights_bytes=sum(value.nbytes for value in found.dense.state_dict().values()),
    )


def _step_s(task: Task, dense: nn.Module) -> float:
    """Reading a batch, and a step on it, by a few samples where a whole one takes long."""
    student, split = copy.deepcopy(dense).train(), task.train()

    def step(count: int) -> None:
        inputs, targets = split.batch(spread(len(split), count))
        outputs = student(inputs)
        loss = task.distillation_loss(outputs, outputs.detach())
        loss = loss + task.loss(outputs, targets) if task.label_share else loss
        torch.autograd.backward(loss)

    few_s = _seconds(lambda: step(TIMED)) * BATCH / TIMED
    whole = min(BATCH, len(split))
    return few_s if few_s > PATIENCE_S else _seconds(lambda: step(whole)) * BATCH / whole


def _sample_s(task: Task, found: Subject) -> float:
    """Scoring one sample as a target does, one at a time; PyTorch stands in for a runtime."""
    split = task.search()
    few = split.batch(spread(len(split), TIMED))[0]
    try:
        run = host_run(found.float_graph)
    except EnvironmentProblem:

        def run(inputs: NDArray[Any]) -> NDArray[Any]:
            with torch.no_grad():
                return np.concatenate([found.dense(part).numpy() for part in torch.split(few, 1)])

    return _seconds(lambda: run(few.numpy())) / len(few)


def _seconds(work: Callable[[], Any]) -> float:
    """Of the second time, because the first one prepares more; of the first where it is long."""
    for _ in range(2):
        started = time.monotonic()
        work()
        seconds = time.monotonic() - started
        if seconds > PATIENCE_S:
            break
    return seconds


def seconds_left(
    settings: Settings,
    profile: TargetProfile,
    found: Subject,
    times: Times,
    *,
    done: dict[str, int],
    missing: int,
) -> float:
    """Seconds of what is left of a run, from what its parts take on this machine.

    Args:
        done: how many results are stored already, of: trials, latencies, probes, finalists.
        missing: rows of the latency table that have to be measured.
    """
    protocols = profile.protocols
    waits = 0.0 if profile.simulated else 1.0
    row_s = protocols.row.time_limit_s * waits + ROW_OVERHEAD_S
    loop_s = protocols.loop.time_limit_s * waits + OPENING_S
    score_s = times.samples * times.sample_s
    loop_score_s = min(LOOP_SAMPLES, times.samples) * times.sample_s
    probe_s = min(sensitivity.PROBE_SAMPLES, times.samples) * times.sample_s

    def left(what: str, total: int) -> int:
        return max(total - done.get(what, 0), 0)

    by_hand = usual_count(found)
    total = settings.evaluations + by_hand
    lessons = lessons_in(settings.evaluations)
    trials = left("trials", total)
    after = settings.finalists if settings.finish_s is None else 0
    finalists = left("finalists", by_hand + lessons + after)
    networks = left("latencies", calibrate.CALIBRATION_NETWORKS + total)
    probes = left("probes", len(sensitivity.probed(found, found.masks)))
    loop_steps = short_recovery(found.dense, settings.loop_steps).steps
    steps = trials * loop_steps + finalists * settings.final_steps
    renewals = (trials + finalists) * RECALIBRATED.recalibration_batches
    renewals += probes * sensitivity.PROBE_SCHEDULE.recalibration_batches
    return (
        (settings.finish_s or 0.0)
        + missing * row_s
        + networks * loop_s
        + (networks + probes + finalists) * times.build_s
        + trials * loop_score_s
        + (finalists + 2 + by_hand) * score_s
        + probes * probe_s
        + (steps + renewals * FORWARD_SHARE) * times.step_s
        + protocols.final.time_limit_s * waits * (1 + by_hand)
    )
