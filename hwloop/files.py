"""Files that are read and written: regular, of a bounded size, where they say that they are, whole.

A pipe would hang, a device has side effects, and a link in a folder that somebody else made leads
wherever he likes. What is written is there as a whole, or not at all, whenever a kill comes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from hwloop.errors import HwloopError, UsageError
from hwloop.parsing import parse_json

MAX_JSON_BYTES = 64 << 20


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


def read_json(path: Path, *, what: str, hint: str) -> Any:
    """A JSON file's value.

    Raises:
        UsageError: missing, no regular file, over 64 MiB, or no JSON; with ``hint`` as its fix.
    """
    data = read_file(path, what=what, limit_bytes=MAX_JSON_BYTES, hint=hint)
    try:
        return parse_json(data)
    except ValueError as error:
        raise UsageError(f"{path} is damaged, no {what}: {error}", hint) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to the disk, rename: readers see the old or the new file.

    Raises:
        HwloopError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # never through a link that waits under this name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise unwritable(path, error) from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unwritable(path: Path, error: OSError) -> HwloopError:
    """The error for a file or folder that could not be written."""
    return HwloopError(
        f"cannot write {path}: {error.strerror}",
        "free disk space, or correct the folder's permissions, and repeat the command",
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # what kept it from being written may keep it from being removed
        return


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk: what was renamed in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
