"""``--finish``: the finals go on for a time instead of a number, and no longer than they gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_race import STEPS, Made, race, trial
from tiny import MINI, inside

import hwloop
from hwloop.errors import ExitCode
from hwloop.measure.store import Store
from hwloop.run.clock import FinalsClock
from hwloop.run.memory import Notes
from hwloop.run.race import FINAL_RUNGS, MOST_RUNGS

OPTIONS: dict[str, Any] = {
    "task": MINI,
    "target": "fake",
    "agent": "random",
    "loop_steps": 0,
    "final_steps": 1,
    "max_drop": None,
    "min_speedup": 1.01,
    "evaluations": 20,
}


def finalists(run: Path) -> int:
    lines = (run / "events.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "finalist" for line in lines)


def test_time_is_counted_over_all_processes_and_what_was_decided_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("hwloop.run.clock.time.monotonic", lambda: now[0])
    with Store(tmp_path / "store.sqlite") as store:
        clock = FinalsClock(Notes(store), 10.0)
        assert clock.allows(0)
        now[0] += 6.0
        clock.keep(1)
        again = FinalsClock(Notes(store), 10.0)
        now[0] += 3.0
        assert again.allows(1)
        now[0] += 2.0
        assert not again.allows(1)
        assert again.allows(0)  # the first was decided before the time was up
        more = FinalsClock(Notes(store), 20.0)
        assert more.allows(1)


def test_more_rungs_are_there_where_time_decides() -> None:
    close = trial(0, 4.0, 0.05)
    steps = [rung * STEPS for rung in range(1, FINAL_RUNGS + 1)]
    made = Made({(close.candidate, each): 0.014 - each / STEPS * 0.001 for each in steps})
    for rungs in (FINAL_RUNGS, MOST_RUNGS):
        found = race(made, rungs=rungs)
        for each in steps:
            found.recover(close, each)
        entry = found.next([close], left=rungs)
        if rungs == FINAL_RUNGS:
            assert entry is None
        else:
            assert entry is not None
            assert entry.steps == (FINAL_RUNGS + 1) * STEPS


def test_the_finals_end_with_the_time_and_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    hwloop.optimize(run=short, finish_s=1e-6, **OPTIONS)
    report = hwloop.optimize(run=long, finish_s=600.0, **OPTIONS)
    assert finalists(short) < finalists(long)
    done, ships = finalists(long), (long / "best").resolve()
    again = hwloop.optimize(run=long, finish_s=600.0, **OPTIONS)
    assert finalists(long) == done
    assert (long / "best").resolve() == ships
    assert again["best"] == report["best"]


def test_a_run_that_was_begun_without_it_may_be_given_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    hwloop.optimize(run=run, finalists=1, **OPTIONS)
    few = finalists(run)
    hwloop.optimize(run=run, finalists=1, finish_s=600.0, **OPTIONS)
    assert finalists(run) > few


def test_it_may_be_raised_and_is_part_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hwloop.optimize(run=run, finish_s=1e-6, **OPTIONS)
    few = finalists(run)
    options = (
        "--task",
        MINI,
        "--target",
        "fake",
        "--agent",
        "random",
        "--loop-steps",
        "0",
        "--final-steps",
        "1",
    )
    goal = ("--max-drop", "none", "--min-speedup", "1.01")
    wanted = (*goal, "--evaluations", "20", "--finish", "10m", "--run", run)
    done = inside(capsys, "optimize", *options, *wanted)
    assert done.code in (0, 3), done.err
    assert finalists(run) > few
    assert json.loads((run / "config.json").read_text())["finish_s"] == 600.0
    less = inside(capsys, "optimize", *options, *wanted[:-4], "--finish", "5m", "--run", run)
    none = inside(capsys, "optimize", *options, *goal, "--evaluations", "20", "--run", run)
    for said in (less, none):
        assert said.code == ExitCode.USAGE
        assert "finish" in said.err
