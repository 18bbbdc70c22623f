"""What a Python user meets: the names at the top, errors with their fix, types, ``-m``."""

from __future__ import annotations

import subprocess
import sys
import traceback
from importlib.resources import files

import pytest
from tiny import environment

import hwloop
from hwloop import errors

ERRORS = (
    "ExitCode",
    "HwloopError",
    "UsageError",
    "TargetError",
    "EnvironmentProblem",
    "CandidateError",
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )


def test_errors_and_exit_codes_are_at_the_top_without_torch() -> None:
    code = f"from hwloop import {', '.join(ERRORS)}; import sys; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0
    assert all(getattr(hwloop, name) is getattr(errors, name) for name in ERRORS)


def test_every_public_name_is_listed_and_there() -> None:
    assert set(dir(hwloop)) == set(hwloop.__all__) >= {*ERRORS, "optimize", "load", "bench"}
    assert all(hasattr(hwloop, name) for name in dir(hwloop))


def test_types_are_for_others_too() -> None:
    assert (files("hwloop") / "py.typed").is_file()


def test_the_module_is_the_command() -> None:
    done = python("-m", "hwloop", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: hwloop [OPTIONS]")
    wrong = python("-m", "hwloop", "optimise")
    assert wrong.returncode == hwloop.ExitCode.USAGE
    assert "'optimize'" in wrong.stderr


def test_a_script_that_an_error_ends_shows_the_fix() -> None:
    code = "import hwloop; raise hwloop.UsageError('no such file', 'name another')"
    done = python("-c", code)
    assert done.stderr.endswith("UsageError: no such file\nfix: name another\n")


def test_an_error_shows_its_fix_once_whatever_the_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for notes in (True, False):
        monkeypatch.setattr(errors, "HAS_NOTES", notes)
        error = hwloop.TargetError("the board is off", "switch it on")
        assert error.message == "the board is off"
        assert "".join(traceback.format_exception(error)).count("fix: switch it on") == 1
        assert str(hwloop.TargetError("the board is off")) == "the board is off"


def test_a_failed_candidate_needs_no_fix() -> None:
    error = hwloop.CandidateError("build", "too large")
    assert (str(error), error.stage) == ("build: too large", "build")
