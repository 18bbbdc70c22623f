"""A finished run is given more: it goes on from there, keeps what it has, and survives Ctrl-C."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MINI, MiniTask, inside

import hwloop
from hwloop.measure.progress import Progress
from hwloop.measure.store import Store
from hwloop.run.result import USUAL

Capsys = pytest.CaptureFixture[str]
OPTIONS: dict[str, Any] = {
    "target": "fake",
    "agent": "random",
    "loop_steps": 0,
    "final_steps": 0,
    "finalists": 1,
    "max_drop": 0.3,
}
ON_COMMAND = ("--target", "fake", "--agent", "random", "--loop-steps", "0", "--max-drop", "0.3")


class StopsAfter(Progress):
    """Ctrl-C in the search, after so many new trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials
        self.now = ""

    def stage(self, name: str) -> None:
        self.now = name

    def advance(self, done: int, total: int, detail: str = "") -> None:
        self.left -= self.now == "search"
        if self.now == "search" and self.left == 0:
            raise KeyboardInterrupt


def extended(run: Path, *, task: str = MINI, **options: Any) -> dict[str, Any]:
    return hwloop.optimize(task=task, run=run, **{**OPTIONS, **options})


def trials(run: Path) -> dict[int, str]:
    """Every trial's number and digest."""
    with Store(run / "hwloop.sqlite", read_only=True) as store:
        return {trial.number: trial.candidate.digest() for trial in store.trials()}


def searched(run: Path) -> int:
    with Store(run / "hwloop.sqlite", read_only=True) as store:
        return sum(trial.source != USUAL for trial in store.trials())


def finalists(run: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{run / 'hwloop.sqlite'}?mode=ro", uri=True) as db:
        found = db.execute("SELECT value FROM records WHERE kind LIKE 'finalist/%'").fetchall()
    return [json.loads(text) for (text,) in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three evaluations; copy it to change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    extended(run, evaluations=3)
    assert searched(run) == 3
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


def test_exactly_as_many_candidates_as_asked_for_are_added(tmp_path: Path) -> None:
    """Also by an agent that first asks for the usual settings."""
    run = tmp_path / "run"
    extended(run, evaluations=2, agent="dqn-vanilla")
    assert searched(run) == 2
    before = trials(run)
    extended(run, evaluations=5, agent="dqn-vanilla")
    assert searched(run) == 5
    assert trials(run).items() >= before.items()


def test_it_goes_on_after_ctrl_c_and_tells_how_far_it_is(run: Path, capsys: Capsys) -> None:
    before, ships = trials(run), (run / "best").resolve()
    first = json.loads((run / "report.json").read_text())
    with pytest.raises(KeyboardInterrupt):
        extended(run, evaluations=6, progress=StopsAfter(2))
    between = trials(run)
    assert (run / "best").resolve() == ships  # until other finalists are chosen
    assert between.items() > before.items()
    assert len(between) == len(before) + 2

    said = inside(capsys, "report", run)
    assert said.code == 0
    assert "not finished: search, 9 of 10 candidates evaluated" in said.out
    assert "--evaluations 6" in said.out
    assert hwloop.load(run, task=MINI)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)

    report = extended(run, evaluations=6)
    after = trials(run)
    assert after.items() > between.items()
    assert sorted(after) == list(range(10))
    assert searched(run) == 6
    assert report["search"]["evaluations"] == 10
    assert report["search"]["asked"] == {
        "evaluations": 6,
        "finalists": 1,
        "final_steps": 0,
        "time_limit_s": None,
        "finish_s": None,
    }
    assert report["search"]["wall_s"] > first["search"]["wall_s"]
    assert json.loads(inside(capsys, "report", run, "--json").out) == report


def test_a_best_that_a_kill_kept_from_being_saved_is_saved_on_the_way(run: Path) -> None:
    with sqlite3.connect(run / "hwloop.sqlite") as db:  # as it was before the first was saved
        db.execute("DELETE FROM records WHERE kind = 'run' AND key IN ('best_so_far', 'shipped')")
    (run / "best").unlink()
    with pytest.raises(KeyboardInterrupt):
        extended(run, evaluations=6, progress=StopsAfter(1))
    assert hwloop.load(run, task=MINI)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


def test_an_extension_that_was_stopped_ends_as_one_that_was_not(run: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run, undisturbed, symlinks=True)
    extended(undisturbed, evaluations=6)
    with pytest.raises(KeyboardInterrupt):
        extended(run, evaluations=6, progress=StopsAfter(1))
    extended(run, evaluations=6)
    assert trials(run) == trials(undisturbed)


def test_more_finalists_and_longer_ones_are_distilled(tmp_path: Path) -> None:
    run = tmp_path / "run"
    goal: dict[str, Any] = {"evaluations": 8, "max_drop": None, "min_speedup": 1.01}

    def recovered() -> set[tuple[str, int]]:
        return {(json.dumps(value["candidate"]), value["steps"]) for value in finalists(run)}

    extended(run, **goal)
    kept, before = trials(run), recovered()
    more = extended(run, **goal, finalists=3)
    assert recovered() >= before  # whether more are worth their time, the race decides
    assert more["search"]["asked"]["finalists"] == 3
    longer = extended(run, **goal, finalists=3, final_steps=1)
    assert recovered() > before
    assert {steps for _, steps in recovered()} >= {0, 1}
    assert longer["search"]["asked"]["final_steps"] == 1
    assert trials(run) == kept


@pytest.mark.parametrize(
    ("option", "there", "now"), [("evaluations", 3, 2), ("finalists", 1, None), ("seed", 0, 1)]
)
def test_less_of_anything_and_everything_else_are_refused(
    option: str, there: int, now: int | None, run: Path, capsys: Capsys
) -> None:
    if option == "finalists":
        extended(run, evaluations=3, finalists=2)
        there, now = 2, 1
    given = {"evaluations": 3, "finalists": 1, "seed": 0, "final-steps": 0, option: now}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    before = (run / "config.json").read_bytes()
    said = inside(capsys, "optimize", "--task", MINI, *ON_COMMAND, *words, "--run", run)
    assert said.code == 2, said.err
    assert f"{option}: {there} there, {now} now" in said.err
    assert ("(it may be raised, not lowered)" in said.err) == (option != "seed")
    assert "fix: repeat the first command, or choose another folder: --run NEW" in said.err
    assert (run / "config.json").read_bytes() == before


def test_where_no_more_candidates_exist_none_is_invented(tmp_path: Path) -> None:
    target = tmp_path / "few.toml"
    target.write_text(
        'description = "few"\nruntime = "fake"\n[space]\nalign = 8\nprecisions = ["base"]\n'
    )
    run = tmp_path / "run"
    extended(run, target=str(target), evaluations=1, agent="random")
    report = extended(run, target=str(target), evaluations=500, agent="random")
    assert len(trials(run)) == 4  # two groups, each left alone or halved
    assert report["search"]["asked"]["evaluations"] == 500


def test_what_a_longer_cycle_left_is_not_taken_for_what_two_shorter_ones_left(
    tmp_path: Path,
) -> None:
    """Of as many steps in all; the report tells the metric of the weights that ship."""
    run = tmp_path / "run"
    goal: dict[str, Any] = {"evaluations": 8, "max_drop": None, "min_speedup": 1.01, "finalists": 4}
    for final_steps in (20, 40):
        report = extended(run, **goal, final_steps=final_steps)
        with torch.no_grad():
            inputs, labels = MiniTask().test().batch(range(128))
            found = hwloop.load(run, task=MINI).eval()(inputs).argmax(dim=1) == labels
        assert report["best"]["metric"] == pytest.approx(found.float().mean().item(), abs=0.02)
    cycles = {(value["steps"], value["cycle_steps"]) for value in finalists(run)}
    assert cycles >= {(40, 20), (40, None)}
