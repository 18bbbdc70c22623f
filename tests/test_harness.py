"""The timing harness on a clock that we turn ourselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hwloop.device import harness

PROTOCOL = {
    "warmup_s": 0.0,
    "rounds": 2,
    "sample_s": 0.001,
    "min_samples": 10,
    "max_samples": 40,
    "target_halfwidth": 0.01,
    "time_limit_s": 100.0,
}


class Bench:
    """Two engines that take the seconds they are told, and a log of what ran."""

    def __init__(self, candidate_s: Callable[[int], float], reference_s: float = 0.002) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.opened = {"A": 0, "B": 0}
        self.candidate_s = candidate_s
        self.reference_s = reference_s
        self.runs = 0

    def clock(self) -> float:
        return self.now

    def open(self, name: str) -> Callable[[], None]:
        self.opened[name] += 1

        def run() -> None:
            self.log.append(name)
            self.runs += 1
            self.now += self.candidate_s(self.runs) if name == "A" else self.reference_s

        return run

    def compare(self, **changes: float) -> dict:
        return harness.compare(
            lambda: self.open("A"),
            lambda: self.open("B"),
            {**PROTOCOL, **changes},
            clock=self.clock,
        )


def test_samples_alternate_and_change_their_order() -> None:
    bench = Bench(lambda run: 0.001)
    bench.compare(rounds=1)
    # Two runs warm up and two find the number of loops; then every sample is one run here.
    assert "".join(bench.log[4:12]) == "ABBAABBA"


def test_every_round_opens_both_engines_anew() -> None:
    bench = Bench(lambda run: 0.001)
    bench.compare(rounds=4)
    assert bench.opened == {"A": 4, "B": 4}


def test_steady_engines_stop_as_soon_as_allowed() -> None:
    found = Bench(lambda run: 0.001).compare()
    assert found["stopped"] == "precise"
    assert len(found["samples_ms"]) == len(found["reference_ms"]) == 10
    assert found["samples_ms"][0] == pytest.approx(1.0)
    assert found["reference_ms"][0] == pytest.approx(2.0)


def test_noisy_engines_stop_at_the_limit_of_samples() -> None:
    found = Bench(lambda run: 0.001 * (1 + run % 7)).compare()
    assert found["stopped"] == "count"
    assert len(found["samples_ms"]) == 40


def test_slow_engines_stop_at_the_limit_of_time() -> None:
    bench = Bench(lambda run: 1.0 + 0.3 * (run % 5))
    found = bench.compare(time_limit_s=8.0)
    assert found["stopped"] == "time"
    assert bench.now < 25


def test_a_short_run_is_repeated_to_fill_a_sample() -> None:
    bench = Bench(lambda run: 0.0001, reference_s=0.0001)
    found = bench.compare(rounds=1)
    runs_per_sample = len(bench.log) / (2 * len(found["samples_ms"]))
    assert runs_per_sample >= 10
    assert found["samples_ms"][0] == pytest.approx(0.1)
