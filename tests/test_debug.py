"""What the user sees of an error: one line and its fix; with --debug the traceback as well."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import click
import pytest
from test_help import PAGES, command_at, page
from tiny import environment, inside

from hwloop.cli.main import main
from hwloop.errors import ExitCode
from hwloop.measure import profile_file as profile

Capsys = pytest.CaptureFixture[str]

BUG = (
    r"^hwloop: internal error: (.*) \(at (.*/hwloop/[\w/]+\.py):(\d+)\)\n  fix: repeat with --debug"
)


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hwloop target list`` meets something that nobody foresaw."""

    def broken() -> Any:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(profile, "known_profiles", broken)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: " ".join(path) or "hwloop")
def test_every_command_takes_it(path: tuple[str, ...]) -> None:
    assert "--debug" in page(path)
    command = command_at(path)
    assert sum("--debug" in param.opts for param in command.get_params(click.Context(main))) == 1


def test_a_bug_is_one_line_that_asks_for_a_report(bug: None, capsys: Capsys) -> None:
    said = inside(capsys, "target", "list")
    assert said.code == ExitCode.FAILED
    found = re.match(BUG, said.err)
    assert found, said.err
    assert found.group(1) == "ZeroDivisionError: two lines"
    assert found.group(2).endswith("hwloop/cli/target.py")
    assert said.err.count("\n") == 2
    assert said.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--debug", "target", "list"),
        ("target", "--debug", "list"),
        ("target", "list", "--debug"),
        ("target", "list", "--debug", "--json"),
    ],
)
def test_anywhere_on_the_line_it_shows_where_a_bug_is(
    arguments: tuple[str, ...], bug: None, capsys: Capsys
) -> None:
    said = inside(capsys, *arguments)
    assert said.code == ExitCode.FAILED
    assert said.err.startswith("Traceback (most recent call last):")
    assert "in broken" in said.err
    assert "hwloop: internal error: ZeroDivisionError" in said.err


def test_it_shows_where_a_mistake_was_found_and_changes_no_exit_code(capsys: Capsys) -> None:
    plain = inside(capsys, "target", "show", "fkae")
    shown = inside(capsys, "target", "show", "fkae", "--debug")
    assert plain.code == shown.code == ExitCode.USAGE
    assert "Traceback" not in plain.err
    assert "in load_profile" in shown.err
    assert shown.err.endswith(plain.err)


def test_it_is_forgotten_by_the_next_command(bug: None, capsys: Capsys) -> None:
    inside(capsys, "target", "list", "--debug")
    assert "Traceback" not in inside(capsys, "target", "list").err


@pytest.mark.parametrize("kind", [BrokenPipeError, EOFError])
def test_errors_that_click_takes_for_its_own_are_told(
    kind: type[Exception], capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise kind("the worker's pipe")

    monkeypatch.setattr(profile, "known_profiles", broken)
    said = inside(capsys, "target", "list")
    assert said.code == ExitCode.FAILED
    assert f"internal error: {kind.__name__}: the worker's pipe (at " in said.err


@pytest.mark.parametrize("arguments", [("target", "list"), ("target", "show", "cpu", "--json")])
def test_a_reader_that_has_gone_is_no_error(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hwloop", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == ExitCode.MET
