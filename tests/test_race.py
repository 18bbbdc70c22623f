"""Full recoveries go where speed times chance is largest, and each teaches the next decision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hwloop.findings import LatencySource, Measurement, Outcome
from hwloop.measure.trial import Trial, TrialState
from hwloop.records import Action, Candidate, Goal
from hwloop.run.choice import Seen
from hwloop.run.front import is_faster
from hwloop.run.race import FINAL_RUNGS, MOST_RUNGS, RUNGS, Race
from hwloop.search.problem import PredictMs

BASELINE_MS = 10.0
STEPS = 300
GOAL = Goal(max_drop=0.01)


def candidate(number: int) -> Candidate:
    return Candidate(actions=(Action(kind="prune", amount=1 / (2 + number)),))


def trial(number: int, latency_ms: float, drop: float | None) -> Trial:
    shared: Any = {"number": number, "candidate": candidate(number), "source": "made"}
    if drop is None:
        return Trial(**shared, state=TrialState.FAILED, reason="made to fail")
    measurement = Measurement(
        samples_ms=(latency_ms,) * 25,
        reference_ms=(BASELINE_MS,) * 25,
        reference_latency_ms=BASELINE_MS,
    )
    outcome = Outcome(
        metric=0.9 - drop,
        metric_drop=drop,
        upper_drop=None,
        latency_ms=latency_ms,
        latency_source=LatencySource.DEVICE,
        measurement=measurement,
    )
    return Trial(**shared, state=TrialState.COMPLETE, outcome=outcome)


@dataclass
class Made:
    """Stands in for the distiller: final drops by candidate and steps, all else fails."""

    drops: dict[tuple[Candidate, int], float] = field(default_factory=dict)
    steps: int = STEPS
    bound: float = 0.002

    def distilled(
        self, trial: Trial, steps: int, *, predict_ms: PredictMs | None = None
    ) -> Seen | None:
        drop = self.drops.get((trial.candidate, steps))
        if drop is None or trial.outcome is None:
            return None
        return Seen(
            candidate=trial.candidate,
            steps=steps,
            latency_ms=trial.outcome.latency_ms,
            faster=is_faster(trial),
            drop=drop,
            upper_drop=drop + self.bound if drop <= 0.01 else None,
        )

    def at_hand(self, seen: Seen) -> None:
        return None


def race(made: Made, goal: Goal = GOAL, *, rungs: int = FINAL_RUNGS) -> Race:
    distiller: Any = made
    return Race(distiller=distiller, goal=goal, baseline_ms=BASELINE_MS, rungs=rungs)


def test_speed_and_chance_are_weighed_against_each_other() -> None:
    safe, fast, reckless = trial(0, 9.0, 0.001), trial(1, 4.0, 0.05), trial(2, 3.9, 0.9)
    entry = race(Made()).next([safe, fast, reckless], left=5)
    assert entry is not None
    assert (entry.trial, entry.steps) == (fast, STEPS)


def test_a_lesson_goes_to_what_is_near_and_not_to_what_is_many_times_as_fast() -> None:
    usual, near, far = trial(0, 3.6, 0.03), trial(1, 2.2, 0.3), trial(2, 0.35, 0.8)
    found = race(Made({(usual.candidate, STEPS): 0.0045}))
    found.recover(usual, STEPS)
    entry = found.next([usual, near, far], left=2)
    assert entry is not None
    assert entry.trial == near


def test_nothing_slower_than_what_meets_the_goal_is_tried() -> None:
    fast, slow = trial(0, 4.0, 0.05), trial(1, 5.0, 0.001)
    found = race(Made({(fast.candidate, STEPS): 0.005}))
    found.recover(fast, STEPS)
    assert found.next([fast, slow], left=5) is None


def test_nothing_is_tried_to_win_what_no_measurement_tells() -> None:
    best, alike, faster = trial(0, 4.0, 0.05), trial(1, 3.97, 0.001), trial(2, 3.9, 0.001)
    found = race(Made({(best.candidate, STEPS): 0.005}))
    found.recover(best, STEPS)
    assert found.next([best, alike], left=5) is None
    entry = found.next([best, alike, faster], left=5)
    assert entry is not None
    assert entry.trial == faster


def test_a_round_of_the_search_does_not_go_beyond_what_it_aims_at() -> None:
    """A run that is given time for its finals later has to decide its rounds again as it did."""
    close = trial(0, 4.0, 0.05)
    drops = {(close.candidate, rung * STEPS): 0.014 - rung * 0.001 for rung in range(1, RUNGS + 1)}
    found = race(Made(drops), rungs=MOST_RUNGS)
    for rung in range(1, RUNGS + 1):
        found.recover(close, rung * STEPS)
    assert found.next([close], left=RUNGS) is not None
    assert found.next([close], left=RUNGS, rungs=found.aimed_rungs) is None


def test_what_missed_closely_goes_on_from_where_it_is() -> None:
    close = trial(0, 4.0, 0.05)
    found = race(Made({(close.candidate, STEPS): 0.012}))
    found.recover(close, STEPS)
    entry = found.next([close], left=1)
    assert entry is not None
    assert (entry.trial, entry.steps) == (close, 2 * STEPS)
    assert found.next([close], left=0) is None


def test_what_failed_or_had_the_longest_recovery_is_not_tried_again() -> None:
    fails, done = trial(0, 4.0, 0.05), trial(1, 4.5, 0.05)
    found = race(Made({(done.candidate, FINAL_RUNGS * STEPS): 0.02}))
    assert found.recover(fails, STEPS) is None
    found.recover(done, FINAL_RUNGS * STEPS)
    assert found.next([fails, done, trial(2, 3.0, None)], left=5) is None


def test_the_search_is_told_what_was_found_or_else_what_is_foreseen() -> None:
    known, other, failed = trial(0, 4.0, 0.4), trial(1, 4.0, 0.4), trial(2, 4.0, None)
    found = race(Made({(known.candidate, STEPS): 0.1}), rungs=1)
    before = found.score(other).metric_drop
    found.recover(known, STEPS)
    assert found.score(known).metric_drop == 0.1
    after = found.score(other).metric_drop
    assert before is not None
    assert after is not None
    assert 0 < before < after < 0.4
    assert found.score(failed).failed == "made to fail"


def test_the_search_is_told_with_caution_of_what_is_far_from_all_that_was_recovered() -> None:
    usual, near, far = trial(0, 2.6, 0.18), trial(1, 2.2, 0.2), trial(2, 0.48, 0.83)
    found = race(Made({(usual.candidate, STEPS): 0.0018}))
    found.recover(usual, STEPS)
    told = [found.score(each).metric_drop for each in (near, far)]
    assert found.limit is not None
    assert told[0] is not None
    assert told[1] is not None
    assert told[0] < found.limit < told[1]


def test_the_search_is_told_of_the_longest_recovery_that_may_ship() -> None:
    known, other = trial(0, 4.0, 0.4), trial(1, 4.0, 0.4)
    made = Made({(known.candidate, STEPS): 0.03, (known.candidate, RUNGS * STEPS): 0.021})
    short, long = race(made, rungs=1), race(made)
    for each in (short, long):
        each.recover(known, STEPS)
    for candidate in (known, other):
        told, at_first = long.score(candidate).metric_drop, short.score(candidate).metric_drop
        assert told is not None
        assert at_first is not None
        assert 0 < told < 0.9 * at_first
    long.recover(known, RUNGS * STEPS)
    assert long.score(known).metric_drop == 0.021


def test_more_steps_are_not_expected_to_beat_the_dense_network() -> None:
    trained, better, whole = trial(0, 4.0, 0.4), trial(1, 4.0, 0.4), trial(2, 5.0, 0.001)
    whole = replace(whole, candidate=Candidate(actions=(Action(precision="int8"),)))
    drops = {trained.candidate: 0.002, better.candidate: -0.003, whole.candidate: 0.001}
    found = race(Made({(candidate, STEPS): drop for candidate, drop in drops.items()}))
    for each in (trained, better, whole):
        found.recover(each, STEPS)
    assert found.score(trained).metric_drop == 0.0
    assert found.score(better).metric_drop == -0.003
    assert found.score(whole).metric_drop == 0.001
    assert found.allowance({trained.candidate: 0.04, whole.candidate: 0.002}) > 1


@pytest.mark.parametrize("rungs", [RUNGS, MOST_RUNGS])
def test_what_the_search_aims_at_does_not_depend_on_what_the_finals_may_spend(rungs: int) -> None:
    known, other = trial(0, 4.0, 0.4), trial(1, 4.0, 0.4)
    found = race(Made({(known.candidate, STEPS): 0.03}), rungs=rungs)
    found.recover(known, STEPS)
    expected = race(Made({(known.candidate, STEPS): 0.03}))
    expected.recover(known, STEPS)
    for each in (known, other):
        assert found.score(each) == expected.score(each)


def test_what_only_a_long_recovery_can_save_is_begun_where_that_can_be_paid() -> None:
    best, fast = trial(0, 5.0, 0.05), trial(1, 3.0, 0.2)
    lessons = [trial(number, 6.0, 0.2) for number in range(2, 6)]
    drops = {(each.candidate, STEPS): 0.03 for each in lessons}
    drops |= {(each.candidate, RUNGS * STEPS): 0.006 for each in lessons[:3]}
    found = race(Made({**drops, (best.candidate, STEPS): 0.005}))
    found.recover(best, STEPS)
    for each in lessons:
        found.recover(each, STEPS)
    for each in lessons[:3]:
        found.recover(each, RUNGS * STEPS)
    entry = found.next([best, fast], left=RUNGS)
    assert entry is not None
    assert (entry.trial, entry.steps) == (fast, STEPS)
    short = found.next([best, fast], left=1)
    assert short is None or short.value < entry.value


def test_a_usual_setting_without_a_chance_is_left_where_it_is() -> None:
    close, hopeless = trial(0, 4.0, 0.05), trial(1, 3.0, 0.7)
    found = race(Made({(close.candidate, STEPS): 0.012, (hopeless.candidate, STEPS): 0.4}))
    for each in (close, hopeless):
        found.recover(each, STEPS)
    assert found.may_meet(close, RUNGS * STEPS)
    assert not found.may_meet(hopeless, RUNGS * STEPS)


def test_where_only_latency_is_asked_for_the_most_accurate_in_time_is_tried() -> None:
    goal = Goal(max_drop=None, min_speedup=2.0)
    late, worse, better = trial(0, 6.0, 0.0), trial(1, 4.0, 0.3), trial(2, 4.5, 0.1)
    found = race(Made(), goal)
    entry = found.next([late, worse, better], left=5)
    assert entry is not None
    assert entry.trial == better


def test_a_lucky_score_of_the_search_keeps_nothing_from_being_recovered() -> None:
    lucky = trial(0, 4.0, 0.0)
    assert lucky.outcome is not None
    lucky = replace(lucky, outcome=replace(lucky.outcome, upper_drop=0.005))
    entry = race(Made()).next([lucky], left=5)
    assert entry is not None
    assert entry.trial == lucky


def test_what_nothing_was_cut_from_is_no_lesson_and_needs_no_longer_recovery() -> None:
    int8 = replace(trial(0, 4.0, 0.03), candidate=Candidate(actions=(Action(precision="int8"),)))
    found = race(Made({(int8.candidate, STEPS): 0.012}))
    assert found.score(int8).metric_drop == pytest.approx(0.03)
    found.recover(int8, STEPS)
    assert found.foresight.lessons == ()
    assert found.next([int8], left=5) is None
    assert not found.may_meet(int8, RUNGS * STEPS)


def test_where_few_samples_leave_no_room_nothing_short_of_better_is_likely() -> None:
    wide, other = trial(0, 4.0, 0.1), trial(1, 3.0, 0.1)
    made = Made({(wide.candidate, STEPS): 0.005}, bound=0.02)
    found = race(made)
    before = found.next([other], left=5)
    found.recover(wide, STEPS)
    after = found.next([other], left=5)
    assert found.limit == 0.0
    assert before is not None
    assert after is None or after.value < before.value / 4


def test_damage_and_drop_of_what_was_recovered_say_what_plans_may_sum_up_to() -> None:
    one = trial(0, 4.0, 0.3)
    found = race(Made({(one.candidate, STEPS): 0.02}), rungs=1)
    assert found.allowance({}) == pytest.approx(10.0)
    found.recover(one, STEPS)
    assert found.allowance({one.candidate: 0.2}) == pytest.approx(10.0)
    assert found.allowance({one.candidate: 0.08}) == pytest.approx(4.0)


def test_room_for_the_bound_is_left_within_the_goal() -> None:
    one = trial(0, 4.0, 0.3)
    found = race(Made({(one.candidate, STEPS): 0.005}))
    assert found.limit == pytest.approx(0.007)
    found.recover(one, STEPS)
    assert found.limit == pytest.approx(0.008)
    assert race(Made(), Goal(max_drop=None, min_speedup=2.0)).limit is None
