"""``--dry-run`` tells what a run would do: it writes nothing, asks no target, and is honest."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_identity import StopsAt, snapshot
from tiny import HERE, MINI, START, Said, environment, inside

import hwloop
from hwloop.run.result import BY_HAND

Capsys = pytest.CaptureFixture[str]
SMALL = ("--evaluations", "2", "--loop-steps", "1", "--final-steps", "2", "--finalists", "1")
SMALL = (*SMALL, "--max-drop", "0.3")
MINE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import helper_of_dry_runs
from tiny import MiniTask
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run, one that was stopped in its search, and a table."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "my.py").write_text(MINE)
    (folder / "helper_of_dry_runs.py").touch()
    options: dict[str, Any] = {"target": "fake", "evaluations": 2, "loop_steps": 1, "finalists": 1}
    options |= {"final_steps": 2, "max_drop": 0.3, "task": f"{folder / 'my.py'}:MiniTask"}
    hwloop.optimize(run=folder / "finished", table=folder / "rows.sqlite", **options)
    with pytest.raises(KeyboardInterrupt):
        hwloop.optimize(run=folder / "stopped", progress=StopsAt("search"), **options)
    for left in folder.rglob("__pycache__"):
        shutil.rmtree(left)
    return folder


@pytest.fixture
def project(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(kept, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def asked(capsys: Capsys, *arguments: str) -> Said:
    return inside(capsys, "optimize", "--task", "my.py:MiniTask", *arguments, "--dry-run", "--json")


def plan(capsys: Capsys, *arguments: str) -> dict[str, str]:
    said = asked(capsys, *arguments)
    assert said.code == 0, said.err
    found: dict[str, str] = json.loads(said.out)
    return found


def seconds(found: dict[str, str]) -> float:
    match = re.fullmatch(r"about (\d+) (s|minutes)", found["time"])
    assert match is not None, found["time"]
    return float(match[1]) * (60 if match[2] == "minutes" else 1)


WITH_TABLE = (*SMALL, "--table", "rows.sqlite")
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "new": ((*SMALL, "--target", "fake", "--run", "new"), "new (new)"),
    "finished": ((*WITH_TABLE, "--target", "fake", "--run", "finished"), "finished (finished)"),
    "extended": (
        (*WITH_TABLE, "--target", "fake", "--run", "finished", "--evaluations", "9"),
        "finished (resumes)",
    ),
    "stopped": ((*SMALL, "--target", "fake", "--run", "stopped"), "stopped (resumes)"),
    "a board": ((*SMALL, "--target", "jetson-orin", "--run", "new"), "new (new)"),
    "a host": ((*SMALL, "--target", "cpu", "--host", "me@nowhere", "--run", "new"), "new (new)"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_device")
def test_nothing_is_written_and_no_target_is_asked(
    name: str, project: Path, capsys: Capsys
) -> None:
    arguments, folder = CASES[name]
    before = snapshot(project)
    found = plan(capsys, *arguments)
    assert found["run folder"] == folder
    assert snapshot(project) == before
    assert {"target", "latency table", "time", "disk", "goal", "evaluations"} <= set(found)


def test_widths_that_stay_are_told_with_their_reason(project: Path, capsys: Capsys) -> None:
    found = plan(capsys, *SMALL, "--target", "fake", "--run", "new")
    assert re.fullmatch(
        r"1, as \S+: the network's output has this width", found["widths that stay"]
    )


def nothing(project: Path) -> None:
    pass


def another_metric(project: Path) -> None:
    lines = "class MiniTask(MiniTask):\n    def metric(self, *given): return 0.5"
    (project / "my.py").write_text(MINE + lines)


def lost_configuration(project: Path) -> None:
    another_metric(project)
    (project / "stopped" / "config.json").unlink()


def damaged(project: Path) -> None:
    (project / "stopped" / "config.json").write_text("{")


CHANGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "other settings": (nothing, ("--seed", "1"), "seed: 0 there, 1 now"),
    "less": (nothing, ("--evaluations", "1"), "it may be raised, not lowered"),
    "another metric": (another_metric, (), "the task's metric"),
    "lost configuration": (lost_configuration, (), "the task's metric"),
    "damaged": (damaged, (), "config.json"),
    "a busy folder": (nothing, (), "another hwloop works in stopped"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.usefixtures("no_device")
def test_what_the_run_would_refuse_is_refused(name: str, project: Path, capsys: Capsys) -> None:
    change, extra, named = CHANGES[name]
    change(project)
    before = snapshot(project)
    with (project / "stopped" / ".lock").open("rb") as lock:
        if name == "a busy folder":
            fcntl.flock(lock, fcntl.LOCK_EX)
        said = asked(capsys, *SMALL, "--target", "fake", "--run", "stopped", *extra)
    assert said.code == 2, said.out
    assert named in said.err
    assert "  fix: " in said.err
    assert snapshot(project) == before


@pytest.mark.usefixtures("no_device")
def test_missing_rows_are_counted(project: Path, capsys: Capsys) -> None:
    def rows(*arguments: str) -> tuple[int, int]:
        text = plan(capsys, *SMALL, "--run", "new", *arguments)["latency table"]
        total, missing = re.findall(r"\d+", text)
        return int(total), int(missing)

    total, missing = rows("--target", "fake")
    assert missing == total > 0
    assert rows("--target", "fake", "--table", "none.sqlite") == (total, total)
    assert rows("--target", "fake", "--table", "rows.sqlite") == (total, 0)
    assert rows("--target", "cpu", "--table", "rows.sqlite")[1] > 0
    assert not (project / "none.sqlite").exists()


def test_usual_settings_that_come_to_the_same_network_are_counted_once(
    project: Path, capsys: Capsys
) -> None:
    found = plan(capsys, *WITH_TABLE, "--target", "fake", "--run", "finished")
    match = re.fullmatch(r"(\d+) and (\d+) usual settings, (\d+) done", found["evaluations"])
    assert match is not None, found["evaluations"]
    searched, usual, done = map(int, match.groups())
    assert searched + usual == done
    assert 0 < usual < len(BY_HAND)  # of a network without blocks, as none can be left out


def test_homes_and_ssh_are_left_alone(project: Path, tmp_path: Path) -> None:
    """In a process of its own: what libraries write when they are loaded counts as well."""
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ssh").write_text(f"#!/bin/sh\necho called > {tmp_path / 'called'}\n")
    (tools / "ssh").chmod(0o755)
    extra = {name: str(place) for name, place in places.items()}
    path = f"{tools}:{environment()['PATH']}"
    before = snapshot(project)
    done = subprocess.run(
        [*START, "optimize", "--task", "my.py:MiniTask", *SMALL, "--target", "jetson-orin"]
        + ["--dry-run"],
        capture_output=True,
        text=True,
        env=environment(**extra, PATH=path),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hwloop-run (new)" in done.stdout
    assert snapshot(project) == before
    assert [list(place.rglob("*")) for place in places.values()] == [[], [], []]
    assert not (tmp_path / "called").exists()


def test_onnx_runtime_reports_nothing_to_its_makers() -> None:
    code = (
        "import os\nos.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "from hwloop.runtimes.host import part_of_onnxruntime\n"
        "part_of_onnxruntime('onnxruntime', needed_for='a test needs')\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.split() == ["1"]


def test_the_time_is_about_right(project: Path, capsys: Capsys) -> None:
    """On the fake target, where nothing waits for a device."""
    many = ("--evaluations", "4", "--loop-steps", "10", "--final-steps", "20", "--finalists", "2")
    arguments = (*many, "--max-drop", "0.3", "--target", "fake", "--run", "new")
    expected = seconds(plan(capsys, *arguments))
    started = time.monotonic()
    said = inside(capsys, "optimize", "--task", MINI, *arguments)
    took = time.monotonic() - started
    assert said.code in (0, 3), said.err
    # Within 3 on an idle machine; tests share theirs with others, whose load comes and goes.
    assert took / 6 < expected < took * 6 + 2
    again = ("--task", f"{HERE / 'tiny.py'}:MiniTask", *arguments, "--dry-run", "--json")
    finished = json.loads(inside(capsys, "optimize", *again).out)
    assert seconds(finished) < expected
