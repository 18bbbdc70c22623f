"""What a search is told before its first evaluation: latencies of all choices, and what they hurt.

Rows for the table, a few whole networks to fit the prediction, and one probe per action.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.compress import space
from hwloop.compress.apply import in_base_precision
from hwloop.compress.export import check_deployed, host_run
from hwloop.compress.fp16_range import Kept
from hwloop.compress.recover import NO_RECOVERY, Recipe
from hwloop.compress.space import ACTIONS
from hwloop.compress.subject import Subject, check_has_choices
from hwloop.errors import CandidateError
from hwloop.measure import paired as measure
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import LatencyTable, Predictor
from hwloop.records import Network
from hwloop.run.build import holding
from hwloop.run.evaluate import Evaluator
from hwloop.run.kept import Probe
from hwloop.runtimes.fp16 import FALLBACKS
from hwloop.runtimes.quantize import TENSORRT
from hwloop.tasks.score import ScoredSplit, mean_kl, torch_run

CALIBRATION_NETWORKS = 12
PROBE_SAMPLES = 500
PROBE_RECIPE = Recipe(steps=0, recalibration_batches=3)
HOPELESS_DROP = 1.0
"""Damage of an action whose probe failed, in units of the metric."""


def held_on_target(found: Subject, session: DeviceSession) -> Subject:
    """The subject with as much in FP32 as the target's own outputs ask for.

    What stays FP32 was decided on the host; the target's kernels have the last word, since they may
    add up in FP16 what ONNX Runtime adds up in FP32. Refusals other than of the outputs are left to
    the baseline, which says what they mean.
    """
    while found.fp16 is not None and (later := _with_more_float(found, found.fp16)) is not None:
        model = found.model(found.dense_candidate, found.graph)
        run = partial(session.infer, model)
        try:
            check_deployed(found.example, host_run(found.float_graph), run, int8=False)
        except CandidateError as error:
            session.forget(model)
            if error.stage != "check":
                break
            reason = f"on the target, {error.message.removeprefix('check: ')}"
            kept = Kept(operators=later.rules.kept_float, reason=reason)
            found = replace(later, fp16=kept)
        else:
            break
    return found


def _with_more_float(found: Subject, fp16: Kept) -> Subject | None:
    """By the next fall-back that makes another graph of it; None where there is none."""
    for operators in FALLBACKS[FALLBACKS.index(fp16.operators) + 1 :]:
        rules = replace(found.rules, kept_float=operators)
        graph = in_base_precision(found.float_graph, rules)
        if graph != found.graph:
            return replace(found, rules=rules, graph=graph)
    return None


def buildable(
    found: Subject, session: DeviceSession, table: LatencyTable, progress: Progress
) -> tuple[Subject, dict[str, str]]:
    """The subject without the int8 actions that the target cannot build, and the refused kinds.

    A strongly typed network has nothing to fall back to where TensorRT has no int8 kernel, by
    release and by GPU. One build of each kind of row tells, before hours are spent on it.

    Raises:
        TargetError: the target builds no row at all, or loses its workers over one.
        UsageError: nothing is left to decide.
    """
    rules = found.rules
    if rules.recipe != TENSORRT:
        return found, {}
    progress.stage("INT8 kinds")
    refused = measure.int8_kinds(
        session,
        table,
        space.reachable_configs(found.network, rules),
        recipe=rules.recipe,
        progress=progress.advance,
    )
    if not refused:
        return found, {}
    found = replace(found, rules=replace(rules, refused_kinds=tuple(refused)))
    masked = len(space.int8_masked(found.network, found.rules))
    why = "; ".join(f"{kind}: {reason}" for kind, reason in refused.items())
    progress.say(f"INT8 is masked for {masked} of {len(found.network.groups)} groups: {why}")
    check_has_choices(found)
    return found, refused


def fitted_predictor(
    evaluator: Evaluator, table: LatencyTable, progress: Progress, *, seed: int
) -> Predictor:
    """Measure missing rows and a few random networks end to end, and fit the prediction.

    The fit then stays as it is, so that a resumed search makes the same decisions; the networks
    that the search measures later are all outside the fit and tell its error.
    """
    subject = evaluator.subject
    rows = space.reachable_configs(subject.network, subject.rules)
    progress.stage("latency table")
    with evaluator.clock("measure"):
        measure.build_rows(
            evaluator.session,
            table,
            rows,
            recipe=evaluator.subject.rules.recipe,
            progress=progress.advance,
        )
    predictor = Predictor(table, subject.network, subject.rules)
    predictor.observe((0,) * len(subject.network.groups), evaluator.baseline.latency_ms)
    progress.stage("calibration networks")
    for number, choices in enumerate(_calibration_choices(evaluator, seed)):
        progress.advance(number, CALIBRATION_NETWORKS)
        candidate = space.candidate(choices)
        measurement = evaluator.latencies.known(candidate)
        if measurement is None:
            try:
                # Latency does not depend on the values of the weights: no recovery is needed.
                built = evaluator.builder.build(candidate, NO_RECOVERY)
                with holding(evaluator.session, built.model):
                    measurement = evaluator.latencies.of(built)
            except CandidateError:
                continue
        predictor.observe(choices, measurement.latency_ms)
    return predictor


def _calibration_choices(evaluator: Evaluator, seed: int) -> list[tuple[int, ...]]:
    """Random legal choices whose share of int8 groups covers the range evenly."""
    rng = np.random.default_rng([seed, 7])
    masks = space.masks(evaluator.subject.network, evaluator.subject.rules)
    found = []
    for number in range(CALIBRATION_NETWORKS):
        share = number / (CALIBRATION_NETWORKS - 1)
        choices = []
        for mask in masks:
            legal = [index for index, allowed in enumerate(mask) if allowed]
            wanted = "int8" if rng.random() < share else "base"
            options = [index for index in legal if ACTIONS[index].precision == wanted] or legal
            choices.append(int(rng.choice(options)))
        found.append(tuple(choices))
    return found


# ------------------------------------------------------------------------------ sensitivity


def damage(evaluator: Evaluator, progress: Progress) -> NDArray[np.float64]:
    """(groups, actions) expected drop of the metric of each single action, in its unit.

    Each width and each precision is applied alone, batch-norms recalibrated; what is measured is
    the KL divergence of the outputs from the dense network's, because on a few hundred samples it
    is far less noisy than the metric. One slope, fitted to all probes, turns it into the metric's
    unit. Width and precision of one group are taken to add up.
    """
    subject = evaluator.subject
    masks = space.masks(subject.network, subject.rules)
    probes = probed(masks)
    split = ScoredSplit(subject.task, subject.task.search(), count=PROBE_SAMPLES)
    dense = split.outputs(torch_run(subject.dense))
    dense_metric = split.metric(dense)
    progress.stage("sensitivity")
    for number, (group, index) in enumerate(probes):
        progress.advance(number, len(probes), subject.network.groups[group].name)
        if evaluator.figures.probe(group, str(index)) is None:
            found = _probe(
                evaluator, split, group=group, index=index, dense=dense, dense_metric=dense_metric
            )
            evaluator.figures.add_probe(group, str(index), found)
    results = {}
    for group, index in probes:
        known = evaluator.figures.probe(group, str(index))
        assert known is not None, "every probe was stored"
        results[group, index] = known
    return _as_drops(results, masks)


def probed(masks: tuple[tuple[bool, ...], ...]) -> list[tuple[int, int]]:
    """(group, action) of everything that is tried alone: each width and each precision."""
    return [
        (group, index)
        for group, mask in enumerate(masks)
        for index, allowed in enumerate(mask)
        if allowed and index and _is_single(index)
    ]


def _probe(
    evaluator: Evaluator,
    split: ScoredSplit,
    *,
    group: int,
    index: int,
    dense: NDArray[Any],
    dense_metric: float,
) -> Probe:
    choices = [0] * len(evaluator.subject.network.groups)
    choices[group] = index
    try:
        built = evaluator.builder.build(space.candidate(tuple(choices)), PROBE_RECIPE)
        with holding(evaluator.session, built.model), evaluator.clock("score"):
            if ACTIONS[index].precision == "base":
                outputs = split.outputs(torch_run(built.module))
            else:
                outputs = split.outputs(partial(evaluator.session.infer, built.model))
        kl = mean_kl(dense, outputs)
        if not math.isfinite(kl):
            return Probe(failed="the outputs are not finite")
        return Probe(kl=kl, drop=evaluator.subject.task.drop(dense_metric, split.metric(outputs)))
    except CandidateError as error:
        return Probe(failed=str(error))


def _as_drops(
    probes: dict[tuple[int, int], Probe], masks: tuple[tuple[bool, ...], ...]
) -> NDArray[np.float64]:
    measured = [probe for probe in probes.values() if probe.failed is None]
    squares = sum(probe.kl**2 for probe in measured)
    slope = sum(probe.kl * probe.drop for probe in measured) / squares if squares else 0.0
    drops = np.zeros((len(masks), len(ACTIONS)))
    for (group, index), probe in probes.items():
        hopeless = probe.failed is not None
        drops[group, index] = HOPELESS_DROP if hopeless else max(slope, 1e-3) * probe.kl
    for index, action in enumerate(ACTIONS):
        if action.kind != "keep" and action.precision != "base":
            width = _index(action.kind, action.amount, "base")
            precision = _index("keep", 1.0, action.precision)
            drops[:, index] = drops[:, width] + drops[:, precision]
    return np.minimum(drops, HOPELESS_DROP)


def _is_single(index: int) -> bool:
    action = ACTIONS[index]
    return action.kind == "keep" or action.precision == "base"


def _index(kind: str, amount: float, precision: str) -> int:
    return next(
        index
        for index, action in enumerate(ACTIONS)
        if (action.kind, action.amount, action.precision) == (kind, amount, precision)
    )


# --------------------------------------------------------------------------------- features


def features(network: Network) -> NDArray[np.float64]:
    """(groups, 8) static features in [-1, 1] for the agent's observation.

    Depth, channels (log2), input side (log2), layers in the group, kernel, stride, whether it may
    be pruned, and its share of the dense network's multiply-accumulates.
    """
    layers = {layer.name: layer.config for layer in network.layers}
    total = max(sum(config.macs for config in layers.values()), 1)
    rows = []
    for number, group in enumerate(network.groups):
        configs = [layers[name] for name in group.layers]
        first = configs[0]
        side = first.in_shape[-1] if len(first.in_shape) > 2 else 1
        share = sum(config.macs for config in configs) / total
        rows.append(
            [
                2 * number / max(len(network.groups) - 1, 1) - 1,
                _scaled(math.log2(group.channels), 12),
                _scaled(math.log2(side), 10),
                _scaled(len(configs), 16),
                _scaled(first.kernel[0], 7),
                _scaled(first.stride[0], 4),
                1.0 if group.prunable else -1.0,
                2 * share - 1,
            ]
        )
    return np.asarray(np.clip(rows, -1.0, 1.0), dtype=np.float64)


def _scaled(value: float, largest: float) -> float:
    return 2 * value / largest - 1
