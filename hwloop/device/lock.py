"""One measuring worker per board: two at once would ruin each other's figures.

The lock is an abstract UNIX socket. The kernel frees it when its holder ends, however it ends; it
needs no file, works between users, and tells who holds it.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import struct
import time
from collections.abc import Sequence

NAME = "\0hwloop-measuring"
WAIT_S = 3.0
POLL_S = 0.25
BACKLOG = 4096  # those who ask are never accepted: each stays queued
_CREDENTIALS = struct.Struct("3i")


class BoardBusy(Exception):
    """Somebody else measures on this board."""


def acquire(supersedes: Sequence[int] = (), *, name: str = NAME) -> socket.socket:
    """Hold the board until the returned socket is closed or this process ends.

    Args:
        supersedes: processes that this session lost touch with. One of them that still holds
            the lock, for instance because it was stopped, is killed.

    Raises:
        BoardBusy: naming the holder's user and process.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(name)
            lock.listen(BACKLOG)
            return lock
        except OSError:
            lock.close()
        pid, uid = holder(name=name) or (0, -1)
        if pid in supersedes and uid == os.getuid():
            _kill(pid)
        elif pid and time.monotonic() >= deadline:
            raise BoardBusy(
                f"{_user(uid)} measures on it (process {pid}); two at once would ruin both"
            )
        if time.monotonic() >= deadline + WAIT_S:
            raise BoardBusy("somebody measures on it")
        time.sleep(POLL_S)


def holder(*, name: str = NAME) -> tuple[int, int] | None:
    """(process, user) that holds the board, or None when it is free."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except BlockingIOError:  # its backlog is full of those who ask: it is held
            return (-1, -1)
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
