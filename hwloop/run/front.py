"""The trials of a search side by side: which are on the front, and how good the best one is."""

from __future__ import annotations

from collections.abc import Sequence

from hwloop.findings import Outcome
from hwloop.records import Trial


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both latency and drop, fastest first."""
    complete = [trial for trial in trials if trial.outcome is not None]
    front: list[Trial] = []
    for trial in sorted(complete, key=lambda item: (outcome_of(item).latency_ms, drop_of(item))):
        if not front or drop_of(trial) < drop_of(front[-1]):
            front.append(trial)
    return front


def describe_best(
    trials: Sequence[Trial], *, loop_max_drop: float | None, baseline_ms: float, mark: str
) -> str:
    """The fastest trial whose drop may still be distilled away; empty when there is none."""
    found = [
        trial.outcome
        for trial in trials
        if trial.outcome is not None
        and (loop_max_drop is None or trial.outcome.metric_drop <= loop_max_drop)
    ]
    if not found:
        return ""
    best = min(found, key=lambda outcome: outcome.latency_ms)
    speedup = baseline_ms / best.latency_ms
    text = f"best {speedup:.2f}x{mark} at drop {best.metric_drop:+.4f}"
    return f"{text} (before full distillation)"


def outcome_of(trial: Trial) -> Outcome:
    """Of a trial that is known to be complete."""
    assert trial.outcome is not None, "only complete trials are compared"
    return trial.outcome


def drop_of(trial: Trial) -> float:
    """Of a trial that is known to be complete, in the metric's unit."""
    return outcome_of(trial).metric_drop
