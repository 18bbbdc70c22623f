"""A store's files before SQLite sees them: it would follow links, and obey a journal."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from hwloop.errors import HwloopError, UsageError
from hwloop.files import check_regular

RESTORE = "restore it from a copy, or name another file"
MAGIC = b"SQLite format 3\0"
WITH_ROLLBACK_JOURNAL = b"\1\1"  # bytes 18 and 19 of the header; 2 is a write-ahead log
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file


def examine(path: Path, *, read_only: bool) -> None:
    """Look at a store's file and at those beside it.

    Raises:
        UsageError: there is nothing to read, or one of them is not what hwloop writes.
        HwloopError: they cannot be read.
    """
    if read_only and not os.path.exists(path):
        raise UsageError(f"no store at {path}", "name a file that hwloop wrote")
    try:
        real = path.resolve()
        if real.exists():
            check_regular(path, what="an SQLite file", hint="name another file")
            with real.open("rb") as file:
                header = file.read(20)
            if header and not header.startswith(MAGIC):
                raise UsageError(f"{path} is damaged or not an SQLite file", RESTORE)
            if header and header[18:] != WITH_ROLLBACK_JOURNAL:
                raise altered(path, "its header")
        for ending in ("-journal", "-wal", "-shm"):
            beside = real.with_name(real.name + ending)
            if _is_strange(beside):
                raise altered(path, f"{beside.name} beside it")
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HwloopError(
            f"cannot open {path}: {reason}", "correct its permissions, or name another"
        ) from error


def _is_strange(path: Path) -> bool:
    """Whether what is there is anything but the journal of one writer's last step."""
    with suppress(FileNotFoundError):  # most of the time, and when a writer has just ended
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or not path.name.endswith("-journal"):
            return True
        with path.open("rb") as file:
            file.seek(max(about.st_size - len(SUPER_JOURNAL), 0))
            return file.read(len(SUPER_JOURNAL)) == SUPER_JOURNAL
    return False


def altered(path: Path, what: str) -> UsageError:
    """The error for a file that somebody else wrote to."""
    return UsageError(f"{path} was altered: {what} is not what hwloop writes", RESTORE)
