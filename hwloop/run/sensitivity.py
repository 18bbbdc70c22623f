"""What each single action hurts, before anything is searched: one probe per action."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.compress.recover import Recipe
from hwloop.compress.subject import Subject
from hwloop.errors import CandidateError
from hwloop.measure.progress import Progress
from hwloop.parsing import ANY_TEXT, a_number, a_text, an_object
from hwloop.records import KEEP, Action, Candidate
from hwloop.run.evaluate import Evaluator
from hwloop.tasks.score import ScoredSplit, mean_kl, torch_run

PROBE_SAMPLES = 500
PROBE_RECIPE = Recipe(steps=0, recalibration_batches=3)
HOPELESS_DROP = 1.0
"""Damage of an action whose probe failed, in units of the metric."""

_SQUARED = a_number(-1e100, 1e100)  # so that its square is a number as well

Probe = tuple[int, Action]
"""A group and the action that is tried on it alone."""

FIRST_NAMES = {
    **{Action(kind="prune", amount=1 - step / 4): str(step) for step in (1, 2, 3)},
    Action(precision="int8"): "4",
}
"""Probes of runs that began when an action was known by its position on the one menu there was."""


def damage(evaluator: Evaluator, progress: Progress) -> NDArray[np.float64]:
    """(groups, actions) expected drop of the metric of each single action, in its unit.

    Each action and each precision is applied alone, batch-norms recalibrated; what is measured is
    the KL divergence of the outputs from the dense network's, because on a few hundred samples it
    is far less noisy than the metric. One slope, fitted to all probes, turns it into the metric's
    unit. An action and a precision of one group are taken to add up.
    """
    subject = evaluator.subject
    probes = probed(subject)
    split = ScoredSplit(subject.task, subject.task.search(), count=PROBE_SAMPLES)
    dense = split.outputs(torch_run(subject.dense))
    dense_metric = split.metric(dense)
    progress.stage("sensitivity")
    results: dict[Probe, dict[str, Any]] = {}
    for number, probe in enumerate(probes):
        progress.advance(number, len(probes), subject.network.groups[probe[0]].name)
        known = _kept(evaluator, probe)
        if known is None:
            found = _probe(evaluator, split, probe, dense=dense)
            if "kl" in found:
                found["drop"] = subject.task.drop(dense_metric, found.pop("metric"))
            evaluator.store.add("probe", _name(probe), found)
            known = _kept(evaluator, probe)
        results[probe] = known or {}
    return _as_drops(results, subject)


def probed(subject: Subject) -> list[Probe]:
    """Everything that is tried alone: each action in base precision, and each precision."""
    return [
        (group, action)
        for group, mask in enumerate(subject.masks)
        for action, allowed in zip(subject.menu, mask, strict=True)
        if allowed and action != KEEP and (action.kind == KEEP.kind or action.precision == "base")
    ]


def kept_probe(value: Any) -> dict[str, Any]:
    """A stored probe: what it hurts, or why it failed. Raises ValueError for anything else."""
    if isinstance(value, dict) and "failed" in value:
        failed: dict[str, Any] = an_object({"failed": a_text(10_000, ANY_TEXT)})(value)
        return failed
    found: dict[str, Any] = an_object({"kl": _SQUARED, "drop": _SQUARED})(value)
    return found


def _name(probe: Probe) -> str:
    group, action = probe
    return f"{group}/{action.kind} {action.amount:g} {action.precision}"


def _kept(evaluator: Evaluator, probe: Probe) -> dict[str, Any] | None:
    names = [_name(probe)]
    if probe[1] in FIRST_NAMES:
        names.append(f"{probe[0]}/{FIRST_NAMES[probe[1]]}")
    found = (evaluator.store.get("probe", name, kept_probe) for name in names)
    return next((value for value in found if value is not None), None)


def _probe(
    evaluator: Evaluator, split: ScoredSplit, probe: Probe, *, dense: NDArray[Any]
) -> dict[str, Any]:
    group, action = probe
    actions = list(evaluator.subject.dense_candidate.actions)
    actions[group] = action
    try:
        built = evaluator.build(Candidate(actions=tuple(actions)), PROBE_RECIPE)
        try:
            with evaluator.clock("score"):
                if action.precision == "base":
                    outputs = split.outputs(torch_run(built.module))
                else:
                    outputs = split.outputs(evaluator.run(built.model))
        finally:
            evaluator.session.forget(built.model)
        kl = mean_kl(dense, outputs)
        if not math.isfinite(kl):
            return {"failed": "the outputs are not finite"}
        return {"kl": kl, "metric": split.metric(outputs)}
    except CandidateError as error:
        return {"failed": str(error)}


def _as_drops(probes: dict[Probe, dict[str, Any]], subject: Subject) -> NDArray[np.float64]:
    measured = [value for value in probes.values() if "kl" in value]
    squares = sum(value["kl"] ** 2 for value in measured)
    slope = sum(value["kl"] * value["drop"] for value in measured) / squares if squares else 0.0
    menu = subject.menu
    drops = np.zeros((len(subject.network.groups), len(menu)))
    for (group, action), value in probes.items():
        drop = max(slope, 1e-3) * value["kl"] if "kl" in value else HOPELESS_DROP
        drops[group, menu.index(action)] = drop
    for index, action in enumerate(menu):
        if action.kind != KEEP.kind and action.precision != "base":
            alone = Action(kind=action.kind, amount=action.amount)
            precision = Action(precision=action.precision)
            drops[:, index] = drops[:, menu.index(alone)] + drops[:, menu.index(precision)]
    return np.minimum(drops, HOPELESS_DROP)
