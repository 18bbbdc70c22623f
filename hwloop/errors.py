"""Every error that a user can meet, and the exit code it ends with.

    HwloopError                 1   hwloop itself failed (disk full, a broken file, a bug)
    ├── UsageError              2   the command or its input is wrong
    ├── TargetError             4   the target is unreachable, busy, unstable or lost
    ├── EnvironmentProblem      5   a package or a version is missing
    └── CandidateError              one candidate cannot be built, run or scored: a FAILED trial

An error says what happened and where; ``hint`` is the command or the line that fixes it.
"""

from __future__ import annotations

import difflib
import enum
import sys
from collections.abc import Iterable

# Python 3.11 prints an exception's notes under its message; 3.10 prints nothing but str().
HAS_NOTES = sys.version_info >= (3, 11)


class ExitCode(enum.IntEnum):
    """What ``hwloop`` returns to the shell; part of the public interface."""

    MET = 0
    FAILED = 1
    USAGE = 2
    NOT_MET = 3
    TARGET = 4
    ENVIRONMENT = 5
    INTERRUPTED = 130
    TERMINATED = 143


class HwloopError(Exception):
    """Base of all errors that hwloop raises on purpose.

    Where one ends a Python script, the traceback ends in the message and the hint.

    Args:
        message: what happened, and where.
        hint: the command or the line that fixes it.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint and HAS_NOTES:
            self.add_note(f"fix: {hint}")

    def __str__(self) -> str:
        return self.message if HAS_NOTES or not self.hint else f"{self.message}\nfix: {self.hint}"


class UsageError(HwloopError):
    """The command line, a SPEC, a file or the user's own code is wrong."""

    exit_code = ExitCode.USAGE


class TargetError(HwloopError):
    """The rig failed, not the network: worker lost, board unreachable, readings unstable."""

    exit_code = ExitCode.TARGET


class EnvironmentProblem(HwloopError):
    """Something is not installed, or has the wrong version."""

    exit_code = ExitCode.ENVIRONMENT


class CandidateError(HwloopError):
    """One candidate failed. The search stores the reason and goes on.

    Args:
        stage: where it failed: compress, recover, export, check, build, run or score.
        message: what happened.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


def closest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known word, or lists them all."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1)
    if match:
        return f"did you mean {match[0]!r}?"
    return "known: " + ", ".join(names)
