"""Files that a command is given: regular, of a bounded size, and where they say that they are.

A pipe would hang, a device has side effects, and a link in a folder that somebody else made leads
wherever he likes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hwloop.errors import UsageError


def read_file(path: Path, *, what: str, limit_bytes: int, hint: str) -> bytes:
    """The bytes of a regular file; the path itself may be a link. Never waits.

    Args:
        what: what it should be, for the message: "a profile".

    Raises:
        UsageError: missing, no regular file, not readable, or larger than ``limit_bytes``.
    """
    try:
        check_regular(path, what=what, hint=hint)
        # Whoever changes the path in between gets neither a wait nor an endless read.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"{path} is no file that could be {what}", hint)
            if about.st_size > limit_bytes:
                text = f"{about.st_size} bytes, more than {limit_bytes}"
                raise UsageError(f"{path} is too large to be {what}: {text}", hint)
            data = file.read(about.st_size + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {path}: {reason}", hint) from error
    if len(data) != about.st_size:
        raise UsageError(f"{path} is no ordinary file, or is being written", hint)
    return data


def check_regular(path: Path, *, what: str, hint: str) -> None:
    """Raises UsageError for a folder, pipe, socket or device; OSError where it is missing."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder, not {what}", hint)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is a pipe or a device, not {what}", hint)


def within(path: Path, folder: Path, *, hint: str) -> Path:
    """Where a path of a folder leads, with its links followed.

    Raises:
        UsageError: out of the folder, or nowhere.
    """
    try:
        real = path.resolve(strict=True)
        inside = real.is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or "its links lead nowhere"
        raise UsageError(f"cannot read {path}: {reason}", hint) from error
    if not inside:
        raise UsageError(f"{path} is a link that leads out of {folder}", hint)
    return real
