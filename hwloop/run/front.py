"""What a search found, side by side: which trials are on the front, how good the best one is."""

from __future__ import annotations

from collections.abc import Sequence

from hwloop.findings import Outcome
from hwloop.measure.trial import Trial
from hwloop.records import Goal
from hwloop.run import choice
from hwloop.run.choice import Seen, within_drop


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both latency and drop, fastest first."""
    complete = [trial for trial in trials if trial.outcome is not None]
    front: list[Trial] = []
    for trial in sorted(complete, key=lambda item: (outcome_of(item).latency_ms, drop_of(item))):
        if not front or drop_of(trial) < drop_of(front[-1]):
            front.append(trial)
    return front


def described(seen: Seen | None, goal: Goal, *, baseline_ms: float, mark: str) -> str:
    """The best network so far, in a few words; empty where there is none."""
    if seen is None:
        return ""
    speedup = baseline_ms / seen.latency_ms
    text = f"best {speedup:.2f}x{mark} at drop {seen.drop:+.4f} after {seen.steps} steps"
    return text if within_drop(seen, goal) else f"{text}, not within the goal yet"


def outcome_of(trial: Trial) -> Outcome:
    """Of a trial that is known to be complete."""
    assert trial.outcome is not None, "only complete trials are compared"
    return trial.outcome


def drop_of(trial: Trial) -> float:
    """Of a trial that is known to be complete, in the metric's unit."""
    return outcome_of(trial).metric_drop


def is_faster(trial: Trial) -> bool:
    """Whether a trial is complete and measurably faster than the dense network."""
    measurement = None if trial.outcome is None else trial.outcome.measurement
    return measurement is not None and choice.is_faster(measurement)


def seen_of(trial: Trial, *, steps: int) -> Seen:
    """A complete trial as the choice of what ships sees it, after the search's recovery."""
    outcome = outcome_of(trial)
    return Seen(
        candidate=trial.candidate,
        steps=steps,
        latency_ms=outcome.latency_ms,
        faster=is_faster(trial),
        drop=outcome.metric_drop,
        upper_drop=outcome.upper_drop,
    )
