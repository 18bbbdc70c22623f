"""Which of the networks that were seen ships: one rule for finalists, candidates and recipes.

Numbers only. A network *meets* the goal when it is measurably faster than the dense one, when the
one-sided 80 % bound of its drop on as many samples as the test split has, by the search split, is
within ``max_drop``, and when its latency is within the budget. Of those that meet it the fastest
ships; of those within 1 % of it, which no measurement tells apart, the most accurate. Where none
does, but the latency alone is missed, the same holds of what is within the drop; the dense network
ships only when nothing was seen that is measurably faster and within the drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwloop.findings import Measurement
from hwloop.records import Candidate, Goal

ALIKE = 0.01
"""Relative: latencies that are so close are taken for equal."""


ROUNDING = 1e-12
"""What the difference of two metrics may be off by."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A network that was recovered, measured and scored on the target.

    Attributes:
        steps: distillation steps of its recovery.
        cycle_steps: of each of its cycles; None where it was one.
        latency_ms: against the dense network, interleaved.
        faster: measurably so; see :attr:`hwloop.findings.Measurement.significant`.
        drop: on the search split, in the metric's unit, positive = worse.
        upper_drop: one-sided 80 % bound of the drop; None where even ``drop`` is over the limit.
    """

    candidate: Candidate
    steps: int
    latency_ms: float
    faster: bool
    drop: float
    upper_drop: float | None
    cycle_steps: int | None = None


def is_faster(measurement: Measurement) -> bool:
    """Measurably faster than the dense network."""
    return measurement.significant and measurement.ratio < 1


def is_within(drop: float, max_drop: float | None) -> bool:
    """Whether a drop is at most the limit; 0.92 less 0.91 is 0.01 here, whatever its last bit."""
    return max_drop is None or drop <= max_drop + ROUNDING * max(abs(max_drop), 1.0)


def within_drop(seen: Seen, goal: Goal) -> bool:
    """Whether the drop is within the goal, with 80 % confidence."""
    if goal.max_drop is None:
        return True
    return seen.upper_drop is not None and is_within(seen.upper_drop, goal.max_drop)


def meets(seen: Seen, goal: Goal, *, baseline_ms: float) -> bool:
    """Whether a network meets every part of the goal, by what is known before the test split."""
    budget_ms = goal.budget_ms(baseline_ms)
    in_time = budget_ms is None or seen.latency_ms <= budget_ms
    return seen.faster and in_time and within_drop(seen, goal)


def best(everything: Iterable[Seen], goal: Goal, *, baseline_ms: float) -> Seen | None:
    """The network that ships, or None for the dense one; see the module's text.

    Where ``max_drop`` was lifted, it is the most accurate one within the latency budget, and the
    fastest one where none is.
    """
    useful = [seen for seen in everything if seen.faster and within_drop(seen, goal)]
    met = [seen for seen in useful if meets(seen, goal, baseline_ms=baseline_ms)]
    if goal.max_drop is None and met:
        return min(met, key=lambda seen: (seen.drop, seen.latency_ms))
    pool = met or useful
    fastest_ms = min((seen.latency_ms for seen in pool), default=0.0)
    as_fast = [seen for seen in pool if seen.latency_ms <= fastest_ms * (1 + ALIKE)]
    return min(as_fast, key=lambda seen: (seen.drop, seen.latency_ms), default=None)


def is_better(seen: Seen, before: Seen | None, goal: Goal, *, baseline_ms: float) -> bool:
    """Whether a network is the better one to have while a run goes on.

    By the rule by which one ships; while none would, the more accurate of those that are faster.
    """
    pair = [seen] if before is None else [before, seen]
    chosen = best(pair, goal, baseline_ms=baseline_ms)
    if chosen is None:
        return seen.faster and (before is None or seen.drop < before.drop)
    return chosen is seen


def summary(everything: Sequence[Seen], goal: Goal, *, failures: Sequence[str] = ()) -> str:
    """One sentence on what was seen, for a run that ships the dense network.

    Args:
        failures: reasons of the candidates that could not be judged.
    """
    faster = [seen for seen in everything if seen.faster]
    failed = f"; {len(failures)} failed, the first: {failures[0]}" if failures else ""
    if not faster:
        return f"none of {len(everything)} networks that were seen is measurably faster{failed}"
    within = [seen for seen in faster if within_drop(seen, goal)]
    if within:
        limit = "" if goal.max_drop is None else f" within a drop of {goal.max_drop}"
        return (
            f"{len(within)} of {len(everything)} networks that were seen are measurably faster"
            f"{limit}, but not any more when they were built again{failed}"
        )
    closest = min(faster, key=lambda seen: seen.drop)
    bound = "" if closest.upper_drop is None else f" (80 % below {closest.upper_drop:+.4f})"
    return (
        f"{len(faster)} of {len(everything)} networks that were seen are measurably faster, none "
        f"of them within a drop of {goal.max_drop}; the most accurate loses "
        f"{closest.drop:+.4f}{bound} at {closest.latency_ms:.3f} ms{failed}"
    )
