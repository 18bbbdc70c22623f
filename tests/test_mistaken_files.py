"""Folders, reports, configurations and profiles that are not what they should be."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import MINI, SPEC, environment, inside, is_refused

import hwloop

Capsys = pytest.CaptureFixture[str]
ON_FAKE = ("optimize", "--task", MINI, "--target", "fake")
GIVEN = ("--max-drop", "0.3", "--evaluations", "1", "--loop-steps", "1", "--final-steps", "2")
GIVEN = (*GIVEN, "--finalists", "1")
PROFILE = """
description = "test"
runtime = "onnxruntime"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my.py").touch()
    return folder


def tree(folder: Path) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if "__pycache__" not in name)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (".", "is no run's folder: it holds 'empty'"),
        ("", "--run is ''"),
        ("  ", "--run is '  '"),
        ("empty", "the folder that you are in"),
        ("home", "the folder that is your home"),
        ("models", "holds 'config.json'|holds 'weights.bin'"),
        ("my.py", "my.py is no folder"),
        ("my.py/run", "my.py is no folder"),
        ("/proc/run", "/proc cannot be written|cannot create the run folder"),
    ],
)
@pytest.mark.usefixtures("no_device")
def test_a_folder_that_is_no_runs_stays_as_it_is(
    run: str, named: str, project: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty", "home", "models"):
        (project / name).mkdir()
    (project / "models" / "config.json").write_text('{"architectures": ["ResNet"]}')
    (project / "models" / "weights.bin").touch()
    monkeypatch.setenv("HOME", str(project / "home"))
    if run == "empty":
        monkeypatch.chdir(project / run)
        run = "."
    before = tree(project)
    said = inside(capsys, *ON_FAKE, "--run", run)
    is_refused(said, "--run ")
    assert re.search(named, said.err), said.err
    assert tree(project) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is named by SPECs; copy it to change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options: dict[str, Any] = {"evaluations": 1, "loop_steps": 1, "final_steps": 2}
    hwloop.optimize(task=MINI, target="fake", run=folder, max_drop=0.3, finalists=1, **options)
    return folder


BOTH = """
import json, sys
from hwloop import cli
for line in json.loads(sys.argv[1]):
    sys.argv = ["hwloop", *line]
    try:
        cli.run()
    except SystemExit as left:
        print("code", left.code, flush=True)
"""


@pytest.fixture
def read_only(finished: Path, tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """The finished run where nothing can be written, and how a command is started to see it so."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    if os.getuid():
        run.chmod(0o555)
        yield run, []
        run.chmod(0o755)
        return
    bind = 'mount -o bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    start = ["unshare", "--mount", "sh", "-c", bind, "-", str(run)]
    if subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a folder read-only")
    yield run, start


def test_a_run_on_a_read_only_disk_is_refused_and_can_be_read(
    read_only: tuple[Path, list[str]],
) -> None:
    run, start = read_only
    again = [*ON_FAKE, "--run", str(run), *GIVEN]
    lines = json.dumps([again, ["report", str(run)]])
    done = subprocess.run(
        [*start, sys.executable, "-c", BOTH, lines],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert "cannot be written" in done.stderr
    assert "checking mini" not in done.stderr  # that comes first of all work
    assert "fix: choose another folder: --run DIR" in done.stderr
    assert "Traceback" not in done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 2", "code 0"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"target": {"name"', "", "null"])
def test_a_damaged_report_is_written_anew_by_the_command_that_is_named(
    text: str, finished: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    before = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(text)
    said = inside(capsys, "report", run)
    is_refused(said, str(run / "report.json"), "writes it anew")
    if text != "[]":  # once is enough
        return
    monkeypatch.chdir(tmp_path)
    command = said.err.split("fix: ")[1].split("   writes it anew")[0]
    assert inside(capsys, *shlex.split(command)[1:]).code in (0, 3)
    after = json.loads((run / "report.json").read_text())
    assert after["best"] == before["best"]


@pytest.mark.parametrize("command", ["report", "optimize"])
@pytest.mark.parametrize("text", ["{}", '{"model": null, "ta', ""])
@pytest.mark.usefixtures("no_device")
def test_a_damaged_configuration_is_restored_or_left(
    text: str, command: str, finished: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    (run / "config.json").write_text(text)
    before = tree(run)
    if command == "report":
        said = inside(capsys, "report", run)
    else:
        said = inside(capsys, *ON_FAKE, *GIVEN, "--run", run)
    is_refused(said, str(run / "config.json"), "restore it from a copy, or start anew: --run NEW")
    assert tree(run) == before


# ------------------------------------------------------------------------------- the profile


@pytest.mark.usefixtures("no_device")
def test_more_threads_than_cores_are_refused(project: Path, capsys: Capsys) -> None:
    cores = len(os.sched_getaffinity(0))
    Path("mine.toml").write_text(PROFILE + "[settings]\nthreads = 256\n")
    for command in (("optimize", "--task", SPEC), ("bench", "a.onnx"), ("table", "build")):
        said = inside(capsys, *command, "--target", "mine.toml")
        is_refused(said, "settings.threads = 256", f"fix: threads = {cores} in [settings]")


@pytest.mark.usefixtures("no_device")
def test_the_closest_key_is_named(project: Path, capsys: Capsys) -> None:
    Path("mine.toml").write_text(PROFILE + "[space]\nalgin = 8\n")
    said = inside(capsys, *ON_FAKE[:3], "--target", "mine.toml")
    is_refused(said, "space.algin", "'align'")
