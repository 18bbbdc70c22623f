"""Whether a run met its goal: what its exit code says."""

from __future__ import annotations

from dataclasses import dataclass

from hwloop.findings import Measurement
from hwloop.records import Goal
from hwloop.run.choice import is_faster, is_within


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The limits that were asked for, and why they were not met: empty when they were."""

    limits: dict[str, float]
    why_not: tuple[str, ...]

    @property
    def met(self) -> bool:
        return not self.why_not


def verdict_on(
    goal: Goal, measurement: Measurement, *, drop: float, why_dense: str | None
) -> Verdict:
    """Hold the final figures against the goal.

    Args:
        measurement: the network that ships against the dense one, by the final protocol.
        drop: on the test split, in the metric's unit, positive = worse.
        why_dense: what was seen, in a sentence, where the dense network ships.
    """
    latency_ms, speedup = measurement.latency_ms, measurement.speedup
    limits = {
        "max_drop": (goal.max_drop, drop, is_within(drop, goal.max_drop)),
        "max_latency_ms": (
            goal.max_latency_ms,
            latency_ms,
            goal.max_latency_ms is None or latency_ms <= goal.max_latency_ms,
        ),
        "min_speedup": (
            goal.min_speedup,
            speedup,
            goal.min_speedup is None or speedup >= goal.min_speedup,
        ),
    }
    reasons = [
        f"{name} is {found:.4g}, asked for {limit}"
        for name, (limit, found, kept) in limits.items()
        if not kept
    ]
    if why_dense is not None:
        reasons.append(why_dense)
    elif not is_faster(measurement):
        reasons.append("the final measurement finds no difference in latency")
    asked = {name: limit for name, (limit, _, _) in limits.items() if limit is not None}
    return Verdict(limits=asked, why_not=tuple(reasons))
