"""The timing harness on a clock that we turn ourselves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest

from hwloop.device import harness
from hwloop.findings import Measurement, Protocol

PROTOCOL = {
    "warmup_s": 0.0,
    "rounds": 2,
    "sample_s": 0.0008,
    "turn_s": 0.0035,
    "min_samples": 10,
    "max_samples": 60,
    "target_halfwidth": 0.01,
    "time_limit_s": 100.0,
}
NOT_SAMPLES = 2 + 2 * harness.TRIALS
"""Runs of a round before its samples: two warm up, the others find the number of loops."""

Disturbance = Callable[[str, float], float]


class Bench:
    """Two engines that take the seconds they are told, and a log of what ran.

    Attributes:
        disturbed: what a run takes, given the engine and the seconds of a run that is alone.
        opening_s: what opening an engine takes.
        ran: runs of each engine.
    """

    def __init__(self, candidate_s: Callable[[int], float], reference_s: float = 0.002) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.opened = {"A": 0, "B": 0}
        self.ran = {"A": 0, "B": 0}
        self.candidate_s = candidate_s
        self.reference_s = reference_s
        self.disturbed: Disturbance = lambda name, seconds: seconds
        self.opening_s = 0.0

    def clock(self) -> float:
        return self.now

    def open(self, name: str) -> Callable[[], None]:
        self.opened[name] += 1
        self.now += self.opening_s

        def run() -> None:
            self.log.append(name)
            self.ran[name] += 1
            seconds = self.candidate_s(self.ran[name]) if name == "A" else self.reference_s
            self.now += self.disturbed(name, seconds)

        return run

    def compare(self, **changes: float) -> dict:
        return self.compared_as({**PROTOCOL, **changes})

    def compared_as(self, protocol: dict) -> dict:
        return harness.compare(
            lambda: self.open("A"), lambda: self.open("B"), protocol, clock=self.clock
        )

    def measurement(self, **changes: float) -> Measurement:
        """Under the protocol that is used where none is given."""
        found = self.compared_as({**dataclasses.asdict(Protocol()), **changes})
        return Measurement(reference_latency_ms=1.0, **as_tuples(found))


def as_tuples(found: dict) -> dict:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }


def within_rounds(found: dict, name: str) -> list[np.ndarray]:
    return np.split(np.asarray(found[name]), np.cumsum(found["rounds"])[:-1])


# ------------------------------------------------------------------ turns, rounds and their ends


def test_engines_take_turns_of_several_samples_and_change_their_order() -> None:
    bench = Bench(lambda run: 0.001)
    bench.compare(rounds=1)
    assert "".join(bench.log[NOT_SAMPLES:][:32]) == "AAAABBBBBBBBAAAA" * 2


def test_a_turn_of_the_slower_engine_is_bounded() -> None:
    bench = Bench(lambda run: 0.001, reference_s=0.011)
    bench.compare(rounds=1, turn_s=0.0195, max_samples=100)
    samples = -(-harness.LONGEST_TURN * 0.0195 // 0.011)  # the faster one would fill 20
    turn = "A" * int(samples) + "B" * int(samples)
    assert samples == 8
    assert "".join(bench.log[NOT_SAMPLES - 2 :]).startswith(turn + turn[::-1])


def test_a_run_longer_than_any_turn_is_one_sample_of_it() -> None:
    bench = Bench(lambda run: 0.001, reference_s=0.5)
    bench.compare(rounds=1)
    assert "".join(bench.log[NOT_SAMPLES - 2 :]).startswith("ABBAABBA")  # one trial is enough


def test_every_round_opens_both_engines_anew() -> None:
    bench = Bench(lambda run: 0.001)
    found = bench.compare(rounds=4)
    assert bench.opened == {"A": 4, "B": 4}
    assert len(found["rounds"]) == 4


def test_steady_engines_stop_as_soon_as_every_round_has_its_turns() -> None:
    found = Bench(lambda run: 0.001).compare()
    assert found["stopped"] == "precise"
    assert found["rounds"] == [harness.MIN_TURNS * 4] * 2
    assert len(found["samples_ms"]) == len(found["reference_ms"]) == sum(found["rounds"])
    assert found["samples_ms"] == pytest.approx([1.0] * len(found["samples_ms"]))
    assert found["reference_ms"] == pytest.approx([2.0] * len(found["samples_ms"]))


def test_the_least_number_of_samples_is_taken_of_steady_engines_too() -> None:
    found = Bench(lambda run: 0.001).compare(min_samples=50)
    assert found["stopped"] == "precise"
    assert found["rounds"] == [28, 28]  # whole turns


def test_noisy_engines_stop_at_the_limit_of_samples() -> None:
    found = Bench(lambda run: 0.001 * (1 + run % 7)).compare(max_samples=50)
    assert found["stopped"] == "count"
    assert found["rounds"] == [26, 26]  # 25, in whole turns
    assert len(found["samples_ms"]) == len(found["reference_ms"]) == 52


def test_slow_engines_stop_at_the_limit_of_time() -> None:
    bench = Bench(lambda run: 1.0 + 0.3 * (run % 5))
    found = bench.compare(time_limit_s=16.0)
    assert found["stopped"] == "time"
    assert len(found["samples_ms"]) == len(found["reference_ms"]) == sum(found["rounds"])
    assert min(found["rounds"]) >= 1
    assert 16.0 < bench.now < 25.0


def test_it_is_told_what_ended_the_worst_of_the_rounds() -> None:
    bench = Bench(lambda run: 0.001 * (1 + run % 7 * (bench.opened["A"] == 1)))
    found = bench.compare(rounds=3, max_samples=90)
    assert found["stopped"] == "count"
    assert found["rounds"] == [30, 16, 16]


def test_an_engine_that_opens_slowly_leaves_half_of_its_share_of_the_time() -> None:
    bench = Bench(lambda run: 0.1 * (1 + run % 7), reference_s=0.1)
    bench.opening_s = 3.0
    found = bench.compare(time_limit_s=8.0, max_samples=1000)
    assert found["stopped"] == "time"
    sides = [within_rounds(found, name) for name in ("samples_ms", "reference_ms")]
    for candidate_ms, reference_ms in zip(*sides, strict=True):
        # Of 4 s, opening both took 6. The slowest pair of samples takes 0.8 s, and so does a trial.
        assert 2000 - 800 < candidate_ms.sum() + reference_ms.sum() < 2000 + 800


def test_a_short_run_is_repeated_to_fill_a_sample() -> None:
    bench = Bench(lambda run: 0.0001, reference_s=0.0001)
    found = bench.compare(rounds=1)
    runs_per_sample = len(bench.log) / (2 * len(found["samples_ms"]))
    assert runs_per_sample >= 8
    assert found["samples_ms"][0] == pytest.approx(0.1)


# ---------------------------------------------------------------- what else the machine is doing

CANDIDATE_S, REFERENCE_S = 0.00085, 0.0005
QUIET_RATIO = CANDIDATE_S / REFERENCE_S
PRECISE = 0.01


def two_engines(disturbed: Callable[[Bench], Disturbance]) -> Bench:
    bench = Bench(lambda run: CANDIDATE_S, REFERENCE_S)
    bench.disturbed = disturbed(bench)
    return bench


def off(found: Measurement) -> float:
    return abs(found.ratio / QUIET_RATIO - 1)


def off_in_pairs(found: Measurement) -> float:
    """Of the median of the samples' ratios, one by one."""
    ratio = np.median(np.asarray(found.samples_ms) / np.asarray(found.reference_ms))
    return abs(float(ratio) / QUIET_RATIO - 1)


def adding(share: float, seconds: float, seed: int) -> Callable[[Bench], Disturbance]:
    """So many of the runs take so much more, whichever engine's, and all scatter by 0.3 %."""
    rng = random.Random(seed)

    def disturbance(bench: Bench) -> Disturbance:
        def disturbed(name: str, alone_s: float) -> float:
            more_s = seconds if rng.random() < share else 0.0
            return alone_s * (1 + 0.003 * rng.random()) + more_s

        return disturbed

    return disturbance


@pytest.mark.parametrize("seed", range(5))
def test_time_that_others_add_to_most_samples_is_not_in_the_ratio(seed: int) -> None:
    found = two_engines(adding(2 / 3, 0.0003, seed)).measurement()
    assert found.disturbed_share == pytest.approx(2 / 3, abs=0.1)
    assert off(found) < PRECISE
    assert off_in_pairs(found) > 0.05


DRIFT_S = 0.5
DRIFTS: dict[str, Callable[[float], float]] = {
    "slower and slower": lambda now: 1 + 0.2 * min(now / DRIFT_S, 1),
    "faster and faster": lambda now: 1.2 - 0.2 * min(now / DRIFT_S, 1),
    "slower in steps": lambda now: 1 + 0.05 * min(now // 0.1, 4),
    "up and down": lambda now: 1 + 0.2 * (now // 0.07 % 2),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_clock_that_drifts_or_steps_is_not_in_the_ratio(drift: str) -> None:
    bench = two_engines(lambda bench: lambda name, alone_s: alone_s * DRIFTS[drift](bench.now))
    found = bench.measurement(min_samples=400)
    assert max(found.samples_ms) > 1.15 * min(found.samples_ms)
    assert off(found) < PRECISE


def test_a_round_that_is_disturbed_all_through_widens_the_interval_and_leaves_the_ratio() -> None:
    def in_round(index: int | None) -> Measurement:
        scatter = random.Random(3)

        def disturbance(bench: Bench) -> Disturbance:
            def disturbed(name: str, alone_s: float) -> float:
                factor = 1.3 if name == "A" and bench.opened["A"] == index else 1.0
                return alone_s * factor * (1 + 0.003 * scatter.random())

            return disturbed

        return two_engines(disturbance).measurement(rounds=8)

    quiet, disturbed = in_round(None), in_round(5)
    assert max(disturbed.ratios) == pytest.approx(1.3 * QUIET_RATIO, rel=PRECISE)
    assert off(quiet) < PRECISE
    assert off(disturbed) < PRECISE
    widths = [high - low for low, high in (quiet.ratio_ci95, disturbed.ratio_ci95)]
    assert widths[1] > 2 * widths[0]
    low, high = disturbed.ratio_ci95
    assert low < QUIET_RATIO < high


# --------------------------------------------------------------------- how well the quiet is known


def states(quiet_in: int, count: int) -> list[float]:
    """One in so many is quiet, the others take from a quarter to three quarters more."""
    slower = random.Random(1)
    return [1.0 if i % quiet_in == 0 else 1.25 + slower.random() / 2 for i in range(count)]


@pytest.mark.parametrize("count", [200, 1000])
@pytest.mark.parametrize("quiet_in", [1, 3, 10])
def test_the_quiet_time_is_known_where_a_tenth_of_the_samples_is_quiet(
    quiet_in: int, count: int
) -> None:
    assert harness.quiet_halfwidth(states(quiet_in, count)) < 0.001


@pytest.mark.parametrize("count", [24, 200, 1000])
def test_the_quiet_time_is_not_known_where_fewer_than_a_twentieth_is_quiet(count: int) -> None:
    assert harness.quiet_halfwidth(states(25, count)) > 0.1


def test_scatter_is_in_what_is_known_of_the_quiet_time() -> None:
    scatter = random.Random(2)
    values = [scatter.gauss(1.0, 0.02) for _ in range(400)]
    wide = harness.quiet_halfwidth(values)
    assert 0.002 < wide < 0.02
    assert harness.quiet_halfwidth([scatter.gauss(1.0, 0.02) for _ in range(6400)]) < wide / 2


@pytest.mark.parametrize(("quiet_in", "stopped"), [(10, "precise"), (25, "count")])
def test_sampling_goes_on_to_its_limit_where_hardly_a_sample_is_quiet(
    quiet_in: int, stopped: str
) -> None:
    def disturbance(bench: Bench) -> Disturbance:
        slower = random.Random(1)

        def disturbed(name: str, alone_s: float) -> float:
            is_quiet = bench.ran[name] % quiet_in == 0
            return alone_s * (1.0 if is_quiet else 1.25 + slower.random() / 2)

        return disturbed

    bench = two_engines(disturbance)
    found = bench.measurement(time_limit_s=100.0)
    limit = Protocol().max_samples
    assert found.stopped == stopped
    if stopped == "count":
        assert limit <= len(found.samples_ms) < 1.1 * limit  # in whole turns
    else:
        assert len(found.samples_ms) < limit / 4
        assert off(found) < PRECISE
