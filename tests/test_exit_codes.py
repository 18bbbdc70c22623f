"""One test per exit code of the command; none of them ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from tiny import ON_FAKE, SMALL, SPEC, START, Said, environment, faulty, hwloop, inside

from hwloop.cli.common import Stop
from hwloop.errors import ExitCode
from hwloop.measure.progress import ConsoleProgress

Capsys = pytest.CaptureFixture[str]


def count_trials(run: Path) -> int:
    with sqlite3.connect(f"file:{run / 'hwloop.sqlite'}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT count(*) FROM trials").fetchone()[0])


def clean(said: Said) -> bool:
    return "Traceback" not in said.err + said.out


def test_0_when_the_goal_is_met(tmp_path: Path, capsys: Capsys) -> None:
    said = inside(capsys, "optimize", *SMALL, "--run", tmp_path / "run")
    assert said.code == ExitCode.MET, said.err
    assert (tmp_path / "run" / "best" / "model.onnx").exists()
    assert clean(said)


def test_1_when_the_disk_is_full(tmp_path: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 30; exec "$@"', "-", *START]  # files of at most 30 kB
    # What measures the tests' coverage would want to write as well, and fails loudly.
    env = {name: value for name, value in environment().items() if "COVERAGE" not in name}
    done = subprocess.run(
        [*limited, "optimize", *SMALL, "--run", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert "cannot write" in done.stderr
    assert "fix: free disk space" in done.stderr
    assert "Traceback" not in done.stderr


def test_2_when_the_run_folder_cannot_be_made(capsys: Capsys) -> None:
    said = inside(capsys, "optimize", *SMALL, "--run", "/proc/hwloop/run")
    assert said.code == ExitCode.USAGE
    assert "--run DIR" in said.err
    assert clean(said)


def test_2_when_the_command_is_wrong(capsys: Capsys) -> None:
    said = inside(capsys, "optimize", "--task", "dmeo")
    assert said.code == ExitCode.USAGE
    assert clean(said)


def test_3_when_the_goal_cannot_be_met(tmp_path: Path, capsys: Capsys) -> None:
    options = [*SMALL[:-1], "1000"]
    said = inside(capsys, "optimize", *options, "--run", tmp_path / "run")
    assert said.code == ExitCode.NOT_MET, said.err
    assert "asked for 1000" in said.out
    assert (tmp_path / "run" / "best" / "model.onnx").exists()
    assert clean(said)


def test_4_when_the_target_is_lost_and_everything_so_far_is_kept(
    tmp_path: Path, capsys: Capsys
) -> None:
    target = faulty(tmp_path / "bad.toml", "compare", "die", after=1)
    said = inside(capsys, "optimize", "--task", SPEC, "--target", target, "--run", tmp_path / "run")
    assert said.code == ExitCode.TARGET
    assert "worker" in said.err
    assert (tmp_path / "run" / "config.json").exists()
    assert clean(said)


def test_5_when_the_runtime_is_missing(tmp_path: Path) -> None:
    stub = tmp_path / "onnxruntime"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise ImportError('no onnxruntime here')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    said = hwloop("target", "check", "cpu", PYTHONPATH=path)
    assert said.code == ExitCode.ENVIRONMENT, said.err
    assert "pip install" in said.err
    assert clean(said)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
)
def test_130_and_143_when_it_is_stopped_and_the_command_goes_on(
    tmp_path: Path, capsys: Capsys, number: signal.Signals, code: ExitCode
) -> None:
    run = tmp_path / "run"
    options = [*ON_FAKE, "--evaluations", "6", "--loop-steps", "1", "--final-steps", "2"]
    options += ["--finalists", "1", "--max-drop", "none", "--min-speedup", "1.05"]
    options += ["--run", str(run)]
    with subprocess.Popen(
        [*START, "optimize", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if (run / "events.jsonl").exists() and '"trial"' in (run / "events.jsonl").read_text():
                break
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    assert child.returncode == code, err
    assert "repeat the command" in err
    assert "Traceback" not in err
    before = count_trials(run)
    assert before > 0
    again = inside(capsys, "optimize", *options)
    assert again.code == ExitCode.MET, again.err
    assert count_trials(run) > before


def test_143_when_it_is_stopped_in_the_middle_of_the_users_code(tmp_path: Path) -> None:
    task = tmp_path / "slow.py"
    task.write_text("import os, signal\nTask = lambda: os.kill(os.getpid(), signal.SIGTERM)\n")
    said = hwloop("optimize", "--task", f"{task}:Task", "--target", "fake")
    assert said.code == ExitCode.TERMINATED, said.err
    assert said.err.count("repeat the command") == 1
    assert "slow.py" not in said.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallowed_is_raised_again_where_progress_is_told(
    number: signal.Signals,
) -> None:
    stop = Stop()
    progress = ConsoleProgress(io.StringIO(), stop.check)
    progress.stage("search")
    with contextlib.suppress(KeyboardInterrupt):
        stop._hear(number, None)
    with pytest.raises(KeyboardInterrupt):
        progress.advance(1, 10)
