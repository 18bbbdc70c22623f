"""Who else used the machine while something was timed, from the kernel's own books.

Time that others had on the cores of the timing is told apart from what they did on other cores:
the first delays a run, the second only shares caches and memory with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from hwloop.device.harness import HostSampler, Run
from hwloop.device.jetson import ROOT, read_text

USER_HZ_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; not idle and iowait
CLOCK_READS = 200
INTERRUPTED_MS, INTERRUPTED_SHARE = 0.05, 0.01
"""A sample was interrupted when others had its core for so long, and so much of its time: a timer's
tick is shorter."""


class Contention:
    """Counts from its making on; ``shares`` may be asked again and again.

    Args:
        cores: those that the timed threads are pinned to.
        root: the file system's root, another one in tests.
    """

    def __init__(self, cores: Sequence[int], root: Path = ROOT) -> None:
        self._cores = set(cores)
        self._root = root
        self._began = busy_s(root)
        self._clock = time.perf_counter()
        self._own = time.process_time()

    def shares(self) -> dict[str, float | None]:
        """Since the beginning, each 0 to 1, or None where the kernel does not tell.

        Returns:
            core_taken_share: of the time on its own cores, what others had, the hypervisor's other
            guests among them; other_cores_busy_share: of the time of all other cores, what was
            used, mean over them; 0 where there is none.
        """
        wall_s = time.perf_counter() - self._clock
        own_s = time.process_time() - self._own
        now = busy_s(self._root)
        if not self._began or now.keys() != self._began.keys() or wall_s <= 0:
            return {"core_taken_share": None, "other_cores_busy_share": None}
        used = {core: now[core] - self._began[core] for core in now}
        here = sum(used[core] for core in used if core in self._cores)
        there = [used[core] for core in used if core not in self._cores]
        taken_s = (here - own_s) / len(self._cores)
        return {
            "core_taken_share": _share(taken_s / wall_s),
            "other_cores_busy_share": _share(sum(there) / len(there) / wall_s) if there else 0.0,
        }


class ThreadSampler(HostSampler):
    """Times a plain call on the thread's own clock, and sees whether others ran in between.

    Attributes:
        interrupted: of each sample, whether others had the core for part of it. The time is
            theirs, but the caches that they left behind are in the sample.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run, time.thread_time)
        self.interrupted: list[bool] = []

    def sample_ms(self, loops: int) -> float:
        began = time.perf_counter()
        run_ms = super().sample_ms(loops)
        wall_ms = (time.perf_counter() - began) * 1000
        missing_ms = wall_ms - run_ms * loops
        self.interrupted.append(missing_ms > max(INTERRUPTED_MS, INTERRUPTED_SHARE * wall_ms))
        return run_ms


def busy_s(root: Path = ROOT) -> dict[int, float]:
    """Seconds since the start that each core was used; empty where /proc/stat does not say."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    for line in (read_text(root / "proc/stat") or "").splitlines():
        name, *values = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and len(values) > max(USER_HZ_FIELDS):
            found[int(name[3:])] = sum(int(values[i]) for i in USER_HZ_FIELDS) * tick_s
    return found


def thread_clock_is_fine() -> bool:
    """Whether the kernel counts a thread's own time in fine steps.

    What others run on the core in between is not in that time, and neither is a wait for them; of
    one thread that never sleeps it is the time on a machine of its own.
    """
    return len({time.thread_time() for _ in range(CLOCK_READS)}) > CLOCK_READS / 2


def _share(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), 4)
