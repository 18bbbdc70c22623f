"""``hwloop bench`` on several targets: which runtime to ship, of which file.

Engines of two workers cannot be sampled in turns of milliseconds, as two engines of one can. So the
workers are open at once and take turns of one round each, first to last and then last to first; a
round's ratio is the quotient of two quiet times that were taken within seconds of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hwloop import stats
from hwloop.device.harness import ENDS
from hwloop.findings import Measurement, Protocol
from hwloop.measure.bench import (
    Shapes,
    Subject,
    baseline,
    check_asked,
    cross_checked,
    finished,
    read,
    record,
    timed,
)
from hwloop.measure.hosts import Host
from hwloop.measure.paired import doubts, marked
from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.parsing import to_json

ATTEMPTS = 2
"""At a series that was disturbed."""


def compare_on(
    profiles: Sequence[TargetProfile],
    paths: Sequence[Path],
    *,
    progress: Progress,
    cross_check: bool = False,
    shapes: Shapes = None,
) -> list[dict[str, Any]]:
    """Time every model on every target against the first model on the first target.

    Per model there are as many rounds as the longest bench protocol of the targets has. In each
    round every target measures it once, beside the first model; the ratio of a round is the quiet
    time there over that of the first model on the first target. Median and interval are over
    rounds, as everywhere.

    Args:
        profiles: two or more; those on one machine are measured under one lock.
        shapes: as of :func:`hwloop.measure.bench.compare`.

    Returns:
        One record per model and target, all targets of the first model first: that of
        :func:`hwloop.measure.bench.compare` with target (its name) and runtime. The first alone has
        no speedup. Those of the first model have their target's fingerprint.

    Raises:
        UsageError: a path that is no ONNX file and no run, or one that a target cannot run.
        TargetError: a target is lost.
    """
    check_asked(paths, profiles, cross_check=cross_check)
    subjects = read(paths, shapes, progress=progress)
    progress.stage("bench")
    records = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(session) for session in side_by_side(profiles)]
        rounds = max(profile.protocols.bench.rounds for profile in profiles)
        for number, subject in enumerate(subjects):
            path, total = str(subject.file.path), len(subjects) * rounds
            tell = partial(_tell, progress, path, before=number * rounds, total=total)
            found = _settled(sessions, subject, subjects[0], rounds=rounds, tell=tell)
            for place, (session, measured) in enumerate(zip(sessions, found, strict=True)):
                is_first = number == place == 0
                made = (baseline if is_first else record)(subject.file, measured)
                named = _named(made, session, fingerprint=number == 0)
                asked = cross_check and session.profile.kind.ships_engine
                check = cross_checked(session, subject.model) if asked else {}
                records.append(finished(named, session.profile, check))
    return records


def _tell(progress: Progress, path: str, done: int, *, before: int, total: int) -> None:
    progress.advance(before + done, total, path)


def side_by_side(profiles: Sequence[TargetProfile]) -> list[DeviceSession]:
    """A session for each target; of those on one machine the first that needs its lock takes it."""
    held: set[Host | None] = set()
    found: list[DeviceSession] = []
    for profile in profiles:
        session = DeviceSession(profile)
        if session.locks and profile.host in held:
            session = DeviceSession(profile, held=True)
        elif session.locks:
            held.add(profile.host)
        found.append(session)
    return found


def _named(made: dict[str, Any], session: DeviceSession, *, fingerprint: bool) -> dict[str, Any]:
    profile = session.profile
    about = {"fingerprint": to_json(session.fingerprint)} if fingerprint else {}
    return {"target": profile.name, "runtime": profile.runtime, **made, **about}


def _settled(
    sessions: Sequence[DeviceSession],
    subject: Subject,
    first: Subject,
    *,
    rounds: int,
    tell: Callable[[int], None],
) -> list[Measurement]:
    """A series, taken again where it is doubtful, and marked where it still is."""
    for _ in range(ATTEMPTS):
        found = _series(sessions, subject, first, rounds=rounds, tell=tell)
        if not any(map(doubts, found)):
            break
    return [marked(measurement) for measurement in found]


def _series(
    sessions: Sequence[DeviceSession],
    subject: Subject,
    first: Subject,
    *,
    rounds: int,
    tell: Callable[[int], None],
) -> list[Measurement]:
    """One file on every target, in turns; each against the first file on the first target."""
    taken: list[list[Measurement]] = [[] for _ in sessions]
    for done in range(rounds):
        tell(done)
        turn = list(zip(sessions, taken, strict=True))
        for session, series in turn if done % 2 == 0 else reversed(turn):
            series.append(_round(session, subject, first, rounds=rounds))
    return [across(series, taken[0]) for series in taken]


def _round(session: DeviceSession, subject: Subject, first: Subject, *, rounds: int) -> Measurement:
    protocol = share(session.profile.protocols.bench, rounds)
    return timed(
        session,
        subject,
        first,
        lambda: session.measure(
            subject.model, first.model, protocol=protocol, reference_latency_ms=0.0
        ),
    )


def share(protocol: Protocol, rounds: int) -> Protocol:
    """One round of a protocol: a part of its time, and as much less precise."""
    return replace(
        protocol,
        rounds=1,
        warmup_s=protocol.warmup_s / rounds,
        min_samples=math.ceil(protocol.min_samples / rounds),
        max_samples=math.ceil(protocol.max_samples / rounds),
        target_halfwidth=protocol.target_halfwidth * math.sqrt(rounds),
        time_limit_s=protocol.time_limit_s / rounds,
    )


def across(series: Sequence[Measurement], base: Sequence[Measurement]) -> Measurement:
    """The models of one series of rounds over the references of another.

    Args:
        series, base: of two targets, or the same, round by round; one round in each measurement.

    Returns:
        As many samples of both in each round, spread over it: of fewer, the quiet quantile lies
        elsewhere. What disturbed and what speaks against it is that of both.
    """
    samples: list[float] = []
    reference: list[float] = []
    rounds: list[int] = []
    for mine, theirs in zip(series, base, strict=True):
        count = min(len(mine.samples_ms), len(theirs.reference_ms))
        samples += _spread(mine.samples_ms, count)
        reference += _spread(theirs.reference_ms, count)
        rounds.append(count)
    both = [*series, *base]
    return Measurement(
        samples_ms=tuple(samples),
        reference_ms=tuple(reference),
        reference_latency_ms=stats.median(stats.quiet_times(reference, rounds)),
        rounds=tuple(rounds),
        clock=series[0].clock,
        warmup_count=sum(found.warmup_count for found in series),
        stopped=max((found.stopped for found in series), key=ENDS.index),
        temperature_c=series[-1].temperature_c,
        launch_overhead_ms=series[-1].launch_overhead_ms,
        reformats=series[-1].reformats,
        interrupted_share=_mean([found.interrupted_share for found in both]),
        core_taken_share=_mean([found.core_taken_share for found in both]),
        other_cores_busy_share=_mean([found.other_cores_busy_share for found in both]),
        unstable=tuple(dict.fromkeys(text for found in both for text in found.unstable)),
    )


def _spread(values: Sequence[float], count: int) -> list[float]:
    return [values[number * len(values) // count] for number in range(count)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
