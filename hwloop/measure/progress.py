"""How far a long job is, with the time that is left: a live line on a terminal, few in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from hwloop.parsing import printable

LOG_EVERY_S = 30.0
REDRAW_EVERY_S = 0.2


class Progress:
    """Says nothing; the base of those that do, and the default of the Python API."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` steps of the stage are finished."""

    def say(self, message: str) -> None:
        """A line that should stay."""

    def close(self) -> None:
        """The job ended, or failed."""


class ConsoleProgress(Progress):
    """Talks to ``stream``: a line that is redrawn on a terminal, one per 30 s elsewhere.

    Args:
        check: called whenever something is told; it may raise to end the job.
    """

    def __init__(
        self, stream: TextIO = sys.stderr, check: Callable[[], None] = lambda: None
    ) -> None:
        self.stream = stream
        self.check = check
        self.live = stream.isatty()
        self.name = ""
        self._started = self._drawn = 0.0
        self._open = False

    def stage(self, name: str) -> None:
        self.check()
        self._clear()
        self.name = name
        self._started = time.monotonic()
        self._drawn = -LOG_EVERY_S if self.live else self._started
        if not self.live:
            self._print(f"{name} ...")

    def advance(self, done: int, total: int, detail: str = "") -> None:
        self.check()
        now = time.monotonic()
        if now - self._drawn < (REDRAW_EVERY_S if self.live else LOG_EVERY_S):
            return
        self._drawn = now
        elapsed = now - self._started
        left = f", {_clock(elapsed / done * (total - done))} left" if done else ""
        line = f"{self.name}: {done}/{total}{left}{'  ' + detail if detail else ''}"
        if self.live:
            self.stream.write("\r\x1b[2K" + printable(line[:110]))
            self.stream.flush()
            self._open = True
        else:
            self._print(line)

    def say(self, message: str) -> None:
        self._clear()
        self._print(message)

    def close(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._open:
            self.stream.write("\r\x1b[2K")
            self._open = False

    def _print(self, line: str) -> None:
        self.stream.write(printable(line) + "\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
