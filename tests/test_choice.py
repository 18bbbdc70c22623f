"""What ships is the best network that was seen, by one rule, whatever the search and finals did."""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings, target
from hypothesis import strategies as st
from torch import nn

from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import menu
from hwloop.compress.subject import Built
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.findings import LatencySource, Measurement, Outcome, Protocol
from hwloop.measure.progress import Progress
from hwloop.measure.store import IN_MEMORY, Store
from hwloop.measure.trial import Trial, TrialState
from hwloop.records import KEEP, Candidate, Goal
from hwloop.run import choice, distil
from hwloop.run.build import KeptWeights
from hwloop.run.choice import Seen
from hwloop.run.contenders import Contenders
from hwloop.run.distil import Distiller
from hwloop.run.evaluate import Evaluator
from hwloop.run.finalists import Finals
from hwloop.run.folder import RunFolder
from hwloop.run.memory import Figures
from hwloop.run.race import FINAL_RUNGS, Race
from hwloop.run.scoring import Scored

GROUPS = 3
BASELINE_MS = 10.0
DENSE = Candidate(actions=(KEEP,) * GROUPS)
FINAL_STEPS = 300


class World:
    """Made-up figures of every candidate, the same whenever it is asked; stands in for a device.

    Args:
        seed: of the figures. Latencies are coarse, so that ties occur.
        hopeless: distillation makes everything worse.
    """

    timed_for_long = Evaluator.timed_for_long

    def __init__(self, seed: int, *, max_drop: float | None, hopeless: bool) -> None:
        self.seed = seed
        self.max_drop = max_drop
        self.hopeless = hopeless
        self.builder = self.latencies = self.scorer = self.loop_scorer = self
        self.subject = SimpleNamespace(
            dense_candidate=DENSE, menu=ACTIONS, choices=lambda candidate: candidate.digest()
        )
        self.session = SimpleNamespace(holding=self._holding)
        self.held = 0
        self.longer: dict[Candidate, Measurement] = {}
        self.source = LatencySource.DEVICE
        self.loop_schedule = Schedule(steps=20)
        self.figures = Figures(Store(IN_MEMORY), "made")
        self.baseline = self._latency(DENSE)
        self.built = 0

    @contextlib.contextmanager
    def _holding(self, model: object) -> Iterator[object]:
        self.held += 1
        assert self.held == 1, "another network is still on the device"
        try:
            yield model
        finally:
            self.held -= 1

    def _draw(self, candidate: Candidate, what: str) -> random.Random:
        return random.Random(f"{self.seed} {candidate.digest()} {what}")

    def _latency(self, candidate: Candidate) -> Measurement:
        ratio = 1.0
        if candidate != DENSE:
            ratio = self._draw(candidate, "ms").choice([0.2, 0.5, 0.75, 0.8, 0.98, 0.995, 1.0, 1.3])
        return Measurement(
            samples_ms=(BASELINE_MS * ratio,) * 25,
            reference_ms=(BASELINE_MS,) * 25,
            reference_latency_ms=BASELINE_MS,
        )

    def outcome(self, candidate: Candidate) -> tuple[Outcome, None]:
        trial = self.trial(0, candidate)
        if trial.outcome is None:
            raise CandidateError("build", "made to fail")
        return trial.outcome, None

    def known(self, candidate: Candidate) -> Measurement:
        return self._latency(candidate)

    def of(self, built: Built) -> Measurement:
        return self._latency(built.candidate)

    def long(self, candidate: Candidate) -> Measurement | None:
        return self.longer.get(candidate)

    def for_long(self, built: Built, protocol: Protocol) -> Measurement:
        """A little off what the short measurement said."""
        ratio = self._draw(built.candidate, "long").choice([0.97, 1.0, 1.03])
        short = self._latency(built.candidate)
        samples = tuple(ms * ratio for ms in short.samples_ms)
        return self.longer.setdefault(built.candidate, replace(short, samples_ms=samples))

    def build(self, candidate: Candidate, recipe: Schedule, **how: Any) -> Built:
        self.built += 1
        if self._draw(candidate, f"fails {recipe.steps}").random() < 0.1:
            raise CandidateError("build", "made to fail")
        return self._made(candidate, recipe.steps)

    def restored(self, candidate: Candidate, kept: KeptWeights) -> Built:
        """What was built before: its only weight says how many steps it had."""
        assert int(kept.state["weight"]) == kept.steps
        return self._made(candidate, kept.steps)

    def _made(self, candidate: Candidate, steps: int) -> Built:
        module, model = nn.Linear(1, 1, bias=False), cast(Any, (candidate, steps))
        nn.init.constant_(module.weight, steps)
        return Built(candidate=candidate, module=module, model=model)

    def scored(self, model: Any) -> Scored:
        candidate, steps = model
        rng = self._draw(candidate, f"drop {steps}")
        drop = rng.choice([-0.01, 0.0, 0.004, 0.009, 0.01, 0.02, 0.1, 0.5])
        if self.hopeless and steps >= FINAL_STEPS:
            drop = 0.6
        upper = None
        if self.max_drop is None:
            upper = drop
        elif drop <= self.max_drop:
            upper = drop + rng.choice([0.0, 0.001, 0.005])
        return Scored(metric=0.9 - drop, drop=drop, upper_drop=upper)

    def trial(self, number: int, candidate: Candidate) -> Trial:
        shared: Any = {"number": number, "candidate": candidate, "source": "made"}
        try:
            self.build(candidate, self.loop_schedule)
        except CandidateError as error:
            return Trial(**shared, state=TrialState.FAILED, reason=str(error))
        scored = self.scored((candidate, self.loop_schedule.steps))
        measurement = self._latency(candidate)
        outcome = Outcome(
            metric=scored.metric,
            metric_drop=scored.drop,
            upper_drop=scored.upper_drop,
            latency_ms=measurement.latency_ms,
            latency_source=self.source,
            measurement=measurement,
        )
        return Trial(**shared, state=TrialState.COMPLETE, outcome=outcome)


@pytest.fixture(autouse=True, scope="module")
def quick_files() -> Any:
    """Hundreds of histories write thousands of files that nobody needs on a disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "write_atomically", lambda path, data: path.write_bytes(data))
        yield


ACTIONS = menu(SpaceRules())
CANDIDATES = st.tuples(*[st.sampled_from(ACTIONS)] * GROUPS).map(lambda a: Candidate(actions=a))
GOALS = st.builds(
    Goal,
    max_drop=st.sampled_from([0.0, 0.005, 0.01, 0.03, None]),
    max_latency_ms=st.sampled_from([None, None, 1.0, 4.0, 8.0]),
    min_speedup=st.sampled_from([None, None, 1.2, 3.0]),
).filter(lambda goal: goal != Goal())


def predictor(world: World) -> Callable[[Any], float]:
    """Sometimes right, sometimes not: some changes look as if they gained nothing."""

    def predict(choices: Any) -> float:
        drawn = random.Random(f"{world.seed} {tuple(choices)}")
        return drawn.choice([4.0, 4.01, 6.0])

    return predict


def finals_of(
    world: World, predict: Callable[[Any], float], folder: RunFolder, *, goal: Goal, count: int
) -> Finals:
    made: Any = world
    progress = Progress()
    distiller = Distiller(
        evaluator=made,
        folder=folder,
        steps=FINAL_STEPS,
        protocol=Protocol(),
        progress=progress,
    )
    race = Race(distiller=distiller, goal=goal, baseline_ms=BASELINE_MS)
    contenders = Contenders(evaluator=made, race=race, protocol=Protocol(), progress=progress)
    return Finals(
        evaluator=made,
        race=race,
        goal=goal,
        count=count,
        predict_ms=predict,
        contenders=contenders,
        progress=progress,
    )


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    candidates=st.lists(CANDIDATES, max_size=12, unique=True),
    goal=GOALS,
    count=st.integers(1, 4),
    hopeless=st.booleans(),
    by_hand=st.integers(0, 3),
)
def test_nothing_that_was_seen_and_meets_the_goal_is_faster_than_what_ships(
    seed: int, candidates: list[Candidate], goal: Goal, count: int, hopeless: bool, by_hand: int
) -> None:
    world = World(seed, max_drop=goal.max_drop, hopeless=hopeless)
    trials = [world.trial(number, candidate) for number, candidate in enumerate(candidates)]
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        folder.create()
        finals = finals_of(world, predictor(world), folder, goal=goal, count=count)
        usual = [trial for trial in trials[:by_hand] if trial.outcome is not None]
        for trial in usual:
            finals.race.recover(trial, FINAL_STEPS)
        shipped = finals.choose(trials, by_hand=usual)
        seen = finals.seen(trials)
    assert world.held == 0
    useful = [item for item in seen if item.faster and choice.within_drop(item, goal)]
    met = [item for item in useful if choice.meets(item, goal, baseline_ms=BASELINE_MS)]
    if shipped is None:
        assert not useful, "dense ships although something within the drop was faster"
        return
    found = shipped.seen
    assert found.faster
    assert choice.within_drop(found, goal)
    if met:
        assert choice.meets(found, goal, baseline_ms=BASELINE_MS)
    if goal.max_drop is None and met:
        assert all(found.drop <= other.drop for other in met)
    else:
        pool = met or useful
        assert all(found.latency_ms <= other.latency_ms * (1 + choice.ALIKE) for other in pool)
        fastest_ms = min(other.latency_ms for other in pool)
        alike = [item for item in pool if item.latency_ms <= fastest_ms * (1 + choice.ALIKE)]
        assert all(found.drop <= other.drop for other in alike)
    assert shipped.built.candidate == found.candidate
    for trial in usual:
        recovered = finals.race.of(trial)
        if recovered is not None and recovered.latency_ms < found.latency_ms:
            assert recovered.steps >= found.steps or not finals.race.may_meet(trial, found.steps)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), candidate=CANDIDATES)
def test_what_is_undone_costs_neither_time_nor_accuracy(seed: int, candidate: Candidate) -> None:
    world = World(seed, max_drop=0.01, hopeless=False)
    before = world.trial(0, candidate).outcome
    assume(before is not None)
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        folder.create()
        made: Any = world
        distiller = Distiller(
            evaluator=made, folder=folder, steps=1, protocol=Protocol(), progress=Progress()
        )
        undone = distiller.reverted(candidate, predictor(world))
    after = world.trial(0, undone).outcome
    assert before is not None
    assert after is not None
    assert after.latency_ms <= before.latency_ms * (1 + distil.MIN_GAIN)
    assert after.metric_drop <= before.metric_drop
    if undone != candidate:
        timed, timed_after = (
            world.timed_for_long(each, Protocol()) for each in (candidate, undone)
        )
        assert timed_after.ratio <= timed.ratio * (1 + distil.MIN_GAIN)
    target(float(undone != candidate))


def seen(**changes: Any) -> Seen:
    usual = Seen(candidate=DENSE, steps=20, latency_ms=5.0, faster=True, drop=0.0, upper_drop=0.002)
    return replace(usual, **changes)


def test_a_drop_is_within_the_goal_only_with_its_bound() -> None:
    goal = Goal(max_drop=0.01)
    assert choice.within_drop(seen(upper_drop=0.01), goal)
    assert not choice.within_drop(seen(drop=0.009, upper_drop=0.011), goal)
    assert not choice.within_drop(seen(drop=0.02, upper_drop=None), goal)


def test_of_latencies_that_no_measurement_tells_apart_the_most_accurate_ships() -> None:
    goal = Goal(max_drop=0.01)
    fast = seen(latency_ms=5.0, drop=0.006, upper_drop=0.008)
    alike = seen(latency_ms=5.0 * (1 + choice.ALIKE), drop=0.002, upper_drop=0.004)
    slower = seen(latency_ms=5.0 * (1 + 2 * choice.ALIKE), drop=-0.01, upper_drop=0.0)
    assert choice.best([slower, fast, alike], goal, baseline_ms=BASELINE_MS) == alike
    assert choice.best([slower, fast], goal, baseline_ms=BASELINE_MS) == fast


def test_where_the_latency_is_missed_the_fastest_within_the_drop_ships() -> None:
    goal = Goal(max_drop=0.01, min_speedup=4.0)
    slow, fast = seen(latency_ms=6.0), seen(latency_ms=5.0)
    reckless = seen(latency_ms=1.0, drop=0.3, upper_drop=None)
    assert choice.best([slow, reckless, fast], goal, baseline_ms=BASELINE_MS) == fast


def test_what_was_seen_is_said_when_the_dense_network_ships() -> None:
    goal = Goal(max_drop=0.01)
    reckless = seen(drop=0.3, upper_drop=None, latency_ms=2.5)
    text = choice.summary([reckless, seen(faster=False)], goal)
    assert "1 of 2 networks" in text
    assert "+0.3000" in text
    failed = choice.summary([seen(faster=False)], goal, failures=["build: no kernel", "x"])
    assert "none of 1 networks" in failed
    assert "2 failed, the first: build: no kernel" in failed


def test_a_candidate_of_the_search_ships_when_every_finalist_misses(tmp_path: Path) -> None:
    world = World(3, max_drop=0.02, hopeless=True)
    goal = Goal(max_drop=0.02)
    candidates = [Candidate(actions=(action, KEEP, KEEP)) for action in ACTIONS[1:]]
    trials = [world.trial(number, candidate) for number, candidate in enumerate(candidates)]
    folder = RunFolder(tmp_path)
    folder.create()
    finals = finals_of(
        world, lambda choices: 10.0 - sum(map(bool, choices)), folder, goal=goal, count=2
    )
    shipped = finals.choose(trials, by_hand=[])
    assert shipped is not None
    assert shipped.seen.steps == world.loop_schedule.steps
    assert {item.steps for item in finals.seen(trials)} <= {
        20,
        *(rung * FINAL_STEPS for rung in range(1, FINAL_RUNGS + 1)),
    }


def test_a_candidate_that_was_lucky_on_few_samples_gives_way(tmp_path: Path) -> None:
    """With a budget alone the most accurate ships, as it is scored on all samples."""
    world = World(3, max_drop=None, hopeless=False)
    goal = Goal(min_speedup=1.01)
    pairs = itertools.product(ACTIONS[1:], ACTIONS)
    candidates = [Candidate(actions=(*pair, KEEP)) for pair in pairs]
    trials = [world.trial(number, candidate) for number, candidate in enumerate(candidates)]
    able = [t for t in trials if t.outcome is not None and t.outcome.latency_ms < 9]
    lucky = [replace(t, outcome=replace(t.outcome, metric_drop=-0.02)) for t in able if t.outcome]
    assert len(lucky) > 1
    folder = RunFolder(tmp_path)
    folder.create()
    finals = finals_of(world, lambda choices: 1.0, folder, goal=goal, count=0)
    shipped = finals.choose(lucky, by_hand=[])
    true = {
        trial.candidate: world.scored((trial.candidate, world.loop_schedule.steps)).drop
        for trial in lucky
    }
    assert len(set(true.values())) > 1
    assert shipped is not None
    assert shipped.seen.drop == true[shipped.seen.candidate] == min(true.values())
