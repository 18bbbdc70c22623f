"""The host's side of measuring: what to time against what, and whether to believe it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace

from hwloop import stats
from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Measurement, Protocol
from hwloop.measure.answers import LostTwice
from hwloop.measure.second_tries import SecondTries
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.rowkinds import QUANTIZED, kind_of
from hwloop.runtimes.runtime import Runtime

MAX_ROUNDS_SD = 0.02
"""Relative, of the ratio from round to round: eight that differ so much leave it 1 % uncertain."""

MAX_INTERRUPTED = 0.9
"""Of the samples. Beyond it no run shows the quiet machine: those that are left out of the thread's
time still leave their own data in its caches (benchmarks/interference.py)."""

MAX_TAKEN = 0.1
"""Of the cores' time where the clock is the wall's, which does not stand still while others run."""

MAX_BUSY_ELSEWHERE = 0.25
"""Above it the machine's memory may never be quiet: networks that live from it are then tens of per
cent slower in every sample, and no statistic of the samples can tell."""

ALONE = "end what else runs there, then measure again"
MAX_REFUSED_IN_A_ROW = 8
VITAL = (REFERENCE, EMPTY)
"""Rows that all others are scaled by, or reduced by."""


def baseline(session: DeviceSession, model: OnnxModel, protocol: Protocol) -> Measurement:
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
    model: OnnxModel,
    reference: OnnxModel,
    *,
    protocol: Protocol,
    reference_latency_ms: float,
    second_tries: SecondTries | None = None,
) -> Measurement:
    """A model interleaved with a reference; repeated once, then marked, when unstable.

    Args:
        second_tries: where given, repeated only while that helps.
    """
    return _stable(
        lambda: session.measure(
            model, reference, protocol=protocol, reference_latency_ms=reference_latency_ms
        ),
        second_tries,
    )


def build_rows(
    session: DeviceSession,
    table: LatencyTable,
    configs: Iterable[LayerConfig],
    *,
    runtime: Runtime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Measure and store the rows that the table lacks; resumable row by row. Returns how many.

    A row that something else disturbed is taken again at the end while that helps, and marked if it
    is no better.

    A block that the target refuses, while it runs others, is stored as refused, with the reason.

    Args:
        runtime: whose graphs of rows they are.

    Raises:
        TargetError: it refuses the reference, or one row after the other, or loses its workers.
    """
    missing = table.missing([REFERENCE, EMPTY, *configs])
    refused: dict[LayerConfig, CandidateError] = {}
    disturbed: dict[LayerConfig, Measurement] = {}
    for done, config in enumerate(missing):
        progress(done, len(missing))
        reason = _refused_kind(table, config)
        if reason is not None:
            table.refuse(config, reason)
            continue
        try:
            measurement = _row(session, table, config, runtime)
        except CandidateError as error:
            refused[config] = error
            if _is_the_targets(config, error, refused):
                raise unusable(session, f"the row {config}", error) from error
            continue
        _settle(table, refused)
        if config in VITAL and doubts(measurement):  # the others need it now
            measurement = _row(session, table, config, runtime)
        elif table.first_try(config) is None and doubts(measurement):
            table.add_disturbed(config, measurement)
            disturbed[config] = measurement
            continue
        table.add(config, marked(measurement))
    _settle(table, refused)
    second_tries = SecondTries()
    for config, measurement in disturbed.items():  # by now what disturbed may have ended
        if second_tries.pay():
            measurement = _second_try(session, table, config, runtime, first=measurement)
            second_tries.note(calmer=not doubts(measurement))
        table.add(config, marked(measurement))
    progress(len(missing), len(missing))
    return len(missing)


def _row(
    session: DeviceSession, table: LatencyTable, config: LayerConfig, runtime: Runtime
) -> Measurement:
    reference = OnnxModel(runtime.row_graph(REFERENCE), (REFERENCE,), row=True)
    model = OnnxModel(runtime.row_graph(config), (config,), row=True)
    accepted_ms = 0.0 if config == REFERENCE else table.row_ms(REFERENCE)
    is_reference = model.digest == reference.digest  # which the next row needs again
    with nullcontext() if is_reference else session.holding(model):
        return session.measure(
            model, reference, protocol=table.protocol, reference_latency_ms=accepted_ms
        )


def _second_try(
    session: DeviceSession,
    table: LatencyTable,
    config: LayerConfig,
    runtime: Runtime,
    *,
    first: Measurement,
) -> Measurement:
    """The row again; what it was before where the target now refuses it: it ran, after all."""
    try:
        return _row(session, table, config, runtime)
    except LostTwice as error:
        raise unusable(session, f"the row {config}", error) from error
    except CandidateError:
        return first


def quantized_kinds(
    session: DeviceSession,
    table: LatencyTable,
    configs: Iterable[LayerConfig],
    *,
    runtime: Runtime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Build one row of each kind of quantized row that was not tried yet; nothing is timed.

    Args:
        configs: every row that may be needed; the first of each kind stands for it.

    Returns:
        The refused kinds among them, each with the target's reason, also from earlier runs.

    Raises:
        TargetError: it builds no row at all, or loses its workers over one.
    """
    wanted: dict[str, LayerConfig] = {}
    for config in configs:
        if config.precision in QUANTIZED:
            wanted.setdefault(kind_of(config), config)
    untried = [config for kind, config in wanted.items() if not table.tried(kind)]
    if untried:
        _built(session, REFERENCE, runtime)
    refused: dict[LayerConfig, str] = {}
    for done, config in enumerate(untried):
        progress(done, len(untried))
        try:
            _build(session, config, runtime)
        except LostTwice as error:
            raise unusable(session, f"the row {config}", error) from error
        except CandidateError as error:
            refused[config] = str(error)
        else:
            table.add_kind(config, None)
    if refused:
        _built(session, EMPTY, runtime)  # it still builds, so the refusals are about the kinds
    for config, reason in refused.items():
        table.add_kind(config, reason)
    found = {kind: table.kind_refusal(kind) for kind in wanted}
    return {kind: reason for kind, reason in found.items() if reason is not None}


def _built(session: DeviceSession, config: LayerConfig, runtime: Runtime) -> None:
    try:
        _build(session, config, runtime)
    except CandidateError as error:
        raise unusable(session, f"the row {config}", error) from error


def _build(session: DeviceSession, config: LayerConfig, runtime: Runtime) -> None:
    model = OnnxModel(runtime.row_graph(config), (config,), row=True)
    with session.holding(model):
        session.build(model)


def _is_the_targets(
    config: LayerConfig, error: CandidateError, refused: dict[LayerConfig, CandidateError]
) -> bool:
    """Whether a failed row speaks against the target rather than against the block."""
    return config in VITAL or isinstance(error, LostTwice) or len(refused) >= MAX_REFUSED_IN_A_ROW


def _settle(table: LatencyTable, refused: dict[LayerConfig, CandidateError]) -> None:
    """Store refusals: other rows ran before and after them, so it was not the target."""
    for config, error in refused.items():
        table.refuse(config, str(error))
    refused.clear()


def _refused_kind(table: LatencyTable, config: LayerConfig) -> str | None:
    """Why no row of its kind is built, where that is known: it need not be tried."""
    return table.kind_refusal(kind_of(config)) if config.precision in QUANTIZED else None


def unusable(session: DeviceSession, what: str, error: CandidateError) -> TargetError:
    """The error of a target that fails at what every run needs."""
    name = session.profile.name
    return TargetError(f"target {name!r} cannot run {what}: {error}", f"hwloop target check {name}")


def doubts(measurement: Measurement) -> tuple[str, ...]:
    """Why a measurement should not be trusted: empty when it should."""
    found = []
    spread = stats.rounds_sd(measurement.ratios)
    if spread > MAX_ROUNDS_SD:
        found.append(f"its rounds differ by {spread:.1%}: {ALONE}")
    interrupted, taken = measurement.interrupted_share, measurement.core_taken_share
    if interrupted is not None and interrupted > MAX_INTERRUPTED:
        found.append(f"others interrupted {interrupted:.0%} of its samples: {ALONE}")
    if measurement.clock == "wall" and taken is not None and taken > MAX_TAKEN:
        found.append(f"others had {taken:.0%} of its core's time: {ALONE}")
    busy = measurement.other_cores_busy_share
    if busy is not None and busy > MAX_BUSY_ELSEWHERE:
        found.append(f"others kept the other cores {busy:.0%} busy and share its memory: {ALONE}")
    return tuple(found)


def _stable(
    measure: Callable[[], Measurement], second_tries: SecondTries | None = None
) -> Measurement:
    second_tries = second_tries or SecondTries()  # a new one always pays
    measurement = measure()
    if doubts(measurement) and second_tries.pay():
        measurement = measure()
        second_tries.note(calmer=not doubts(measurement))
    return marked(measurement)


def marked(measurement: Measurement) -> Measurement:
    """The measurement with its doubts written on it."""
    return replace(measurement, unstable=(*measurement.unstable, *doubts(measurement)))
