"""The host's side of measuring: what to time against what, and whether to believe it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from hwloop import stats
from hwloop.answers import LostTwice
from hwloop.errors import CandidateError, TargetError
from hwloop.records import LayerConfig, Measurement, Protocol
from hwloop.rowkinds import kind_of
from hwloop.rows import row_onnx
from hwloop.table import EMPTY, REFERENCE, LatencyTable
from hwloop.targets import DeviceSession, Model

MAX_HALVES_DIFFER = 0.05
MAX_CV = 0.15
ATTEMPTS = 2
MAX_REFUSED_IN_A_ROW = 8


def baseline(session: DeviceSession, model: Model, protocol: Protocol) -> Measurement:
    """The model against itself: its latency, and how far apart two equal things look.

    Raises:
        TargetError: the target cannot run it; without a baseline nothing can be claimed.
    """
    try:
        return _stable(
            lambda: session.measure(model, model, protocol=protocol, reference_latency_ms=0.0)
        )
    except CandidateError as error:
        raise unusable(session, "the baseline", error) from error


def against(
    session: DeviceSession,
    model: Model,
    reference: Model,
    *,
    protocol: Protocol,
    reference_latency_ms: float,
) -> Measurement:
    """A model interleaved with a reference; repeated once, then marked, when unstable."""
    return _stable(
        lambda: session.measure(
            model, reference, protocol=protocol, reference_latency_ms=reference_latency_ms
        )
    )


def build_rows(
    session: DeviceSession,
    table: LatencyTable,
    configs: Iterable[LayerConfig],
    *,
    recipe: str = "ort-x86",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Measure and store the rows that the table lacks; resumable row by row. Returns how many.

    A block that the target refuses, while it runs others, is stored as refused, with the reason.

    Args:
        recipe: the target's quantization recipe, which decides what the graph of a row is.

    Raises:
        TargetError: it refuses the reference, or one row after the other, or loses its workers.
    """
    missing = table.missing([REFERENCE, EMPTY, *configs])
    reference = Model(row_onnx(REFERENCE, recipe), (REFERENCE,), row=True)
    refused: dict[LayerConfig, CandidateError] = {}
    for done, config in enumerate(missing):
        progress(done, len(missing))
        reason = _refused_kind(table, config)
        if reason is not None:
            table.refuse(config, reason)
            continue
        model = Model(row_onnx(config, recipe), (config,), row=True)
        accepted_ms = 0.0 if config == REFERENCE else table.row_ms(REFERENCE)
        try:
            measurement = session.measure(
                model, reference, protocol=table.protocol, reference_latency_ms=accepted_ms
            )
        except CandidateError as error:
            refused[config] = error
            if _is_the_targets(config, error, refused):
                raise unusable(session, f"the row {config}", error) from error
        else:
            table.add(config, measurement)
            _settle(table, refused)
        if model.digest != reference.digest:
            session.forget(model)
    _settle(table, refused)
    progress(len(missing), len(missing))
    return len(missing)


def int8_kinds(
    session: DeviceSession,
    table: LatencyTable,
    configs: Iterable[LayerConfig],
    *,
    recipe: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Build one row of each kind of int8 row that was not tried yet; nothing is timed.

    Args:
        configs: every row that may be needed; the first int8 row of each kind stands for it.

    Returns:
        The refused kinds among them, each with the target's reason, also from earlier runs.

    Raises:
        TargetError: it builds no row at all, or loses its workers over one.
    """
    wanted: dict[str, LayerConfig] = {}
    for config in configs:
        if config.precision == "int8":
            wanted.setdefault(kind_of(config), config)
    untried = [config for kind, config in wanted.items() if not table.tried(kind)]
    if untried:
        _built(session, REFERENCE, recipe)
    refused: dict[LayerConfig, str] = {}
    for done, config in enumerate(untried):
        progress(done, len(untried))
        try:
            _build(session, config, recipe)
        except LostTwice as error:
            raise unusable(session, f"the row {config}", error) from error
        except CandidateError as error:
            refused[config] = str(error)
        else:
            table.add_kind(config, None)
    if refused:
        _built(session, EMPTY, recipe)  # it still builds, so the refusals are about the kinds
    for config, reason in refused.items():
        table.add_kind(config, reason)
    found = {kind: table.kind_refusal(kind) for kind in wanted}
    return {kind: reason for kind, reason in found.items() if reason is not None}


def _built(session: DeviceSession, config: LayerConfig, recipe: str) -> None:
    try:
        _build(session, config, recipe)
    except CandidateError as error:
        raise unusable(session, f"the row {config}", error) from error


def _build(session: DeviceSession, config: LayerConfig, recipe: str) -> None:
    model = Model(row_onnx(config, recipe), (config,), row=True)
    try:
        session.build(model)
    finally:
        session.forget(model)


def _is_the_targets(
    config: LayerConfig, error: CandidateError, refused: dict[LayerConfig, CandidateError]
) -> bool:
    """Whether a failed row speaks against the target rather than against the block."""
    vital = config in (REFERENCE, EMPTY)
    return vital or isinstance(error, LostTwice) or len(refused) >= MAX_REFUSED_IN_A_ROW


def _settle(table: LatencyTable, refused: dict[LayerConfig, CandidateError]) -> None:
    """Store refusals: other rows ran before and after them, so it was not the target."""
    for config, error in refused.items():
        table.refuse(config, str(error))
    refused.clear()


def _refused_kind(table: LatencyTable, config: LayerConfig) -> str | None:
    """Why no row of its kind is built, where that is known: it need not be tried."""
    return table.kind_refusal(kind_of(config)) if config.precision == "int8" else None


def unusable(session: DeviceSession, what: str, error: CandidateError) -> TargetError:
    """The error of a target that fails at what every run needs."""
    name = session.profile.name
    return TargetError(f"target {name!r} cannot run {what}: {error}", f"hwloop target check {name}")


def doubts(measurement: Measurement) -> tuple[str, ...]:
    """Why a measurement should not be trusted: empty when it should."""
    found = []
    ratios = measurement.ratios
    if len(ratios) >= 10 and stats.halves_differ(ratios) > MAX_HALVES_DIFFER:
        found.append(f"the halves differ by {stats.halves_differ(ratios):.0%}: the machine drifts")
    if stats.cv(ratios) > MAX_CV:
        found.append(f"samples scatter by {stats.cv(ratios):.0%}: something else uses the cores")
    return tuple(found)


def _stable(measure: Callable[[], Measurement]) -> Measurement:
    for _ in range(ATTEMPTS):
        measurement = measure()
        reasons = doubts(measurement)
        if not reasons:
            break
    return replace(measurement, unstable=(*measurement.unstable, *reasons))
