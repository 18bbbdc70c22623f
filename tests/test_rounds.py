"""A run's search: usual settings on equal terms, a full recovery after each round, nothing lost."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny import MINI

import hwloop
from hwloop.compress.recover import Recovery
from hwloop.compress.training import Schedule
from hwloop.measure.predict import Predictor
from hwloop.measure.progress import Progress
from hwloop.measure.store import Store
from hwloop.measure.trial import Trial
from hwloop.parsing import to_json
from hwloop.run import evaluate, rounds
from hwloop.run.result import BY_HAND, USUAL
from hwloop.run.rounds import Rounds
from hwloop.run.usual import FIRST_LESSONS
from hwloop.run.work import Work
from hwloop.search import methods
from hwloop.search.problem import Problem
from hwloop.task import load_model
from hwloop.tasks.load import load_task

OPTIONS: dict[str, Any] = {
    "target": "fake",
    "loop_steps": 1,
    "final_steps": 2,
    "finalists": 3,
    "max_drop": 0.02,
    "evaluations": 6,
}


@pytest.fixture(autouse=True, scope="module")
def short_rounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "ROUNDS", (2,))
        yield


@pytest.fixture(scope="module")
def whole(short_rounds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    run = tmp_path_factory.mktemp("rounds") / "whole"
    optimized(run)
    return run


def optimized(run: Path, **options: Any) -> dict[str, Any]:
    return hwloop.optimize(task=MINI, run=run, **{**OPTIONS, **options})


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def decisions(run: Path) -> list[tuple[str, str]]:
    """What was evaluated and what was recovered fully, in order."""
    found = []
    for event in events(run):
        if event["event"] == "trial":
            found.append(("trial", str(event["number"])))
        elif event["event"] == "finalist":
            found.append(("finalist", json.dumps([event["candidate"], event["steps"]])))
    return found


class StopsAt(Progress):
    """Ctrl-C when so many full recoveries have begun."""

    def __init__(self, recoveries: int) -> None:
        self.left = recoveries

    def stage(self, name: str) -> None:
        self.left -= name == "distillation"
        if name == "distillation" and self.left == 0:
            raise KeyboardInterrupt


def reported(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def test_the_first_round_is_taught_by_two_usual_settings_and_the_others_follow_it(
    whole: Path,
) -> None:
    kinds = [kind for kind, _ in decisions(whole)]
    usual = kinds.index("finalist")
    assert kinds[:usual] == ["trial"] * usual
    assert FIRST_LESSONS < usual <= len(BY_HAND)
    searched = kinds.index("trial", usual)
    assert kinds[usual:searched] == ["finalist"] * FIRST_LESSONS
    recovered = kinds.index("finalist", searched)
    assert kinds[searched:recovered] == ["trial"] * rounds.ROUNDS[0]
    others = usual - FIRST_LESSONS
    assert kinds[recovered : recovered + others] == ["finalist"] * others


def searched_first(run: Path) -> tuple[list[Trial], list[dict[str, Any]]]:
    """What was evaluated before the search's first full recovery, and what was recovered then."""
    with Store(run / "hwloop.sqlite", read_only=True) as store:
        trials = [trial for trial in store.trials() if trial.source != USUAL]
    kept = events(run)
    first = next(at for at, event in enumerate(kept) if is_searched(event, trials))
    after = next(at for at in range(first, len(kept)) if kept[at]["event"] == "finalist")
    count = sum(event["event"] == "trial" for event in kept[first:after])
    return trials[:count], kept[after:]


def is_searched(event: dict[str, Any], trials: list[Trial]) -> bool:
    return event["event"] == "trial" and event["number"] == trials[0].number


def test_a_search_begins_with_plans_and_recovers_the_bolder_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that nothing was searched for is what people find hardest to beat by hand."""
    monkeypatch.setattr(rounds, "ROUNDS", (4,))
    monkeypatch.setattr(rounds, "PLANNED", (0.2, 1.0))  # so small a network has no bolder ones
    optimized(tmp_path / "run")
    plans, then = searched_first(tmp_path / "run")
    assert 1 <= len(plans) <= len(rounds.PLANNED)
    assert {trial.source for trial in plans} == {rounds.PLAN}
    assert then[0]["candidate"] == to_json(plans[-1].candidate)
    others = itertools.takewhile(lambda event: event["event"] != "finalist", then[1:])
    evaluated = sum(event["event"] == "trial" for event in others)
    assert evaluated == 4 - len(plans)  # they are of the first round


def test_without_a_limit_on_the_drop_nothing_is_planned_for_it(tmp_path: Path) -> None:
    optimized(tmp_path / "run", max_drop=None, min_speedup=1.05)
    with Store(tmp_path / "run" / "hwloop.sqlite", read_only=True) as store:
        assert rounds.PLAN not in {trial.source for trial in store.trials()}


def test_what_a_round_has_measured_is_in_the_prediction_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    known: list[int] = []

    def noting(problem: Problem, *given: Any, **named: Any) -> None:
        assert isinstance(problem.predict_ms, Predictor)
        fitted.append(problem.predict_ms.fit.observations)
        known.append(len(problem.known) - 1)  # the dense network is in the fit anyway
        methods.METHODS["random"](problem, *given, **named)

    monkeypatch.setattr(rounds, "METHODS", {"random": noting})
    optimized(tmp_path / "run", agent="random")
    assert len(fitted) >= 3
    assert [after - before for before, after in pairwise(fitted)] == [
        after - before for before, after in pairwise(known)
    ]
    assert fitted[-1] > fitted[0] >= len(BY_HAND)


def test_usual_settings_have_the_split_and_the_steps_of_what_ships(whole: Path) -> None:
    report = reported(whole)
    assert report["comparisons"]
    for found in report["comparisons"].values():
        assert found["metric_split"] == "test"
        assert found["recovery_steps"] >= 2
        beaten = found["latency_ms"] >= report["best"]["latency_ms"] * 0.98
        assert beaten or found["search_drop"] > OPTIONS["max_drop"] / 2


@pytest.fixture(scope="module")
def lenient(short_rounds: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run with one candidate to search and all drops allowed."""
    run = tmp_path_factory.mktemp("lenient") / "run"
    return optimized(run, evaluations=1, max_drop=0.9, agent="random")


def test_a_usual_setting_that_is_best_ships(lenient: dict[str, Any]) -> None:
    """The smallest setting is the fastest."""
    report = lenient
    trained = [each for each in report["comparisons"].values() if "failed" not in each]
    fastest = min(found["latency_ms"] for found in trained)
    assert report["best"]["latency_ms"] <= fastest * 1.02
    name = report["best"]["usual_setting"]
    if name is not None:  # one network, one figure
        assert report["comparisons"][name]["speedup_ci95"] == report["best"]["speedup_ci95"]


def test_a_usual_setting_that_is_slower_than_one_within_the_goal_is_not_trained(
    lenient: dict[str, Any], tmp_path: Path
) -> None:
    comparisons = lenient["comparisons"]
    trained = {name: each for name, each in comparisons.items() if "failed" not in each}
    assert 0 < len(trained) < len(comparisons)
    for name in comparisons.keys() - trained.keys():
        said = re.fullmatch(
            r"not trained: at ([\d.]+)x it is slower than (.+), which meets the goal",
            comparisons[name]["failed"],
        )
        assert said is not None
        assert float(said[1]) < trained[said[2]]["speedup"] * 1.02
    hard = optimized(tmp_path / "hard", evaluations=1, max_drop=1e-9, agent="random")
    assert not any("not trained" in str(each) for each in hard["comparisons"].values())


@pytest.mark.parametrize("recoveries", [2, 5])
def test_a_stopped_run_decides_the_rest_as_one_that_was_not_stopped(
    whole: Path, tmp_path: Path, recoveries: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        optimized(tmp_path / "stopped", progress=StopsAt(recoveries))
    resumed = optimized(tmp_path / "stopped")
    assert decisions(tmp_path / "stopped") == decisions(whole)
    assert resumed["best"]["actions"] == reported(whole)["best"]["actions"]


def test_a_best_within_the_goal_is_loadable_as_soon_as_there_is_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        optimized(run, max_drop=0.9, progress=StopsAt(2))
    assert hwloop.load(run, task=MINI) is not None


def test_the_usual_settings_come_before_the_latency_table(tmp_path: Path) -> None:
    class Stops(Progress):
        def stage(self, name: str) -> None:
            if name == "latency table":
                raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        optimized(run, max_drop=0.9, progress=Stops())
    kinds = [kind for kind, _ in decisions(run)]
    assert kinds.count("finalist") == FIRST_LESSONS
    assert hwloop.load(run, task=MINI) is not None


def test_candidates_are_scored_on_few_samples_and_what_may_ship_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "LOOP_SAMPLES", 10)  # of 256
    optimized(tmp_path / "run", evaluations=2)
    with Store(tmp_path / "run" / "hwloop.sqlite", read_only=True) as store:
        metrics = [trial.outcome.metric for trial in store.trials() if trial.outcome is not None]
    assert metrics
    assert all(round(10 * metric, 9).is_integer() for metric in metrics)
    drops = [event["drop"] for event in events(tmp_path / "run") if event["event"] == "finalist"]
    assert all(round(256 * drop, 9).is_integer() for drop in drops)
    assert not all(round(10 * drop, 9).is_integer() for drop in drops)


def test_a_network_that_nothing_was_cut_from_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    recover = Recovery.recover

    def noted(self: Recovery, module: Any, *given: Any, **named: Any) -> Any:
        trained.append(sum(value.numel() for value in module.state_dict().values()))
        return recover(self, module, *given, **named)

    monkeypatch.setattr(Recovery, "recover", noted)
    optimized(tmp_path / "run", evaluations=1)
    network = load_model(load_task(MINI))
    dense = sum(value.numel() for value in network.state_dict().values())
    assert trained
    assert max(trained) < dense


def test_what_is_recovered_for_longer_goes_on_from_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recover = Recovery.recover
    trained: list[tuple[int, int]] = []

    def noted(self: Recovery, module: Any, schedule: Schedule, **named: Any) -> Any:
        trained.append((schedule.steps, named.get("done", 0)))
        return recover(self, module, schedule, **named)

    monkeypatch.setattr(Recovery, "recover", noted)
    optimized(tmp_path / "run", finalists=6, agent="random")
    first = OPTIONS["final_steps"]
    longer = [(steps, done) for steps, done in trained if steps > first]
    assert longer
    assert all(done == steps - first for steps, done in longer)


def test_a_run_whose_time_is_up_repeats_what_it_decided(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    before, first = decisions(run), reported(run)
    monkeypatch.setattr(Work, "out_of_time", property(lambda self: True))
    again = optimized(run)
    assert decisions(run) == before
    assert again["comparisons"] == first["comparisons"]
    assert again["best"]["actions"] == first["best"]["actions"]


def test_few_are_asked_for_before_the_next_recovery_once_much_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[int] = []

    def noted(self: Rounds) -> None:
        taught.append(self.trials.searched)

    monkeypatch.setattr(rounds, "ROUNDS", (2, 1))
    monkeypatch.setattr(Rounds, "_teach", noted)
    optimized(tmp_path / "run", evaluations=6)
    assert taught == [2, 3, 5, 6]
    counts = range(8)
    assert [rounds.lessons_in(count) for count in counts] == [1, 1, 2, 3, 3, 4, 5, 5]
