"""What a person would try beside hwloop, as candidates of the same network."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch_pruning as tp
from common import Bench

from hwloop.compress.methods import method_of
from hwloop.compress.recover import NO_RECOVERY
from hwloop.records import KEEP, Action, Candidate
from hwloop.search.planner import Planner
from hwloop.tasks.attention import ExplicitAttention

WIDTHS = (0.75, 0.625, 0.5, 0.375, 0.25)
PLANNED = (5.0, 10.0)
"""Summed damage of the planner's own answers, in goals: one careful, one as bold as widths are."""

DEPTHS = {"none of the blocks": 1, "half of the blocks": 2}
"""Of the residual blocks that can be left out every so-manieth is."""

WITH_SMALLER_IMAGES = ("width 0.75", "width 0.5", "whole-network INT8", "width 0.5, INT8")

BISECTIONS = 5
WIDEST_CUT = 0.9
"""Of a layer's channels, by the global ranking: what torch-pruning's guide advises."""


def rivals(bench: Bench, *, max_drop: float, latency_ms: float) -> dict[str, Candidate]:
    """By name; without INT8 where the target has none.

    Args:
        latency_ms: hwloop's, at which torch-pruning's ranking is cut.
    """
    int8 = "int8" in bench.subject.rules.precisions
    widths = {f"width {width:.3g}": Action(kind="prune", amount=width) for width in WIDTHS}
    found = {name: uniform(bench, action) for name, action in widths.items()}
    for name, every in DEPTHS.items():
        found[name] = bench.subject.shallow(KEEP, every=every)
    if any(group.bundle > 1 for group in bench.subject.network.groups):
        for name, action in widths.items():
            found[f"{name}, no heads"] = uniform(bench, action, heads=False)
    attends = any(isinstance(part, ExplicitAttention) for part in bench.subject.dense.modules())
    ranked = None if attends else magnitude(bench, latency_ms)  # it cuts within heads
    if ranked is not None:
        found["torch-pruning, global magnitude"] = ranked
    if int8:
        found["whole-network INT8"] = uniform(bench, Action(precision="int8"))
        for name, action in widths.items():
            found[f"{name}, INT8"] = uniform(bench, replace(action, precision="int8"))
        for name, every in DEPTHS.items():
            found[f"{name}, INT8"] = bench.subject.shallow(Action(precision="int8"), every=every)
        for name, candidate in list(found.items()):
            if name.endswith(("no heads", "magnitude")):
                found[f"{name}, INT8"] = _in_int8(bench, candidate)
    found.update(smaller_images(bench, found))
    problem = bench.problem(max_drop=max_drop)
    for goals in PLANNED:
        plan = Planner(problem).fastest_within(goals * max_drop)
        found[f"planner, {goals:g} goals of damage"] = bench.subject.candidate(plan)
    dense = bench.subject.dense_candidate
    return {name: candidate for name, candidate in found.items() if candidate != dense}


def uniform(bench: Bench, action: Action, *, heads: bool = True) -> Candidate:
    """One action for all groups, also of a width that is not on the menu.

    Args:
        heads: also of those whose channels go in bundles.
    """
    subject = bench.subject
    precisions = subject.uniform(Action(precision=action.precision)).actions
    chosen = []
    for group, plain in zip(subject.network.groups, precisions, strict=True):
        legal = method_of(action).legal(action, group, (), subject.rules)
        legal = legal and (heads or group.bundle == 1)
        chosen.append(replace(action, precision=plain.precision) if legal else plain)
    return Candidate(actions=tuple(chosen))


def smaller_images(bench: Bench, found: dict[str, Candidate]) -> dict[str, Candidate]:
    """Each size of the image with the trained network, and with some of what was found.

    Nothing where hwloop has no sizes to choose from either.
    """
    first, dense = bench.subject.network.groups[0], bench.subject.dense_candidate
    beside = {name: found[name] for name in WITH_SMALLER_IMAGES if name in found}
    return {
        ", ".join(filter(None, (f"image {share:.3g}", name))): Candidate(
            actions=(Action(kind="resize", amount=share), *candidate.actions[1:])
        )
        for share in first.sizes
        for name, candidate in {"": dense, **beside}.items()
    }


def magnitude(bench: Bench, latency_ms: float) -> Candidate:
    """torch-pruning's global ranking by group magnitude, cut at about a latency, by bisection."""
    low, high = 0.0, 1.0
    found: list[tuple[float, Candidate]] = []
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        candidate = _cut_at(bench, ratio)
        built = bench.evaluator.builder.build(candidate, NO_RECOVERY)
        with bench.session.holding(built.model):
            measured_ms = bench.evaluator.latencies.of(built).latency_ms
        found.append((abs(measured_ms - latency_ms), candidate))
        low, high = (ratio, high) if measured_ms > latency_ms else (low, ratio)
    return min(found, key=lambda item: item[0])[1]


def _cut_at(bench: Bench, ratio: float) -> Candidate:
    """The widths that torch-pruning leaves when a share of all channels goes."""
    subject = bench.subject
    module = copy.deepcopy(subject.dense)
    fixed = [
        module.get_submodule(path)
        for group in subject.network.groups
        if not group.prunable and not group.sizes
        for path in group.layers
    ]
    tp.pruner.BasePruner(
        module,
        subject.example,
        tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=WIDEST_CUT,
        ignored_layers=fixed,
        round_to=subject.rules.align,
    ).step()
    chosen = []
    for group in subject.network.groups:
        if group.sizes:
            chosen.append(KEEP)
            continue
        width = len(module.get_submodule(group.name).get_parameter("weight"))
        action = Action(kind="prune", amount=width / group.channels)
        legal = method_of(action).legal(action, group, (), subject.rules)
        chosen.append(action if legal and group.prunable else KEEP)
    return Candidate(actions=tuple(chosen))


def _in_int8(bench: Bench, candidate: Candidate) -> Candidate:
    precisions = bench.subject.uniform(Action(precision="int8")).actions
    pairs = zip(candidate.actions, precisions, strict=True)
    return Candidate(
        actions=tuple(replace(action, precision=plain.precision) for action, plain in pairs)
    )
