"""Somebody else on the machine, made to measure.

    python benchmarks/disturb.py burn CORE DUTY SLICE_MS
    python benchmarks/disturb.py hog CORE

``burn`` computes in slices and sleeps in between, on one core; ``hog`` copies memory without end.
Both end with the process that started them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

HOG_BYTES = 256 << 20
SETTLE_S = 0.3


@contextmanager
def disturbed(*, duty: float = 0.0, slice_ms: float = 1.0, hog: bool = False) -> Iterator[None]:
    """Disturb what runs in the ``with`` block: ``duty`` on the timed core, the hog on another."""
    cores = sorted(os.sched_getaffinity(0))
    commands = []
    if duty:
        commands.append(["burn", cores[-1], duty, slice_ms])
    if hog:
        commands.append(["hog", cores[0]])
    with ExitStack() as running:
        for command in commands:
            words = [sys.executable, __file__, *map(str, command)]
            child = subprocess.Popen(words)
            running.callback(child.wait, timeout=10)
            running.callback(child.kill)
        time.sleep(SETTLE_S if commands else 0.0)
        yield


def burn(core: int, duty: float, slice_ms: float) -> None:
    """Use ``duty`` (above 0 to 1) of a core, in slices of that many milliseconds."""
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    while os.getppid() == parent:
        end = time.perf_counter() + slice_ms / 1000
        while time.perf_counter() < end:
            pass
        time.sleep(slice_ms / 1000 * (1 - duty) / duty)


def hog(core: int) -> None:
    """Copy more memory than any cache holds, back and forth."""
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    here, there = np.zeros(HOG_BYTES, np.uint8), np.ones(HOG_BYTES, np.uint8)
    while os.getppid() == parent:
        here[:] = there
        there[:] = here


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["burn", core, duty, slice_ms]:
            burn(int(core), float(duty), float(slice_ms))
        case ["hog", core]:
            hog(int(core))
        case _:
            sys.exit(__doc__)
