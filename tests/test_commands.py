"""Commands that hwloop prints: typed as they are, in any folder, they do what is said of them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_bench_files import QUICK
from test_identity import StopsAt
from tiny import HERE, MINI, Said, inside

import hwloop
from hwloop.records import Goal
from hwloop.run import config
from hwloop.run.settings import Settings

Capsys = pytest.CaptureFixture[str]
MINE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from tiny import MiniNet, MiniTask, network
def net(scale): return network(MiniNet)
"""
FAKE = 'description = "mine"\nruntime = "fake"\n[space]\nalign = 8\n'
SHORT = "".join(
    f"[protocol.{stage}]\nwarmup_s = 0.001\nrounds = 1\nsample_s = 0.0001\nmin_samples = 10\n"
    "max_samples = 20\ntime_limit_s = 0.02\n"
    for stage in ("row", "loop", "final")
)
RUN = Path("runs/it's mine")
SMALL = ("--agent", "random", "--evaluations", "1", "--loop-steps", "1")
SMALL = (*SMALL, "--final-steps", "2", "--finalists", "1")
SMALL = (*SMALL, "--max-drop", "0.3")


def typed(capsys: Capsys, command: str) -> Said:
    """What happens when exactly this is typed."""
    first, *words = shlex.split(command)
    assert first == "hwloop"
    return inside(capsys, *words)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run was stopped in its search; every path was typed relative to it."""
    folder = tmp_path_factory.mktemp("stopped") / "the project"
    folder.mkdir()
    (folder / "my.py").write_text(MINE)
    (folder / "mine.toml").write_text(FAKE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        begin()
    return folder


def begin() -> None:
    """Here, until the search has asked for its first candidate."""
    with pytest.raises(KeyboardInterrupt):
        hwloop.optimize(
            "my.py:net(scale=1.5)",
            task="my.py:MiniTask",
            target="mine.toml",
            run=RUN,
            table="rows.sqlite",
            max_drop=0.25,
            min_speedup=1.01,
            reward="linear",
            lam=0.125,
            agent="random",
            evaluations=4,
            time_limit_s=100000.0625,
            finish_s=0.125,
            seed=7,
            loop_steps=1,
            finalists=2,
            final_steps=1,
            progress=StopsAt("search"),
        )


@pytest.fixture
def project(stopped: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "the project"
    shutil.copytree(stopped, folder, symlinks=True)
    return folder


def test_the_command_that_goes_on_finishes_the_run(
    project: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    said = inside(capsys, "report", RUN)
    assert said.code == 0, said.err
    first, best, last = said.out.splitlines()
    assert first == "not finished: search, 5 of 8 candidates evaluated (0 failed)"
    assert best.startswith("best ")
    done = typed(capsys, last.removeprefix("go on: "))
    assert done.code in (0, 3), done.err
    assert "8 candidates by random" in inside(capsys, "report", RUN).out
    monkeypatch.chdir(RUN)  # a run's own folder has a name as well
    words = shlex.split(last.removeprefix("go on: hwloop "))
    assert inside(capsys, *words[:-1], ".").code == done.code
    assert json.loads(Path("report.json").read_text())["command"].endswith("-again'")


def test_it_is_the_same_typed_elsewhere_and_so_is_what_computes_the_figure_again(
    project: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HWLOOP_TARGET", "cpu")
    run = project / RUN
    found = json.loads(inside(capsys, "report", run, "--json").out)
    assert found.pop("best").startswith("best ")
    command = found.pop("command")
    counts = {"evaluations": 5, "of": 8, "failed": 0}
    assert found == {"finished": False, "stage": "search", **counts}
    monkeypatch.chdir("/")  # where neither the run nor the report was typed
    assert typed(capsys, command).code in (0, 3)
    first = json.loads(inside(capsys, "report", run, "--json").out)
    assert first["search"]["evaluations"] == 8
    assert typed(capsys, first["command"]).code in (0, 3)
    again = json.loads((run.parent / f"{run.name}-again" / "report.json").read_text())
    for figures in ("best", "baseline", "comparisons"):
        assert again[figures] == first[figures]


def test_a_run_that_has_hardly_begun_says_so(tmp_path: Path, capsys: Capsys) -> None:
    with pytest.raises(KeyboardInterrupt):
        hwloop.optimize(task=MINI, target="fake", run=tmp_path, progress=Stops())
    said = inside(capsys, "report", tmp_path)
    assert said.code == 0
    assert said.out.startswith("not finished: baseline, 0 of 53 candidates evaluated (0 failed)\n")
    assert "no network is faster yet" in said.out


class Stops(StopsAt):
    """Ends a run when its first stage begins."""

    def __init__(self) -> None:
        super().__init__(None)

    def stage(self, name: str) -> None:
        if name != "baseline":
            raise KeyboardInterrupt


def test_every_setting_comes_back_from_the_command(tmp_path: Path, capsys: Capsys) -> None:
    """Whatever a run was asked for: the printed command asks for the same."""
    changed: dict[str, Any] = {
        "model": f'{tmp_path / "my.py"}:net(scale="a b")',
        "task": "images",
        "data": str(tmp_path / "data"),
        "target": "jetson-orin",
        "goal": Goal(max_drop=None, max_latency_ms=1e-05, min_speedup=2.5),
        "host": "me@board:2222",
        "agent": "planner",
        "reward": "linear",
        "lam": 1e-06,
        "evaluations": 49,
        "time_limit_s": 1e-05,
        "seed": 1,
        "table": str(tmp_path / "rows.sqlite"),
        "loop_steps": 21,
        "finalists": 5,
        "final_steps": 301,
        "finish_s": 600.5,
    }
    settings = Settings(**changed)
    run = tmp_path / "run"
    seen: list[Settings] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hwloop.run.dry_run.config.settle", lambda folder, found, inputs: seen.append(found)
        )
        patch.setattr("hwloop.run.dry_run.load_task", lambda *given, **named: None)
        patch.setattr("hwloop.run.dry_run.load_model", lambda *given: None)
        patch.setattr("hwloop.run.dry_run.checked", lambda *given: (b"", {}, ()))
        patch.setattr("hwloop.run.dry_run._known", lambda *given: (_ for _ in ()).throw(ValueError))
        stored = config.portable(settings, run)
        typed(capsys, config.command(stored, run) + " --dry-run")
    assert seen == [stored]
    # None of them has its default, so none was left out by chance; simulate excludes the host.
    defaults = Settings(model=None, task="demo", data=None, target="cpu", goal=Goal(max_drop=0.01))
    same = {name for name, value in vars(defaults).items() if value == getattr(settings, name)}
    assert same == {"simulate"}
    # HWLOOP_TARGET may name another target where the command is typed.
    assert "--target cpu " in config.command(defaults, run)


def test_a_rehearsals_figure_is_computed_again(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    board = ("--target", "jetson-orin", "--simulate")
    arguments = ("--task", MINI, *board, *SMALL, "--run", "run", "--json")
    first = json.loads(inside(capsys, "optimize", *arguments).out)
    again = typed(capsys, first["command"])
    assert again.code in (0, 3), again.err
    report = json.loads((tmp_path / "run-again" / "report.json").read_text())
    assert report["best"] == first["best"]
    assert report["baseline"] == first["baseline"]
    assert f"measure again: `{first['command']}`" in (tmp_path / "run" / "report.md").read_text()


def test_a_measured_figure_is_measured_again(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.toml").write_text(QUICK + SHORT)
    monkeypatch.chdir(tmp_path)
    arguments = ("--task", MINI, "--target", "short.toml", *SMALL, "--run", "run", "--json")
    said = inside(capsys, "optimize", *arguments)
    assert said.code in (0, 3), said.err
    command = json.loads(said.out)["command"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = typed(capsys, f"{command} --json")
    assert again.code == 0, again.err
    dense, best = json.loads(again.out)
    assert dense["file"] == str(tmp_path / "run" / "dense.onnx")
    assert best["file"] == str(tmp_path / "run" / "best" / "model.onnx")
    assert best["latency_ms"] > 0
