"""What decides the exit code: the final figures held against the goal."""

from __future__ import annotations

from dataclasses import replace

from hwloop.findings import Measurement
from hwloop.records import Goal
from hwloop.run.verdict import verdict_on

MEASURED = Measurement(samples_ms=(5.0,) * 25, reference_ms=(10.0,) * 25, reference_latency_ms=10.0)
GOAL = Goal(max_drop=0.01, min_speedup=1.5)


def test_a_verdict_names_every_limit_that_was_missed() -> None:
    met = verdict_on(GOAL, MEASURED, drop=0.01, why_dense=None)
    assert met.met
    assert met.limits == {"max_drop": 0.01, "min_speedup": 1.5}
    strict = Goal(max_drop=0.005, max_latency_ms=4.0, min_speedup=3.0)
    missed = verdict_on(strict, MEASURED, drop=0.01, why_dense=None)
    assert [reason.partition(" is ")[0] for reason in missed.why_not] == list(missed.limits)


def test_a_drop_of_just_the_limit_meets_it_whatever_its_last_bit() -> None:
    assert 0.92 - 0.91 > 0.01
    goal = Goal(max_drop=0.01)
    assert verdict_on(goal, MEASURED, drop=0.92 - 0.91, why_dense=None).met
    assert not verdict_on(goal, MEASURED, drop=0.0101, why_dense=None).met


def test_no_goal_is_met_by_what_is_not_measurably_faster() -> None:
    same = replace(MEASURED, samples_ms=(10.0,) * 25)
    goal = Goal(max_drop=0.01)
    found = verdict_on(goal, same, drop=0.0, why_dense=None)
    assert found.why_not == ("the final measurement finds no difference in latency",)
    assert verdict_on(goal, same, drop=0.0, why_dense="nothing").why_not == ("nothing",)
