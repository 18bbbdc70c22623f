"""How well the latency table predicts whole networks that had no part in the fit.

    python benchmarks/table_error.py demo|resnet18|resnet18-64|mobilenet_v2-64|densenet121-64|
        vit_tiny-96 [NETWORKS] [--openvino] [--no-ablation] [--disturbed] [--all-methods]

Random candidates (width and int8 mixed) are measured end to end; a few, spread evenly over the time
that takes, fit the coefficients, the rest are predicted. Beside the fused-block rows stands the
ablation: rows of bare operators (convolution, add and activation each timed alone), summed and
fitted the same way. With ``--openvino`` OpenVINO is measured and not ONNX Runtime; with
``--disturbed`` everything is measured beside a process that uses 30 % of the same core in slices of
5 ms.

The networks at 64 and 96 pixels are predicted as in a run, from the rows of their whole table, some
of which are interpolated; there is no ablation of these. With ``--all-methods`` their candidates
have smaller images and layers of low rank as well, beside widths, INT8 and blocks left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torchvision
from common import CACHE, cpu_profile, print_table, write_result
from disturb import disturbed

from hwloop import stats
from hwloop.compress.rows import network_configs
from hwloop.compress.subject import Subject, subject
from hwloop.findings import Protocol
from hwloop.measure import paired as measure
from hwloop.measure.predict import Predictor, add_up, fit, prediction_error
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import ConsoleProgress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, LatencyTable
from hwloop.parsing import to_json
from hwloop.records import Candidate, LayerConfig
from hwloop.run.table_check import random_candidate, unrecovered
from hwloop.runtimes.graph import OnnxModel
from hwloop.task import ClassificationTask, Task, load_model
from hwloop.tasks.load import load_task

FITTED = 15

NAMES = (
    *("demo", "resnet18"),
    *("resnet18-64", "mobilenet_v2-64", "densenet121-64", "vit_tiny-96"),
)


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """The network, with no weights that are all zeros: a head that begins so answers nothing."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


class RandomNetwork(ClassificationTask):
    """A network of torchvision with random weights: good for latency, for nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._kind, _, pixels = name.partition("-")
        self._pixels = int(pixels or 224)

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        if self._kind == "vit_tiny":
            network = torchvision.models.VisionTransformer(
                image_size=self._pixels,
                patch_size=16,
                num_layers=12,
                num_heads=3,
                hidden_dim=192,
                mlp_dim=768,
            )
            return awake(network)
        several = self._kind in ("googlenet", "inception_v3")  # outputs, in training
        settings = {"init_weights": False, "aux_logits": False} if several else {}
        made: torch.nn.Module = torchvision.models.get_model(self._kind, weights=None, **settings)
        return made

    def example(self) -> torch.Tensor:
        return torch.zeros(1, 3, self._pixels, self._pixels)


def main(
    name: str, count: int, *, target: str, ablation: bool, beside: bool, all_methods: bool
) -> None:
    label = f"{name}_disturbed" if beside else name
    label = label if target == "cpu" else f"{label}_{target}"
    if all_methods:
        label, target = f"{label}_all_methods", every_method()
    with disturbed(duty=0.3 * beside, slice_ms=5.0):
        if "-" in name:
            planned_study(name, label, count, target=target)
        else:
            study(name, label, count, target=target, ablation=ablation)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What is measured end to end: the dense network, those to fit on, and those to predict.

    Attributes:
        found: the network and its groups.
        candidates: the dense one first.
        rows: the fused blocks of each.
        bare: each fused block as the operators that are timed in its place.
    """

    found: Subject
    candidates: list[Candidate]
    rows: list[tuple[LayerConfig, ...]]
    bare: dict[LayerConfig, tuple[LayerConfig, ...]]


@contextmanager
def opened(label: str, profile: TargetProfile) -> Iterator[tuple[DeviceSession, LatencyTable]]:
    """The target, and the rows that it was measured for before."""
    CACHE.mkdir(exist_ok=True)
    with DeviceSession(profile) as session, Store(CACHE / f"table_{label}.sqlite") as store:
        yield session, LatencyTable(store, session.fingerprint, profile.protocols.row)


def study(name: str, label: str, count: int, *, target: str, ablation: bool) -> None:
    started, progress, profile = time.monotonic(), ConsoleProgress(), load_profile(target)
    with opened(label, profile) as (session, table):
        task: Task = load_task("demo") if name == "demo" else RandomNetwork(name)
        networks = drawn(
            task, name, count + FITTED, profile=profile, isa=session.isa, ablation=ablation
        )
        bare = networks.bare
        wanted = [*bare, *(part for parts in bare.values() for part in parts)]
        progress.stage("rows")
        row_start = time.monotonic()
        measured_rows = measure.build_rows(
            session, table, wanted, runtime=networks.found.runtime, progress=progress.advance
        )
        row_s = time.monotonic() - row_start
        latencies_ms = measured(session, networks, profile.protocols.loop, progress)
        empty_ms = table.row_ms(EMPTY)
        kinds: dict[str, dict[LayerConfig, tuple[LayerConfig, ...]]] = {
            "fused blocks": {config: (config,) for config in bare},
            **({"bare operators": bare} if ablation else {}),
        }
        results = {
            kind: evaluate(
                table,
                networks.rows,
                parts,
                latencies_ms,
                empty_ms=empty_ms,
                cache_bytes=session.cache_bytes,
            )
            for kind, parts in kinds.items()
        }
    print_table(lines(results))
    value = {
        "network": name,
        "input": list(networks.found.network.input_shape),
        "fitted_on": FITTED + 1,
        "rows_measured": measured_rows,
        "row_seconds": row_s,
        "latency_ms_range": [min(latencies_ms), max(latencies_ms)],
        "dense_ms": latencies_ms[0],
        "results": results,
    }
    write_result(f"table_error_{label}", value, started=started)


def every_method() -> str:
    """A profile of this CPU with all methods that can pay on one."""
    CACHE.mkdir(exist_ok=True)
    kinds = ["keep", "resize", "drop", "prune", "lowrank"]
    return cpu_profile(
        CACHE / "all-methods.toml", "all methods", precisions=["base", "int8"], kinds=kinds
    )


def planned_study(name: str, label: str, count: int, *, target: str) -> None:
    """Predicted as a run predicts: from the rows that its table has."""
    started = time.monotonic()
    value = planned(RandomNetwork(name), name, label, count, target=target)
    print_table(lines(value["results"]))
    write_result(f"table_error_{label}", value, started=started)


def planned(
    task: Task,
    name: str,
    label: str,
    count: int,
    *,
    target: str = "cpu",
    fitted_on: int = FITTED,
    every_row: bool = True,
    twice: bool = False,
) -> dict[str, Any]:
    """A table's error on so many networks.

    Args:
        every_row: else only those are measured that these networks need.
        twice: measure the networks a second time, which tells how far an error is the machine's.
    """
    progress, profile = ConsoleProgress(), load_profile(target)
    with opened(label, profile) as (session, table):
        networks = drawn(
            task, name, count + fitted_on, profile=profile, isa=session.isa, ablation=False
        )
        found = networks.found
        needed = (part for row in networks.bare for part, _ in found.plan.parts(row))
        progress.stage("rows")
        row_start = time.monotonic()
        measure.build_rows(
            session,
            table,
            found.reachable() if every_row else list(dict.fromkeys(needed)),
            runtime=found.runtime,
            progress=progress.advance,
        )
        row_s = time.monotonic() - row_start
        loop = profile.protocols.loop
        build: Callable[[Candidate], OnnxModel] = partial(unrecovered, found)
        if twice:
            build = cache(build)
        latencies_ms = measured(session, networks, loop, progress, build=build)
        fitted, rest = fitted_and_rest(len(latencies_ms), fitted_on)
        if twice:
            again = replace(networks, candidates=[networks.candidates[i] for i in (0, *rest)])
            again_ms = measured(session, again, loop, progress, build=build)
        predictor = Predictor(table, found.network, found.rules, cache_bytes=session.cache_bytes)
    choices = [found.choices(item) for item in networks.candidates]
    predictor = predictor.taught((choices[index], latencies_ms[index]) for index in fitted)
    predicted = [predictor(choices[index]) for index in rest]
    observed = [latencies_ms[index] for index in rest]
    whole = [all(map(found.plan.is_measured, networks.rows[index])) for index in rest]
    results = {"all": _compared(predicted, observed)}
    if twice:  # each beside the dense network, as every speedup is
        first = [latencies_ms[index] / latencies_ms[0] for index in rest]
        second = [latency_ms / again_ms[0] for latency_ms in again_ms[1:]]
        results["measured again"] = _compared(second, first)
    for label_of, wanted in (("measured rows alone", True), ("some interpolated", False)):
        chosen_ones = [index for index, each in enumerate(whole) if each is wanted]
        if len(chosen_ones) > 2:
            results[label_of] = _compared(
                [predicted[i] for i in chosen_ones], [observed[i] for i in chosen_ones]
            )
    return {
        "network": name,
        "input": list(found.network.input_shape),
        "fitted_on": fitted_on + 1,
        "rows": len(found.plan.measured),
        "rows_interpolated": found.plan.interpolated,
        "row_seconds": row_s,
        "latency_ms_range": [min(latencies_ms), max(latencies_ms)],
        "dense_ms": latencies_ms[0],
        "fitted_ms": [latencies_ms[index] for index in fitted],
        "coefficients": to_json(predictor.fit),
        "results": results,
    }


def _compared(predicted: list[float], observed: list[float]) -> dict[str, Any]:
    return {
        **prediction_error(predicted, observed),
        "spearman": stats.spearman(predicted, observed),
        "predicted_ms": predicted,
        "measured_ms": observed,
    }


def drawn(
    task: Task, name: str, count: int, *, profile: TargetProfile, isa: str, ablation: bool
) -> Networks:
    """The dense network and so many seeded random candidates of it."""
    found = subject(task, load_model(task, None), rules_for(profile, isa), isa=isa, name=name)
    rng = np.random.default_rng(11)
    candidates = [found.dense_candidate]
    candidates += [random_candidate(found.network, found.rules, rng) for _ in range(count)]
    rows = [network_configs(found.network, item, found.rules) for item in candidates]
    bare = {
        config: bare_operators(config) if ablation else (config,)
        for group in rows
        for config in group
    }
    return Networks(found=found, candidates=candidates, rows=rows, bare=bare)


def fitted_and_rest(count: int, fitted_on: int = FITTED) -> tuple[list[int], list[int]]:
    """Which networks are fitted on, the dense one first, and which are predicted."""
    fitted = [0, *(1 + number * (count - 1) // fitted_on for number in range(fitted_on))]
    return fitted, [index for index in range(count) if index not in fitted]


def measured(
    session: DeviceSession,
    networks: Networks,
    protocol: Protocol,
    progress: ConsoleProgress,
    *,
    build: Callable[[Candidate], OnnxModel] | None = None,
) -> list[float]:
    """Milliseconds of every network, each beside the dense one, which is the first.

    Args:
        build: gives a candidate as a graph; it is built without recovery unless given.
    """
    found = networks.found
    dense = found.model(found.dense_candidate, found.graph)
    base = measure.baseline(session, dense, protocol)
    progress.stage("networks")
    latencies_ms = [base.latency_ms]
    build = build or partial(unrecovered, found)
    for number, item in enumerate(networks.candidates[1:]):
        progress.advance(number, len(networks.candidates) - 1)
        model = build(item)
        measurement = measure.against(
            session, model, dense, protocol=protocol, reference_latency_ms=base.latency_ms
        )
        session.forget(model)
        latencies_ms.append(measurement.latency_ms)
    return latencies_ms


def lines(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A line for each kind of rows."""
    header = ["rows", "networks", "median", "within 5 %", "within 10 %", "Spearman"]
    body = [
        [
            kind,
            str(result["n"]),
            f"{result['median_abs_pct']:.2f} %",
            f"{result['within_5pct']:.1%}",
            f"{result['within_10pct']:.1%}",
            f"{result['spearman']:.4f}",
        ]
        for kind, result in results.items()
    ]
    return [header, *body]


def bare_operators(config: LayerConfig) -> tuple[LayerConfig, ...]:
    """The same block as separate operators, each to be timed on its own."""
    if config.op != "conv" or not set(config.tail) - {"bias"}:
        return (config,)
    bias = tuple(step for step in config.tail if step == "bias")
    parts = [replace(config, tail=bias)]
    shape = output_shape(config)
    rectifiers = ("relu", "clip:0:6") if config.precision == "int8" else ()
    for step in config.tail:
        if step not in ("bias", *rectifiers):  # int8 rectifiers cost nothing: see row_onnx
            parts.append(
                LayerConfig(
                    op="elementwise",
                    in_shape=shape,
                    out_channels=shape[1],
                    precision_in=config.precision,
                    precision=config.precision,
                    precision_out=config.precision,
                    tail=(step,),
                )
            )
    return tuple(parts)


def output_shape(config: LayerConfig) -> tuple[int, ...]:
    return (config.in_shape[0], config.out_channels, *config.out_sides)


def evaluate(
    table: LatencyTable,
    rows: list[tuple[LayerConfig, ...]],
    parts: dict[LayerConfig, tuple[LayerConfig, ...]],
    latencies_ms: list[float],
    *,
    empty_ms: float,
    cache_bytes: int | None,
) -> dict[str, Any]:
    """Fit on the dense network and some candidates, predict the others."""
    sums = []
    for configs in rows:
        measured_rows = [part for config in configs for part in parts[config]]
        costs = [(part, table.row_ms(part)) for part in measured_rows]
        sums.append(add_up(costs, empty_ms, cache_bytes=cache_bytes))
    fitted, rest = fitted_and_rest(len(sums))
    fitted_ms = [latencies_ms[index] for index in fitted]
    model = fit([sums[index] for index in fitted], fitted_ms, empty_ms=empty_ms)
    predicted = [model(sums[index]) for index in rest]
    observed = [latencies_ms[index] for index in rest]
    return {
        **prediction_error(predicted, observed),
        "spearman": stats.spearman(predicted, observed),
        "raw_sum_of_dense_over_measured": sum(sums[0][:3]) / latencies_ms[0],
        "coefficients": to_json(model),
        "fitted_ms": fitted_ms,
        "predicted_ms": predicted,
        "measured_ms": observed,
    }


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(__doc__)
    main(
        sys.argv[1],
        next((int(word) for word in sys.argv[2:] if word.isdigit()), 100),
        target="openvino" if "--openvino" in sys.argv else "cpu",
        ablation="--no-ablation" not in sys.argv,
        beside="--disturbed" in sys.argv,
        all_methods="--all-methods" in sys.argv,
    )
