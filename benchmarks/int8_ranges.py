"""What would other INT8 ranges give, or corrected biases, beside the extremes that were seen?

    python benchmarks/int8_ranges.py [NETWORK ...]     of by_hand.py's; each is kept

A network in INT8 as a whole, and its halved widths after a full recovery, are quantized with ranges
that are the extremes of 128 inputs (what hwloop does), that leave the least squared error, or that
hold 99.99 or 99.9 % of the values; each with biases as they are, or moved by what rounding the
weights does to the mean of the outputs. Scored on the whole search split, by ONNX Runtime.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from by_hand_networks import NETWORKS
from common import CACHE, print_table, read_result, write_result
from numpy.typing import NDArray
from onnx import numpy_helper

from hwloop.compress.recover import NO_RECOVERY, Recovery
from hwloop.compress.subject import Subject, subject
from hwloop.compress.training import Schedule
from hwloop.device import state
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.records import Action, Candidate
from hwloop.run.build import Builder, KeptWeights
from hwloop.run.clock import Stopwatch
from hwloop.runtimes import qdq_ort
from hwloop.runtimes.calibration import ranges as seen_ranges
from hwloop.runtimes.host import batches, open_on_cpu
from hwloop.tasks.score import ScoredSplit

FOLDER = CACHE / "by_hand"
STUDIED = ("demo", "mobile", "regressor")
CANDIDATES = {"whole": Action(), "width 0.5": Action(kind="prune", amount=0.5)}
CLIPS = (1, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the extremes among which the least squared error is looked for."""

MOST_VALUES = 200_000
"""Of a tensor, evenly taken: enough for a squared error."""

Values = NDArray[np.float32]
Chosen = Callable[[Values, float, float], tuple[float, float]]
"""(values of a tensor, smallest, largest) -> range."""


def extremes(values: Values, low: float, high: float) -> tuple[float, float]:
    return low, high


def least_squares(values: Values, low: float, high: float) -> tuple[float, float]:
    def error(share: float) -> float:
        least, most = min(low * share, 0.0), max(high * share, 0.0)
        scale = max((most - least) / 255, 1e-12)
        rounded = np.clip(np.round((values - least) / scale), 0, 255) * scale + least
        return float(np.square(rounded - values).mean())

    best = min(CLIPS, key=error)
    return low * best, high * best


def percentile(values: Values, low: float, high: float, *, held: float) -> tuple[float, float]:
    least, most = np.percentile(values, [100 - held, held])
    return min(float(least), 0.0), max(float(most), 0.0)


RANGES: dict[str, Chosen] = {
    "extremes": extremes,
    "least squares": least_squares,
    "99.99 %": partial(percentile, held=99.99),
    "99.9 %": partial(percentile, held=99.9),
}


def values_of(model: Any, names: list[str], inputs: NDArray[Any]) -> dict[str, Values]:
    """(N, ...) of each tensor, as the float graph computes them."""
    source = model.graph.input[0].name
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    computed = sorted(set(names) - {source})
    for name in computed:
        kind = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        probe.graph.output.append(kind)
    session = open_on_cpu(probe.SerializeToString(), needed_for="this", optimized=False)
    parts = [session.run(None, {source: part}) for part in batches(session, inputs)]
    found = {
        name: np.concatenate([np.atleast_1d(part[number]) for part in parts])
        for number, name in enumerate(computed)
    }
    return {source: inputs, **found}


@contextmanager
def quantized_with(chosen: Chosen, *, corrected: bool) -> Iterator[None]:
    """What is quantized meanwhile has these ranges and biases."""
    quantize = qdq_ort.quantize_ort

    def ranges(model: Any, tensors: Any, inputs: Any, *, optimized: bool) -> dict[str, Any]:
        seen = seen_ranges(model, tensors, inputs, optimized=optimized)
        values = values_of(model, list(seen), inputs)
        found = {}
        for name, (low, high) in seen.items():
            flat = values[name].ravel()
            some = flat[:: max(1, flat.size // MOST_VALUES)]
            found[name] = np.array(chosen(some, float(low), float(high)), np.float32)
        return found

    def quantize_ort(graph: bytes, nodes: Any, **named: Any) -> bytes:
        graph = with_moved_biases(graph, set(nodes), **named) if corrected else graph
        return quantize(graph, nodes, **named)

    with (
        patch("hwloop.runtimes.qdq_ort.ranges", ranges),
        patch("hwloop.runtimes.qdq_ort.quantize_ort", quantize_ort),
    ):
        yield


def with_moved_biases(
    graph: bytes, nodes: set[str], *, calibration: NDArray[Any], reduce_range: bool, **_: Any
) -> bytes:
    """Each bias moved by (weights - rounded weights) times the mean input of each channel.

    Of what the rounding of weights does to the mean of the outputs (Nagel et al., ICCV 2019,
    section 4.2, with measured means).
    """
    model = onnx.load_from_string(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    moved = [
        node
        for node in model.graph.node
        if node.name in nodes
        and node.op_type in ("Conv", "Gemm")
        and len(node.input) > 2
        and {node.input[1], node.input[2]} <= weights.keys()
    ]
    values = values_of(model, [node.input[0] for node in moved], calibration)
    for node in moved:
        attributes = {each.name: each.i for each in node.attribute}
        weight = numpy_helper.to_array(weights[node.input[1]])
        if node.op_type == "Gemm" and not attributes.get("transB"):
            weight = weight.T
        lost = _rounding(weight, 63 if reduce_range else 127)
        given = values[node.input[0]]
        mean = given.mean(axis=(0, *range(2, given.ndim)))
        groups = np.split(lost, attributes.get("group", 1))
        means = np.split(mean, len(groups))
        by = np.concatenate([part @ each for part, each in zip(groups, means, strict=True)])
        bias = numpy_helper.to_array(weights[node.input[2]]) + by
        name = node.input[2]
        weights[name].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), name))
    return bytes(model.SerializeToString())


def _rounding(weight: NDArray[Any], most: int) -> NDArray[Any]:
    """(outputs, inputs) what symmetric rounding takes from each window, in sum."""
    axes = tuple(range(1, weight.ndim))
    scale = np.abs(weight).max(axis=axes, keepdims=True) / most
    scale[scale == 0] = 1
    lost: NDArray[Any] = weight - np.round(weight / scale) * scale
    windows: NDArray[Any] = lost.reshape(*weight.shape[:2], -1).sum(axis=2)
    return windows


def study(name: str) -> dict[str, Any]:
    """Drops of the metric of one network, by candidate, ranges and biases."""
    trained = NETWORKS[name](FOLDER)
    task, profile = trained.task, load_profile("cpu")
    split = ScoredSplit(task, task.search())
    with DeviceSession(profile) as session:
        rules = rules_for(profile, session.isa)
        found = subject(task, trained.network, rules, isa=session.isa, name=name)
        builder = Builder(
            subject=found,
            session=session,
            recovery=Recovery(task, trained.network, seed=0),
            clock=Stopwatch(),
            simulated=False,
        )

        def metric(candidate: Candidate, weights: dict[str, Any] | None) -> float:
            if weights is None:
                built = builder.build(candidate, NO_RECOVERY)
            else:
                kept = KeptWeights(steps=trained.steps, source="what was trained", state=weights)
                built = builder.restored(candidate, kept)
            with session.holding(built.model):
                return split.score(partial(session.infer, built.model))

        dense = metric(found.dense_candidate, None)
        drops = {}
        for word, action in CANDIDATES.items():
            plain, int8 = (_uniform(found, action, precision) for precision in ("base", "int8"))
            weights = None
            if plain.is_cut:
                built = builder.build(plain, Schedule(steps=trained.steps))
                weights = built.module.state_dict()
            drops[word] = {"float": task.drop(dense, metric(plain, weights))}
            for label, chosen in RANGES.items():
                for corrected in (False, True):
                    with quantized_with(chosen, corrected=corrected):
                        drop = task.drop(dense, metric(int8, weights))
                    drops[word][f"{label}, biases moved" if corrected else label] = drop
                    print(name, word, label, corrected, round(drop, 5), file=sys.stderr)
    return {"isa": state.isa(), "samples": len(task.search()), "drops": drops}


def _uniform(found: Subject, action: Action, precision: str) -> Candidate:
    return found.uniform(replace(action, precision=precision))


def main(arguments: list[str]) -> None:
    started = time.monotonic()
    if not set(arguments) <= set(NETWORKS):
        raise SystemExit(f"{__doc__}\nnetworks: {', '.join(NETWORKS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    networks = read_result("int8_ranges").get("networks", {})
    for name in arguments or STUDIED:
        networks[name] = study(name)
        write_result("int8_ranges", {"networks": networks}, started=started)
    ways = ["float", *(f"{label}{more}" for label in RANGES for more in ("", ", biases moved"))]
    rows = [["ranges", *(f"{name}, {word}" for name in networks for word in CANDIDATES)]]
    for way in ways:
        drops = [networks[name]["drops"][word][way] for name in networks for word in CANDIDATES]
        rows.append([way, *(f"{drop:+.4f}" for drop in drops)])
    print_table(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
