"""What a full recovery leaves of a drop is learned from a few of them, in any unit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwloop.search.foresight import Foresight, Lesson, unit_of

STEPS = 300


def lesson(short: float, final: float, *, speedup: float = 2.0, steps: int = STEPS) -> Lesson:
    return Lesson(short_drop=short, speedup=speedup, steps=steps, drop=final)


def foresight(*lessons: Lesson, unit: float = 0.01) -> Foresight:
    return Foresight(unit=unit, first_steps=STEPS, lessons=lessons)


def test_tens_of_points_after_a_short_recovery_are_about_one_at_the_end() -> None:
    """As benchmarks/proxy.py saw it, before a run has seen anything itself."""
    found = foresight().of(short_drop=0.4, speedup=2.3, steps=STEPS)
    assert 0.005 < found.drop < 0.03
    assert found.at(-1) < found.drop < found.at(1)


def test_lessons_move_the_prediction_and_make_it_surer() -> None:
    before = foresight().of(short_drop=0.2, speedup=2.0, steps=STEPS)
    hard = foresight(*(lesson(short, short / 2) for short in (0.1, 0.15, 0.3, 0.25)))
    easy = foresight(*(lesson(short, 0.001) for short in (0.1, 0.15, 0.3, 0.25)))
    after = hard.of(short_drop=0.2, speedup=2.0, steps=STEPS)
    assert after.drop > before.drop > easy.of(short_drop=0.2, speedup=2.0, steps=STEPS).drop
    assert after.sd < before.sd


def test_one_lesson_that_went_well_says_little_of_what_is_far_from_it() -> None:
    """Seen on the demo: at 21 times the speed nothing is left of the network, and none comes back.

    The median alone called it harmless, and two rounds of a search went there.
    """
    learned = foresight(lesson(0.18, 0.0018, speedup=3.9))
    near = learned.of(short_drop=0.18, speedup=3.9, steps=STEPS)
    far = learned.of(short_drop=0.83, speedup=21.0, steps=2 * STEPS)
    assert far.drop < 0.005
    assert far.cautious > 0.01
    assert near.cautious < 0.005
    assert near.doubt < far.doubt < far.sd


def test_what_is_learned_is_found_again_on_candidates_that_were_not_recovered() -> None:
    """Made of a rule with noise: most of what is foreseen lies within the intervals given."""
    rng = np.random.default_rng(0)

    def made(count: int) -> list[Lesson]:
        found = []
        for _ in range(count):
            short, speedup = float(rng.uniform(0.02, 0.6)), float(rng.uniform(1.3, 4.0))
            squashed = 0.4 * math.asinh(short / 0.01) - 0.5 + 0.3 * math.log2(speedup)
            final = 0.01 * math.sinh(squashed + float(rng.normal(0, 0.15)))
            found.append(lesson(short, final, speedup=speedup))
        return found

    learned = foresight(*made(10))
    within, errors = 0, []
    for truth in made(200):
        found = learned.of(short_drop=truth.short_drop, speedup=truth.speedup, steps=STEPS)
        within += found.at(-1.64) <= truth.drop <= found.at(1.64)
        errors.append(abs(found.drop - truth.drop))
    assert within >= 170
    assert float(np.mean(errors)) <= 0.005


def test_the_unit_of_the_metric_does_not_matter() -> None:
    """A drop of 1 point of accuracy, or of 0.3 in another metric: the same in goals."""
    small = foresight(lesson(0.2, 0.02), lesson(0.05, 0.01), unit=0.01)
    large = foresight(lesson(6.0, 0.6), lesson(1.5, 0.3), unit=0.3)
    one = small.of(short_drop=0.1, speedup=2.0, steps=STEPS)
    other = large.of(short_drop=3.0, speedup=2.0, steps=STEPS)
    assert other.drop == pytest.approx(30 * one.drop)
    assert other.chance_within(0.3) == pytest.approx(one.chance_within(0.01))


def test_a_longer_recovery_starts_from_the_candidates_own_figure() -> None:
    known = foresight(lesson(0.3, 0.015))
    longer = known.longer(0.015, steps_before=STEPS, steps=3 * STEPS)
    assert longer.drop < 0.015
    taught = foresight(lesson(0.3, 0.015), lesson(0.3, 0.004, steps=3 * STEPS))
    assert taught.longer(0.015, steps_before=STEPS, steps=3 * STEPS).drop < longer.drop


def test_a_candidate_that_became_better_than_dense_is_foreseen_as_well() -> None:
    found = foresight(lesson(-0.002, -0.004), lesson(0.0, -0.003), lesson(0.01, -0.001))
    assert found.of(short_drop=0.0, speedup=1.5, steps=STEPS).drop < 0


def test_the_unit_is_the_goal_or_what_the_run_itself_spreads() -> None:
    assert unit_of(0.02, [5.0]) == 0.02
    assert unit_of(None, [0.0, 0.4, -0.2, math.nan]) == pytest.approx(0.3)
    assert unit_of(0.0, []) == 1.0
    with pytest.raises(ValueError, match="cannot count as one"):
        Foresight(unit=0.0, first_steps=1)
