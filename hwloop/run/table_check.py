"""``hwloop table`` on a target: measure the rows of a network, and how well they predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import Choices
from hwloop.compress.subject import Subject, subject
from hwloop.measure import paired as measure
from hwloop.measure.predict import Predictor, prediction_error
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import resolve
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store, check_can_be_store
from hwloop.measure.table import LatencyTable, row_doubts
from hwloop.records import Candidate, Network
from hwloop.run import target_limits
from hwloop.run.config import LARGEST_SEED
from hwloop.run.table_files import in_range, must_exist
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing
from hwloop.task import load_model
from hwloop.tasks import task_for
from hwloop.tasks.load import load_task

CALIBRATION_INPUTS = 8
"""Ranges do not change a latency, so a few random inputs are enough here."""

FEWEST_NETWORKS, MOST_NETWORKS = 6, 10_000


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
            "row_doubts": _doubts(opened),
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
    must_exist(table)
    with _opened(model, task, data, profile, table, progress) as opened:
        progress.stage("latency table")
        _build_rows(opened, progress)
        doubts = _doubts(opened)
        progress.stage("random networks")
        found = _measured_networks(opened, networks, seed, progress)
        subject, cache_bytes = opened.subject, opened.session.cache_bytes
    fitted = max(networks // 3, 2) + 1
    rows = Predictor(opened.table, subject.network, subject.rules, cache_bytes=cache_bytes)
    predictor = rows.taught(found[:fitted])
    return {
        "network": opened.subject.network.name,
        "fitted_on": fitted,
        **_told(predictor, found[fitted:]),
        "row_doubts": doubts,
    }


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
            found, _ = target_limits.buildable(found, session, rows, progress)
            yield _Opened(subject=found, session=session, table=rows, profile=profile)


def _build_rows(opened: _Opened, progress: Progress) -> int:
    found = opened.subject
    return measure.build_rows(
        opened.session,
        opened.table,
        found.reachable(),
        runtime=found.runtime,
        progress=progress.advance,
    )


def _doubts(opened: _Opened) -> list[str]:
    return row_doubts(opened.table.rows(), interpolated=opened.subject.plan.interpolated)


def _told(predictor: Predictor, rest: Sequence[tuple[Choices, float]]) -> dict[str, Any]:
    """How well networks outside the fit were predicted, all together and each of them."""
    predicted = [predictor(choices) for choices, _ in rest]
    measured = [measured_ms for _, measured_ms in rest]
    return {
        "error": prediction_error(predicted, measured),
        "spearman": stats.spearman(predicted, measured),
        "networks": [
            {"choices": list(choices), "predicted_ms": ms, "measured_ms": measured_ms}
            for (choices, measured_ms), ms in zip(rest, predicted, strict=True)
        ],
    }


def _measured_networks(
    opened: _Opened, count: int, seed: int, progress: Progress
) -> list[tuple[Choices, float]]:
    """(choices, milliseconds) of the dense network and of ``count`` random candidates."""
    found = opened.subject
    protocol = opened.profile.protocols.loop
    dense = found.model(found.dense_candidate, found.graph)
    base = measure.baseline(opened.session, dense, protocol)
    rng = np.random.default_rng(seed)
    measured = [(found.choices(found.dense_candidate), base.latency_ms)]
    for number in range(count):
        progress.advance(number, count)
        candidate = random_candidate(found.network, found.rules, rng)
        model = unrecovered(found, candidate)
        with opened.session.holding(model):
            measurement = measure.against(
                opened.session,
                model,
                dense,
                protocol=protocol,
                reference_latency_ms=base.latency_ms,
            )
        measured.append((found.choices(candidate), measurement.latency_ms))
    return measured


def random_candidate(network: Network, rules: SpaceRules, rng: np.random.Generator) -> Candidate:
    """Random legal actions with a random share of int8 groups: mixtures of all kinds."""
    return space.random_candidate(network, rules, rng, int8_share=rng.random())


def unrecovered(found: Subject, candidate: Candidate) -> OnnxModel:
    """A candidate for timing only: compressed, in its precisions, its weights left alone."""
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
        runtime=writing(rules.recipe, isa),
    )
