"""A worker that is alone ends itself: its host was killed, or the link to it was cut."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from typing import Any

PARENT_POLL_S = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Watchdog:
    """Ends this process when its host is gone, even in the middle of a long call.

    The alarm ends it without any Python running, so a runtime that holds the interpreter, or is
    stuck in a driver, ends as well. Made before anything slow is imported, in the main thread.

    Args:
        pulse: a channel: what arrives is sent back, and proves that the host is there. The first
            word on it is this process's id.
        start_s: the silence that is allowed until :meth:`started`. An import may hold the
            interpreter for long, and no beat is heard while it does.
        silence_s: the silence that is allowed from then on.
        remote: this process is a child of sshd.
    """

    def __init__(self, pulse: Any, *, start_s: int, silence_s: int, remote: bool) -> None:
        self._pulse = pulse
        self._limit_s = start_s
        self._silence_s = silence_s
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.heard()
        if remote:
            end_with_parent()
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
        pulse.setcallback(self._hear)
        pulse.send(os.getpid())

    def heard(self) -> None:
        """The host is there."""
        signal.alarm(self._limit_s)

    def started(self) -> None:
        """Everything is imported: from now on beats are heard in time."""
        self._limit_s = self._silence_s
        self.heard()

    def _hear(self, beat: Any) -> None:
        self.heard()
        self._pulse.send(beat)


def end_with_parent() -> None:
    """Have the kernel kill this process with the one that started it, even while it is stopped.

    The kernel means the thread that started it: for a worker only behind sshd, because the thread
    of a host that starts one may end earlier.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
