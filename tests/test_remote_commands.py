"""The commands against a board: the same decisions as here, resumable, and nothing special."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from board import Board, needs_board
from test_bench_files import products
from tiny import MINI, START, Said, environment, inside

import hwloop as package
from hwloop.measure.store import Store

pytestmark = [needs_board, pytest.mark.usefixtures("reachable")]

SMALL = ("--evaluations", "4", "--loop-steps", "1", "--final-steps", "2", "--finalists", "1")


Capsys = pytest.CaptureFixture[str]


def optimize(capsys: Capsys, target: Path, run: Path) -> Said:
    return inside(capsys, "optimize", "--task", MINI, "--target", target, "--run", run, *SMALL)


def digests(run: Path) -> list[str]:
    with Store(run / "hwloop.sqlite") as store:
        return [trial.candidate.digest() for trial in store.trials()]


def test_a_seed_decides_the_same_here_and_there(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    remote = there.profile(tmp_path / "there.toml")
    local = tmp_path / "here.toml"
    local.write_text(remote.read_text().replace('transport = "ssh"\n', ""))
    here = optimize(capsys, local, tmp_path / "here")
    far = optimize(capsys, remote, tmp_path / "there")
    assert here.code in (0, 3), here.err
    assert far.code == here.code, far.err
    found = digests(tmp_path / "there")
    assert len(found) >= 4
    assert found == digests(tmp_path / "here")


def test_two_targets_of_one_board_are_measured_under_one_lock(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    file = products(tmp_path / "a.onnx", 32, 2)
    names = ("one", "two")
    targets = [there.profile(tmp_path / f"{name}.toml", runtime="onnxruntime") for name in names]
    words = [word for target in targets for word in ("--target", str(target))]
    said = inside(capsys, "bench", file, *words, "--json")
    assert said.code == 0, said.err
    assert [record["target"] for record in json.loads(said.out)] == ["one", "two"]


def test_a_real_run_is_measured_and_scored_on_the_board(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    target = there.profile(tmp_path / "there.toml", runtime="onnxruntime")
    said = optimize(capsys, target, tmp_path / "run")
    assert said.code in (0, 3), said.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["best"]["latency_source"] == "device"
    assert report["best"]["metric_runtime"] == "onnxruntime"
    assert report["baseline"]["metric"] > 0.8
    assert package.load(tmp_path / "run", trust=True).training is False
    compared = inside(capsys, "bench", tmp_path / "run", "--target", target, "--json")
    assert compared.code == 0, compared.err
    assert len(json.loads(compared.out)) == 2


def test_a_killed_run_is_completed_by_repeating_it(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    target = there.profile(tmp_path / "there.toml")
    run = tmp_path / "run"
    arguments = ("optimize", "--task", MINI, "--target", str(target), "--run", str(run), *SMALL)
    host = subprocess.Popen(
        [*START, *arguments],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not (run / "hwloop.sqlite").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    os.killpg(host.pid, signal.SIGKILL)
    host.wait(10)
    assert there.gone_within(10)
    assert optimize(capsys, target, run).code in (0, 3)
    assert optimize(capsys, target, tmp_path / "undisturbed").code in (0, 3)
    assert digests(run) == digests(tmp_path / "undisturbed")


def test_a_table_is_built_on_the_board_row_by_row(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    target = there.profile(tmp_path / "there.toml", runtime="onnxruntime")
    table = tmp_path / "table.sqlite"
    command = ("table", "build", "--task", MINI, "--target", target, "--table", table, "--json")
    first = inside(capsys, *command)
    assert first.code == 0, first.err
    assert json.loads(first.out)["measured"] > 10
    assert json.loads(inside(capsys, *command).out)["measured"] == 0


def test_a_host_on_the_command_line_moves_any_target_there(
    there: Board, tmp_path: Path, capsys: Capsys
) -> None:
    """The packaged profile asks for the board's own python3, which here is this machine's."""
    said = inside(capsys, "target", "check", "fake", "--host", "board", "--json")
    if said.code == 4 and "numpy" in said.err:
        pytest.skip("the system's python3 has no numpy, as a board's has")
    assert said.code == 0, said.err
    assert json.loads(said.out)["fingerprint"]["runtime"] == "fake"
