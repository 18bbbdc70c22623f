"""What may be the fastest is timed for longer, so that luck does not choose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from test_race import BASELINE_MS, STEPS, Made, race, trial

from hwloop.errors import CandidateError
from hwloop.findings import LatencySource, Measurement, Protocol
from hwloop.measure.progress import Progress
from hwloop.measure.trial import Trial
from hwloop.records import Action, Candidate, Goal
from hwloop.run.contenders import CLOSE, MOST, Contenders
from hwloop.run.evaluate import Evaluator
from hwloop.run.race import Race


@dataclass
class Device:
    """Stands in for an evaluator: what a long measurement says, by candidate; else it fails."""

    latencies_ms: dict[Candidate, float]
    source: LatencySource = LatencySource.DEVICE
    timed: list[Candidate] = field(default_factory=list)
    kept: dict[Candidate, Measurement] = field(default_factory=dict)

    timed_for_long = Evaluator.timed_for_long

    def __post_init__(self) -> None:
        self.latencies = self.builder = self
        self.session = SimpleNamespace(holding=self._holding)

    @contextlib.contextmanager
    def _holding(self, model: object) -> Iterator[object]:
        yield model

    def long(self, candidate: Candidate) -> Measurement | None:
        return self.kept.get(candidate)

    def build(self, candidate: Candidate, schedule: object) -> Any:
        return SimpleNamespace(candidate=candidate, model=candidate)

    def for_long(self, built: Any, protocol: Protocol) -> Measurement:
        self.timed.append(built.candidate)
        if built.candidate not in self.latencies_ms:
            raise CandidateError("run", "made to fail")
        self.kept[built.candidate] = Measurement(
            samples_ms=(self.latencies_ms[built.candidate],) * 25,
            reference_ms=(BASELINE_MS,) * 25,
            reference_latency_ms=BASELINE_MS,
        )
        return self.kept[built.candidate]


def contenders(device: Device, found: Race) -> Contenders:
    made: Any = device
    return Contenders(evaluator=made, race=found, protocol=Protocol(), progress=Progress())


def first(found: Race, trials: list[Trial]) -> Trial:
    entry = found.next(trials, left=5)
    assert entry is not None
    return entry.trial


def test_the_luckiest_of_equals_is_not_taken_for_the_fastest() -> None:
    lucky, other = trial(0, 4.0, 0.05), trial(1, 4.1, 0.05)
    found = race(Made())
    assert first(found, [lucky, other]) == lucky
    device = Device({lucky.candidate: 4.2, other.candidate: 4.05})
    contenders(device, found).retime([lucky, other])
    assert first(found, [lucky, other]) == other


def test_what_was_recovered_already_has_its_new_latency_as_well() -> None:
    lucky, other = trial(0, 4.0, 0.05), trial(1, 4.1, 0.05)
    found = race(Made({(lucky.candidate, STEPS): 0.005}))
    before = found.recover(lucky, STEPS)
    contenders(Device({lucky.candidate: 4.2, other.candidate: 4.05}), found).retime([lucky, other])
    after = found.of(lucky)
    assert before is not None
    assert after is not None
    assert (before.latency_ms, after.latency_ms) == (4.0, pytest.approx(4.2))
    assert found.as_timed(before) == after
    assert first(found, [lucky, other]) == other


def test_only_those_that_may_be_the_fastest_within_the_goal_are_timed() -> None:
    close = [trial(number, 4.0 + number * 0.01, 0.05) for number in range(MOST + 3)]
    behind = trial(20, 4.0 * (1 + CLOSE) + 0.01, 0.05)
    slower, int8 = trial(21, 11.0, 0.0), Candidate(actions=(Action(precision="int8"),))
    hopeless = replace(trial(22, 3.0, 0.9), candidate=int8)  # no training brings it back
    device = Device({})
    everything = [hopeless, slower, behind, *reversed(close)]
    contenders(device, race(Made())).retime(everything)
    assert device.timed == [each.candidate for each in close[:MOST]]
    alone = Device({})
    contenders(alone, race(Made())).retime([close[0], behind, hopeless])
    assert alone.timed == []


def test_what_was_recovered_is_timed_beside_however_many_look_faster() -> None:
    best = trial(30, 4.15, 0.05)
    others = [trial(number, 4.0 + number * 0.01, 0.05) for number in range(MOST + 3)]
    found = race(Made({(best.candidate, STEPS): 0.005}))
    found.recover(best, STEPS)
    device = Device({})
    contenders(device, found).retime([*others, best])
    assert device.timed == [each.candidate for each in (best, *others[:MOST])]


def test_with_a_budget_alone_those_that_may_just_be_in_time_are_timed() -> None:
    fast = [trial(number, 2.0, 0.5) for number in range(MOST)]
    late, exact, rough = trial(20, 5.1, 0.01), trial(21, 4.9, 0.02), trial(22, 4.95, 0.3)
    safe = trial(23, 4.5, 0.0)
    found = race(Made(), Goal(min_speedup=BASELINE_MS / 5.0))
    device = Device({})
    contenders(device, found).retime([*fast, rough, exact, late, safe])
    assert device.timed == [each.candidate for each in (late, exact, rough)]


def test_one_that_fails_keeps_its_latency_and_none_is_timed_twice() -> None:
    fails, other = trial(0, 4.0, 0.05), trial(1, 4.1, 0.05)
    found, device = race(Made()), Device({other.candidate: 4.15})
    for _ in range(2):
        contenders(device, found).retime([fails, other])
    assert device.timed.count(other.candidate) == 1
    assert first(found, [fails, other]) == fails


def test_computed_latencies_have_no_luck_in_them() -> None:
    device = Device({}, source=LatencySource.SIMULATED)
    contenders(device, race(Made())).retime([trial(0, 4.0, 0.05), trial(1, 4.1, 0.05)])
    assert device.timed == []
