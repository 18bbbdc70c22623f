"""The time of a run: by stage and in all, over every process that works on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hwloop.run.memory import Notes


class Stopwatch:
    """Seconds by stage of a run, without overlap; survives a resume through ``before``."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(before or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


class FinalsClock:
    """The time of the finals alone, over every process that works on them.

    Args:
        limit_s: when it is up.
    """

    def __init__(self, notes: Notes, limit_s: float) -> None:
        self._notes = notes
        self._limit_s = limit_s
        self._before_s, self._decided = notes.finals()
        self._started = time.monotonic()

    def allows(self, count: int) -> bool:
        """Whether there is time for one more after so many, or it was decided before."""
        return count < self._decided or self._spent_s() < self._limit_s

    def keep(self, count: int) -> None:
        """Note the time after so many, for whoever resumes the run."""
        self._notes.put_finals(seconds=self._spent_s(), count=max(count, self._decided))

    def _spent_s(self) -> float:
        return self._before_s + time.monotonic() - self._started


class RunClock(Stopwatch):
    """A stopwatch that goes on from what is noted, and is noted again."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes.seconds())
        self._notes = notes
        self._before_s = notes.wall_s()
        self._started = time.monotonic()

    def wall_s(self) -> float:
        """Seconds since the run began, without those in which nobody worked on it."""
        return self._before_s + time.monotonic() - self._started

    def is_up(self, limit_s: float | None) -> bool:
        """Whether a limit is reached; there may be none."""
        return limit_s is not None and self.wall_s() >= limit_s

    def keep(self) -> None:
        """Note the time, for whoever resumes the run."""
        self._notes.put_times(self.seconds, wall_s=self.wall_s())
