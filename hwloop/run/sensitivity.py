"""What each single action hurts, before anything is searched: one probe per action."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.compress.space import Masks
from hwloop.compress.subject import Subject
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.measure.progress import Progress
from hwloop.records import KEEP, Action, Candidate
from hwloop.run.evaluate import Evaluator
from hwloop.run.kept import Probe
from hwloop.tasks.divergence import divergence
from hwloop.tasks.score import ScoredSplit, torch_run

PROBE_SAMPLES = 500
PROBE_SCHEDULE = Schedule(steps=0, recalibration_batches=6)
HOPELESS = 2.0
"""Damage of an action whose probe failed, in that of the worst one that did not; whatever the unit
of the metric is."""

LEAST_SLOPE = 0.1
"""Of drop over divergence, in goals, where the probes lost nothing."""

USUAL_GOAL = 0.01

Alone = tuple[int, Action]
"""A group and the action that is tried on it alone."""


def damage(evaluator: Evaluator, progress: Progress, masks: Masks) -> NDArray[np.float64]:
    """(groups, actions) expected drop of the metric of each single action, in its unit.

    Each action and each precision is applied alone, batch-norms recalibrated; what is measured is
    how far the outputs are from the dense network's, because on a few hundred samples that
    is far less noisy than the metric. One slope, fitted to all probes, turns it into the metric's
    unit. An action and a precision of one group are taken to add up.

    Args:
        masks: what may be chosen; the rest is not tried.
    """
    subject = evaluator.subject
    probes = probed(subject, masks)
    split = ScoredSplit(subject.task, subject.task.search(), count=PROBE_SAMPLES)
    dense = split.outputs(torch_run(subject.dense))
    dense_metric = split.metric(dense)
    progress.stage("sensitivity")
    results: dict[Alone, Probe] = {}
    for number, alone in enumerate(probes):
        progress.advance(number, len(probes), subject.network.groups[alone[0]].name)
        found = evaluator.figures.probe(alone[0], _name(alone[1]))
        if found is None:
            found = _probe(evaluator, split, alone, dense=dense, dense_metric=dense_metric)
            evaluator.figures.add_probe(alone[0], _name(alone[1]), found)
        results[alone] = found
    goal = evaluator.scorer.max_drop or USUAL_GOAL
    return _as_drops(results, subject, least_slope=LEAST_SLOPE * goal)


def probed(subject: Subject, masks: Masks) -> list[Alone]:
    """Everything that is tried alone: each action in base precision, and each precision."""
    legal = {
        (group, action)
        for group, mask in enumerate(subject.masks)
        for action, ok in zip(subject.menu, mask, strict=True)
        if ok and action != KEEP
    }
    found: dict[Alone, None] = {}
    for group, mask in enumerate(masks):
        for action, allowed in zip(subject.menu, mask, strict=True):
            if allowed:
                found[group, replace(action, precision="base")] = None
                found[group, Action(precision=action.precision)] = None
    return [alone for alone in found if alone in legal]


def _name(action: Action) -> str:
    return f"{action.kind} {action.amount:g} {action.precision}"


def _probe(
    evaluator: Evaluator,
    split: ScoredSplit,
    alone: Alone,
    *,
    dense: NDArray[Any],
    dense_metric: float,
) -> Probe:
    task = evaluator.subject.task
    try:
        outputs = _outputs(evaluator, split, alone)
        apart = divergence(task, dense, outputs)
        if not math.isfinite(apart):
            return Probe(failed="the outputs are not finite")
        metric = split.metric(outputs, of_candidate=True)
        return Probe(divergence=apart, drop=task.drop(dense_metric, metric))
    except CandidateError as error:
        return Probe(failed=str(error))


def _outputs(evaluator: Evaluator, split: ScoredSplit, alone: Alone) -> NDArray[Any]:
    """On the target what only that computes; the rest here, which needs no export."""
    group, action = alone
    actions = list(evaluator.subject.dense_candidate.actions)
    actions[group] = action
    candidate, builder = Candidate(actions=tuple(actions)), evaluator.builder
    if action.precision == "base":
        module = builder.recovered(candidate, PROBE_SCHEDULE)
        with evaluator.clock("score"):
            return split.outputs(torch_run(module))
    built = builder.build(candidate, PROBE_SCHEDULE)
    with evaluator.session.holding(built.model), evaluator.clock("score"):
        return split.outputs(partial(evaluator.session.infer, built.model))


def _as_drops(
    probes: dict[Alone, Probe], subject: Subject, *, least_slope: float
) -> NDArray[np.float64]:
    measured = [probe for probe in probes.values() if probe.failed is None]
    squares = sum(probe.divergence**2 for probe in measured)
    products = sum(probe.divergence * probe.drop for probe in measured)
    slope = products / squares if squares else 0.0
    menu = subject.menu
    drops = np.zeros((len(subject.network.groups), len(menu)))
    slope = max(slope, least_slope)
    worst = max((probe.divergence for probe in measured), default=0.0)
    hopeless = HOPELESS * slope * (worst or 1.0)
    for (group, action), probe in probes.items():
        drop = hopeless if probe.failed is not None else slope * probe.divergence
        drops[group, menu.index(action)] = drop
    for index, action in enumerate(menu):
        if action.kind != KEEP.kind and action.precision != "base":
            alone = menu.index(Action(kind=action.kind, amount=action.amount))
            precision = menu.index(Action(precision=action.precision))
            drops[:, index] = drops[:, alone] + drops[:, precision]
    return np.minimum(drops, hopeless)
