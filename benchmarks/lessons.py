"""Would finalists lose less if they were taught otherwise?

    python benchmarks/lessons.py     # after `by_hand.py work demo 0`; 50 minutes

Networks that a run of the demo recovered fully are recovered again, twice 600 steps from the same
refitted weights: as hwloop does it, at half and twice its peak rate, at other temperatures, without
labels, in batches of twice the size and half as many, half as long again, with the features in
front of the last pooling as a second thing to learn, and on blends of images, whose answers the
dense network gives.
All see the same images in the same order, the longer one more of them after these, and are scored
on the search split, as they ship. The test split is not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from by_hand import FOLDER, Case, reopened
from by_hand_networks import NETWORKS
from common import Bench, print_table, write_result
from finals import recovered_fully
from torch import Tensor, nn

from hwloop.compress.apply import compress
from hwloop.compress.recover import Recovery
from hwloop.compress.training import Lesson, Schedule, in_cycles
from hwloop.records import Candidate
from hwloop.task import Task

CASE = Case(name="demo", seed=0)
CANDIDATES = 4
NEAR = 0.02
"""Of what lost more after its first recovery nothing can be told at a goal of a point."""

STEPS, CYCLE = 1200, 600
SCHEDULE = in_cycles(STEPS, CYCLE)

SHARES = (0.0, 0.5)
"""Of the second image in a blend, drawn from the first to the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WithFeatures:
    """A lesson, and the dense network's features in front of the pooling.

    Attributes:
        kept: channels of the dense network that the compressed one has.
        seen: what the compressed network's pooling was given last.
    """

    plain: Lesson
    features: Tensor
    kept: list[int]
    seen: dict[str, Tensor]

    @property
    def inputs(self) -> Tensor:
        return self.plain.inputs

    @property
    def teacher(self) -> Tensor:
        return self.plain.teacher

    def loss(self, outputs: Tensor) -> Tensor:
        wanted = self.features[:, self.kept]
        error = (self.seen["features"] - wanted).square().mean() / wanted.var()
        return self.plain.loss(outputs) + error


class FeatureRecovery(Recovery):
    """Recovery that also compares features, on the channels that were kept."""

    kept: list[int]

    @cached_property
    def _seen(self) -> dict[str, Tensor]:
        return {}

    def recover(self, module: nn.Module, schedule: Schedule, **others: Any) -> nn.Module:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen["features"] = inputs[0]

        with module.get_submodule("pool").register_forward_pre_hook(note):
            return super().recover(module, schedule, **others)

    def _lesson(self, step: int, schedule: Schedule) -> Any:
        plain = super()._lesson(step, schedule)
        found: list[Tensor] = []
        pool = self.dense.get_submodule("pool")
        with (
            torch.no_grad(),
            pool.register_forward_pre_hook(lambda _, given: found.append(given[0])),
        ):
            self.dense.eval()(plain.inputs)
        return WithFeatures(plain=plain, features=found[0], kept=self.kept, seen=self._seen)


class BlendRecovery(Recovery):
    """Recovery on blends of two images of a batch (mixup, Zhang et al., ICLR 2018).

    The dense network answers the blends (Beyer et al., CVPR 2022); they have no labels.
    """

    def _lesson(self, step: int, schedule: Schedule) -> Any:
        plain = super()._lesson(step, schedule)
        rng = np.random.default_rng([self.seed, step])
        count = len(plain.inputs)
        share = torch.from_numpy(rng.uniform(*SHARES, (count, 1, 1, 1)).astype(np.float32))
        others = plain.inputs[torch.from_numpy(rng.permutation(count))]
        inputs = (1 - share) * plain.inputs + share * others
        with torch.no_grad():
            answers = self.dense.eval()(inputs)
        return replace(
            plain, inputs=inputs, teacher=answers, task=changed(self.task, label_share=0.0)
        )


def changed(task: Task, **attributes: float) -> Task:
    """The same task with other attributes of its class."""
    found: Task = type("Changed", (type(task),), attributes)()
    return found


def kept_channels(bench: Bench, candidate: Candidate) -> list[int]:
    """Channels in front of the last layer that a candidate keeps, told by that layer's weights."""
    found = bench.subject
    cut = compress(
        found.dense, found.example, found.network, candidate=candidate, rules=found.rules
    )
    dense, left = (net.get_submodule("fc").get_parameter("weight") for net in (found.dense, cut))
    return [int((dense - column[:, None]).abs().sum(dim=0).argmin()) for column in left.T]


Variant = Callable[[Bench, Candidate], tuple[Recovery, Schedule]]


def plainly(bench: Bench, rate: float = 1.0) -> tuple[Recovery, Schedule]:
    return bench.evaluator.builder.recovery, replace(SCHEDULE, peak_lr=rate * SCHEDULE.peak_lr)


def with_task(bench: Bench, **attributes: float) -> tuple[Recovery, Schedule]:
    task = changed(bench.task, **attributes)
    return Recovery(task, bench.subject.dense, seed=CASE.seed), SCHEDULE


def in_large_batches(bench: Bench) -> tuple[Recovery, Schedule]:
    few = replace(
        in_cycles(STEPS // 2, CYCLE // 2),
        batch_size=2 * SCHEDULE.batch_size,
        recalibration_batches=SCHEDULE.recalibration_batches // 2,
    )
    return bench.evaluator.builder.recovery, few


def for_longer(bench: Bench) -> tuple[Recovery, Schedule]:
    return bench.evaluator.builder.recovery, in_cycles(STEPS + CYCLE, CYCLE)


def with_features(bench: Bench, candidate: Candidate) -> tuple[Recovery, Schedule]:
    recovery = FeatureRecovery(bench.task, bench.subject.dense, seed=CASE.seed)
    recovery.kept = kept_channels(bench, candidate)
    return recovery, SCHEDULE


def with_blends(bench: Bench, candidate: Candidate) -> tuple[Recovery, Schedule]:
    return BlendRecovery(bench.task, bench.subject.dense, seed=CASE.seed), SCHEDULE


VARIANTS: dict[str, Variant] = {
    "as it is": lambda bench, candidate: plainly(bench),
    "half the rate": lambda bench, candidate: plainly(bench, 0.5),
    "twice the rate": lambda bench, candidate: plainly(bench, 2.0),
    "temperature 4": lambda bench, candidate: with_task(bench, temperature=4.0),
    "temperature 1": lambda bench, candidate: with_task(bench, temperature=1.0),
    "no labels": lambda bench, candidate: with_task(bench, label_share=0.0),
    "twice the batch, half the steps": lambda bench, candidate: in_large_batches(bench),
    "a third cycle": lambda bench, candidate: for_longer(bench),
    "features": with_features,
    "blends": with_blends,
}


def finalists() -> dict[Candidate, float]:
    """The fastest networks that the run recovered and that came near the goal, with their speed."""
    found: dict[Candidate, float] = {}
    for event in recovered_fully(CASE.run):
        candidate = Candidate.from_json(event["candidate"])
        if event["drop"] <= NEAR and candidate.is_cut:
            found[candidate] = event["speedup"]
    fastest = sorted(found, key=lambda candidate: -found[candidate])[:CANDIDATES]
    return {candidate: found[candidate] for candidate in fastest}


def taught(bench: Bench, candidate: Candidate, variant: Variant) -> dict[str, float]:
    """The drop on the search split of what ships, and the seconds of the recovery."""
    recovery, schedule = variant(bench, candidate)
    began = time.monotonic()
    built = replace(bench.evaluator.builder, recovery=recovery).build(candidate, schedule)
    with bench.session.holding(built.model):
        drop = bench.evaluator.scorer.scored(built.model).drop
    return {"drop": drop, "wall_s": round(time.monotonic() - began, 1)}


def main() -> None:
    started = time.monotonic()
    trained = NETWORKS[CASE.name](FOLDER)
    found: list[dict[str, Any]] = []
    with reopened(trained, CASE) as bench:
        for candidate, speedup in finalists().items():
            drops = {name: taught(bench, candidate, VARIANTS[name]) for name in VARIANTS}
            print(
                f"{speedup:.2f}x", {name: item["drop"] for name, item in drops.items()}, flush=True
            )
            found.append({"speedup": speedup, "variants": drops})
    mean = {
        name: float(np.mean([each["variants"][name]["drop"] for each in found]))
        for name in VARIANTS
    }
    print_table([["taught", "mean drop"], *([name, f"{drop:.4f}"] for name, drop in mean.items())])
    result = {"steps": STEPS, "mean_drop": mean, "candidates": found}
    write_result("lessons", result, started=started)


if __name__ == "__main__":
    main()
