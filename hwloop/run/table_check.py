"""``hwloop table ...``: the latency table by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop import stats
from hwloop.compress import space
from hwloop.compress.apply import compress, deployable
from hwloop.compress.export import export_onnx
from hwloop.compress.space import ACTIONS, SpaceRules
from hwloop.compress.subject import Subject, subject
from hwloop.errors import UsageError
from hwloop.files import read_file, write_atomically
from hwloop.measure import paired as measure
from hwloop.measure.profile import TargetProfile, resolve, rules_for
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store, check_can_be_store
from hwloop.measure.table import (
    LatencyTable,
    Predictor,
    export_rows,
    host_bound,
    import_rows,
    prediction_error,
    read_rows,
    row_doubts,
    stored_populations,
    stored_refused_kinds,
    stored_rows,
)
from hwloop.records import Candidate, LayerConfig, Network
from hwloop.run import prepare
from hwloop.runtimes.graph import OnnxModel
from hwloop.task import load_model
from hwloop.tasks import task_for
from hwloop.tasks.load import load_task

CALIBRATION_INPUTS = 8
"""Ranges do not change a latency, so a few random inputs are enough here."""

FEWEST_NETWORKS, MOST_NETWORKS = 6, 10_000
MOST_ROWS_SHOWN = 1_000_000
LARGEST_SEED = (1 << 32) - 1
LARGEST_IMPORT_BYTES = 1 << 30


def build(
    model: str | None,
    *,
    task: str | None = None,
    target: str,
    table: Path,
    progress: Progress,
    host: str | None = None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measure every row that the network can need on the target. Returns counts."""
    with _opened(model, task, data, resolve(target, host=host), table, progress) as opened:
        progress.stage("latency table")
        measured = _build_rows(opened, progress)
        return {
            "measured": measured,
            "rows": len(opened.table),
            "table": str(table),
            "row_doubts": row_doubts(opened.table.rows()),
        }


def check(
    model: str | None,
    *,
    task: str | None = None,
    target: str,
    table: Path,
    progress: Progress,
    host: str | None = None,
    networks: int = 30,
    seed: int = 0,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measure random candidates; a third fits the prediction, the rest tells its error.

    Returns:
        error (n, median_abs_pct, within_5pct, within_10pct), spearman, row_doubts, and one record
        per network with predicted_ms, measured_ms and fitted.
    """
    in_range("networks", networks, FEWEST_NETWORKS, MOST_NETWORKS)
    in_range("seed", seed, 0, LARGEST_SEED)
    profile = resolve(target, host=host)
    _must_exist(table)
    with _opened(model, task, data, profile, table, progress) as opened:
        progress.stage("latency table")
        _build_rows(opened, progress)
        doubts = row_doubts(opened.table.rows())
        progress.stage("random networks")
        found = _measured_networks(opened, networks, seed, progress)
    fitted = max(networks // 3, 2)
    predictor = Predictor(opened.table, opened.subject.network, opened.subject.rules)
    for choices, measured_ms in found[: fitted + 1]:
        predictor.observe(choices, measured_ms)
    rest = found[fitted + 1 :]
    predicted = [predictor(choices) for choices, _ in rest]
    measured = [measured_ms for _, measured_ms in rest]
    return {
        "network": opened.subject.network.name,
        "fitted_on": fitted + 1,
        "error": prediction_error(predicted, measured),
        "spearman": stats.spearman(predicted, measured),
        "row_doubts": doubts,
        "networks": [
            {"choices": list(choices), "predicted_ms": predictor(choices), "measured_ms": value}
            for choices, value in rest
        ],
    }


def show(table: Path) -> list[dict[str, Any]]:
    """One record per population: device, settings, rows, slowest rows, row_doubts, int8_refused."""
    _must_exist(table)
    found = []
    with Store(table, read_only=True) as store:
        for name, fingerprint in stored_populations(store).items():
            measured = stored_rows(store, name)
            measured.sort(key=lambda row: -row[1].latency_ms)
            found.append(
                {
                    "population": name,
                    "device": f"{fingerprint.device}, {fingerprint.runtime} "
                    f"{fingerprint.runtime_version}",
                    "settings": ", ".join(f"{key} {value}" for key, value in fingerprint.settings),
                    "rows": len(measured),
                    "slowest": [
                        {
                            "layer": _name(config),
                            "latency_us": row.latency_ms * 1000,
                            "reformats": row.reformats,
                            "host_bound": host_bound(row),
                        }
                        for config, row in measured
                    ],
                    "row_doubts": row_doubts(measured),
                    "int8_refused": stored_refused_kinds(store, name),
                }
            )
    return found


def export(table: Path, file: Path) -> int:
    """Write a table as JSON lines; returns the number of rows."""
    _must_exist(table)
    if os.path.exists(file) and not os.path.isfile(
        file
    ):  # a device would be replaced, not written to
        raise UsageError(f"{file} exists and is no file", "name a file to write")
    lines: list[str] = []
    with Store(table, read_only=True) as store:
        count = export_rows(store, lines.append)
    write_atomically(file, "".join(lines).encode())
    return count


def import_(table: Path, file: Path) -> int:
    """Add an exported file to a table; nothing is added, or created, when one line is wrong."""
    data = read_file(
        file,
        what="an exported table",
        limit_bytes=LARGEST_IMPORT_BYTES,
        hint="name a file that `hwloop table export` wrote",
    )
    rows = read_rows(data.splitlines(), file)
    if not rows:
        raise UsageError(f"{file} holds no rows", "name a file that `hwloop table export` wrote")
    check_can_be_store(table)
    with Store(table) as store:
        return import_rows(store, rows)


def in_range(option: str, value: int, low: int, high: int) -> None:
    """Raises UsageError for an option that makes no sense."""
    if not low <= value <= high:
        raise UsageError(f"--{option} {value} is not from {low} to {high}", f"--{option} {low}")


# ------------------------------------------------------------------------------- inside


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    subject: Subject
    session: DeviceSession
    table: LatencyTable
    profile: TargetProfile


@contextmanager
def _opened(
    model: str | None,
    task: str | None,
    data: Path | None,
    profile: TargetProfile,
    table: Path,
    progress: Progress,
) -> Iterator[_Opened]:
    check_can_be_store(table)
    plugin = load_task(task_for(model, task), data=data)
    module = load_model(plugin, model)
    with DeviceSession(profile) as session:
        found = subject(
            plugin,
            module,
            rules_for(profile, session.isa),
            isa=session.isa,
            name=model or plugin.name,
        )
        with Store(table) as store:
            rows = LatencyTable(store, session.fingerprint, profile.protocols.row)
            found, _ = prepare.buildable(found, session, rows, progress)
            yield _Opened(subject=found, session=session, table=rows, profile=profile)


def _build_rows(opened: _Opened, progress: Progress) -> int:
    found = opened.subject
    rows = space.reachable_configs(found.network, found.rules)
    return measure.build_rows(
        opened.session,
        opened.table,
        rows,
        recipe=found.rules.recipe,
        progress=progress.advance,
    )


def _measured_networks(
    opened: _Opened, count: int, seed: int, progress: Progress
) -> list[tuple[tuple[int, ...], float]]:
    """(choices, milliseconds) of the dense network and of ``count`` random candidates."""
    found = opened.subject
    protocol = opened.profile.protocols.loop
    dense = found.model(found.dense_candidate, found.graph)
    base = measure.baseline(opened.session, dense, protocol)
    masks = space.masks(found.network, found.rules)
    rng = np.random.default_rng(seed)
    measured = [((0,) * len(masks), base.latency_ms)]
    for number in range(count):
        progress.advance(number, count)
        choices = random_choices(masks, rng)
        model = unrecovered(found, choices)
        measurement = measure.against(
            opened.session,
            model,
            dense,
            protocol=protocol,
            reference_latency_ms=base.latency_ms,
        )
        opened.session.forget(model)
        measured.append((choices, measurement.latency_ms))
    return measured


def random_choices(
    masks: tuple[tuple[bool, ...], ...], rng: np.random.Generator
) -> tuple[int, ...]:
    """Random legal choices with a random share of int8 groups: mixtures of all kinds."""
    share = rng.random()
    choices = []
    for mask in masks:
        legal = [index for index, allowed in enumerate(mask) if allowed]
        wanted = "int8" if rng.random() < share else "base"
        options = [index for index in legal if ACTIONS[index].precision == wanted] or legal
        choices.append(int(rng.choice(options)))
    return tuple(choices)


def unrecovered(found: Subject, choices: tuple[int, ...]) -> OnnxModel:
    """A candidate for timing only: compressed, in its precisions, its weights left alone."""
    candidate = space.candidate(choices)
    rng = np.random.default_rng(0)
    shape = (CALIBRATION_INPUTS, *found.example.shape[1:])
    graph = unrecovered_graph(
        found.dense,
        found.example,
        found.network,
        candidate=candidate,
        calibration=rng.standard_normal(shape).astype(np.float32),
        rules=found.rules,
        isa=found.isa,
    )
    return found.model(candidate, graph)


def unrecovered_graph(
    dense: nn.Module,
    example: Tensor,
    network: Network,
    *,
    candidate: Candidate,
    calibration: NDArray[np.float32],
    rules: SpaceRules,
    isa: str = "",
) -> bytes:
    """Compressed, exported, quantized: a candidate's file without any training.

    Raises:
        CandidateError: the stage that refused it.
    """
    module = compress(dense, example, network, candidate=candidate, rules=rules)
    return deployable(
        module,
        example,
        export_onnx(module, example),
        network=network,
        candidate=candidate,
        calibration=calibration,
        rules=rules,
        isa=isa,
    )


def _must_exist(table: Path) -> None:
    if not os.path.exists(table):
        raise UsageError(f"no table at {table}", f"hwloop table build --table {table}")


def _name(config: LayerConfig) -> str:
    shape = "x".join(str(size) for size in config.in_shape[1:])
    kernel = f" {config.kernel[0]}x{config.kernel[1]}" if config.op == "conv" else ""
    stride = f" /{config.stride[0]}" if config.stride[0] > 1 else ""
    tail = "+" + "+".join(config.tail) if config.tail else ""
    return f"{config.precision} {config.op}{kernel}{stride} {shape} -> {config.out_channels}{tail}"
