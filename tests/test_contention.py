"""Who else used the machine: the kernel's counts planted in a folder, and a busy process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwloop.device import contention
from hwloop.device.contention import Contention, ThreadSampler, busy_s, thread_clock_is_fine

TICKS = os.sysconf("SC_CLK_TCK")
UNKNOWN = {"core_taken_share": None, "other_cores_busy_share": None}
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")


class Machine:
    """A planted /proc/stat and the clocks beside it. Seconds by core and by the kernel's field."""

    def __init__(self, root: Path, cores: int) -> None:
        self.root = root
        self.used = {core: dict.fromkeys(FIELDS, 100.0 + core) for core in range(cores)}
        self.wall_s = self.own_s = 50.0
        self.write()

    def passes(self, wall_s: float, own_s: float, **used: dict[int, float]) -> None:
        """So much time, of which this process had ``own_s``; ``user={1: 0.5}`` was on core 1."""
        self.wall_s += wall_s
        self.own_s += own_s
        for field, by_core in used.items():
            for core, seconds in by_core.items():
                self.used[core][field] += seconds
        self.write()

    def write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 0"]
        for core, used in self.used.items():
            ticks = " ".join(str(round(used[field] * TICKS)) for field in FIELDS)
            lines.append(f"cpu{core} {ticks} 0")
        lines += ["intr 99 1 2", "ctxt 12", "btime 1", "procs_running 1"]
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text("\n".join(lines) + "\n")

    @property
    def path(self) -> Path:
        return self.root / "proc" / "stat"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Machine]:
    def made(cores: int) -> Machine:
        planted = Machine(tmp_path, cores)
        clocks = SimpleNamespace(
            perf_counter=lambda: planted.wall_s, process_time=lambda: planted.own_s
        )
        monkeypatch.setattr(contention, "time", clocks)
        return planted

    return made


def test_a_quiet_machine_has_nothing_of_others(machine: Callable[[int], Machine]) -> None:
    planted = machine(4)
    counted = Contention([3], planted.root)
    planted.passes(2.0, 2.0, user={3: 1.9}, system={3: 0.1}, idle={0: 2.0, 1: 2.0}, iowait={2: 2.0})
    assert counted.shares() == {"core_taken_share": 0.0, "other_cores_busy_share": 0.0}


@pytest.mark.parametrize("field", ["user", "nice", "system", "irq", "softirq", "steal"])
def test_what_others_had_of_our_core_is_taken(
    machine: Callable[[int], Machine], field: str
) -> None:
    planted = machine(2)
    counted = Contention([1], planted.root)
    planted.passes(2.0, 1.5, user={1: 1.5})
    planted.passes(0.0, 0.0, **{field: {1: 0.5}})
    assert counted.shares() == {"core_taken_share": 0.25, "other_cores_busy_share": 0.0}


def test_guests_are_in_the_time_of_users_already(machine: Callable[[int], Machine]) -> None:
    planted = machine(2)
    counted = Contention([1], planted.root)
    planted.passes(2.0, 1.5, user={1: 2.0}, guest={1: 0.5})
    assert counted.shares()["core_taken_share"] == 0.25


def test_other_cores_are_busy_in_the_mean_over_them(machine: Callable[[int], Machine]) -> None:
    planted = machine(4)
    counted = Contention([3], planted.root)
    planted.passes(2.0, 2.0, user={0: 2.0, 1: 0.5, 3: 2.0}, steal={1: 0.5})
    assert counted.shares() == {"core_taken_share": 0.0, "other_cores_busy_share": 0.5}


def test_several_threads_have_as_many_cores(machine: Callable[[int], Machine]) -> None:
    planted = machine(4)
    counted = Contention([2, 3], planted.root)
    planted.passes(2.0, 3.0, user={0: 1.0, 2: 2.0, 3: 2.0})
    assert counted.shares() == {"core_taken_share": 0.25, "other_cores_busy_share": 0.25}


def test_a_machine_of_one_core_has_no_others(machine: Callable[[int], Machine]) -> None:
    planted = machine(1)
    counted = Contention([0], planted.root)
    planted.passes(1.0, 0.6, user={0: 1.0})
    assert counted.shares() == {"core_taken_share": 0.4, "other_cores_busy_share": 0.0}


def test_it_is_counted_from_the_beginning_each_time(machine: Callable[[int], Machine]) -> None:
    planted = machine(2)
    counted = Contention([1], planted.root)
    planted.passes(1.0, 1.0, user={0: 1.0, 1: 1.0})
    assert counted.shares()["other_cores_busy_share"] == 1.0
    planted.passes(1.0, 1.0, user={1: 1.0})
    assert counted.shares()["other_cores_busy_share"] == 0.5


def test_shares_stay_between_0_and_1(machine: Callable[[int], Machine]) -> None:
    planted = machine(2)
    counted = Contention([1], planted.root)
    # The kernel counts in ticks: less than the process had, and more than the time that passed.
    planted.passes(0.995, 0.995, user={0: 1.0, 1: 0.99})
    assert counted.shares() == {"core_taken_share": 0.0, "other_cores_busy_share": 1.0}


def test_without_time_there_are_no_shares(machine: Callable[[int], Machine]) -> None:
    planted = machine(2)
    assert Contention([1], planted.root).shares() == UNKNOWN


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3\n", "cpu0 1 2 3 4\ncpu1 1 2 3 4\n"])
def test_what_the_kernel_does_not_tell_is_not_known(
    machine: Callable[[int], Machine], text: str | None
) -> None:
    planted = machine(2)
    if text is None:
        planted.path.unlink()
    else:
        planted.path.write_text(text)
    counted = Contention([1], planted.root)
    assert busy_s(planted.root) == {}
    planted.wall_s += 1.0
    assert counted.shares() == UNKNOWN
    planted.write()  # nor from when on it is told
    assert counted.shares() == UNKNOWN


def test_a_file_that_can_be_read_no_more_is_not_known(machine: Callable[[int], Machine]) -> None:
    planted = machine(2)
    counted = Contention([1], planted.root)
    planted.passes(1.0, 1.0)
    planted.path.unlink()
    assert counted.shares() == UNKNOWN


@pytest.mark.parametrize("then", [1, 3])
def test_cores_that_come_or_go_meanwhile_leave_nothing_known(
    machine: Callable[[int], Machine], then: int
) -> None:
    planted = machine(2)
    counted = Contention([0], planted.root)
    planted.used = {core: dict.fromkeys(FIELDS, 200.0) for core in range(then)}
    planted.passes(1.0, 1.0)
    assert counted.shares() == UNKNOWN


# ----------------------------------------------------------------------------------- this machine

WATCHED_S = 0.6
SPIN = "while True: pass"


def counts_advance() -> bool:
    """Whether this kernel counts a core's time at all."""
    before, ends = busy_s(), time.perf_counter() + 0.1
    while time.perf_counter() < ends:
        pass
    return bool(before) and sum(busy_s().values()) > sum(before.values())


needs_counts = pytest.mark.skipif(
    not counts_advance(), reason="needs a kernel that counts the cores' time in /proc/stat"
)


@pytest.fixture
def busy() -> Iterator[Callable[[int], None]]:
    """Start a process that is busy on a core."""
    started: list[subprocess.Popen[bytes]] = []

    def on(core: int) -> None:
        process = subprocess.Popen([sys.executable, "-c", SPIN])
        started.append(process)
        os.sched_setaffinity(process.pid, [core])
        time.sleep(0.1)

    yield on
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def own_core() -> Iterator[int]:
    """This thread's only core during the test."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, [core])
    yield core
    os.sched_setaffinity(0, before)


def spin() -> None:
    ends = time.perf_counter() + WATCHED_S
    while time.perf_counter() < ends:
        pass


@needs_counts
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2,
    reason=f"needs two cores, {len(os.sched_getaffinity(0))} can be used",
)
def test_a_process_on_another_core_is_seen(busy: Callable[[int], None]) -> None:
    other = min(os.sched_getaffinity(0))
    busy(other)
    counted = Contention([core for core in busy_s() if core != other])  # so that it is all others
    time.sleep(WATCHED_S)
    share = counted.shares()["other_cores_busy_share"]
    assert share is not None
    assert share > 0.5


@needs_counts
def test_a_process_on_our_own_core_is_seen(busy: Callable[[int], None], own_core: int) -> None:
    busy(own_core)
    counted = Contention([own_core])
    spin()
    share = counted.shares()["core_taken_share"]
    assert share is not None
    assert share > 0.2


# --------------------------------------------------------------------------- the thread's own clock


needs_fine_clock = pytest.mark.skipif(
    time.get_clock_info("thread_time").resolution > 1e-4,
    reason="needs a kernel that counts a thread's time in less than ticks",
)


@needs_fine_clock
def test_the_threads_own_clock_is_used_where_it_is_fine() -> None:
    assert all(thread_clock_is_fine() for _ in range(200))


def test_a_thread_clock_of_whole_ticks_is_not_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = SimpleNamespace(thread_time=lambda: time.thread_time() // 0.01 * 0.01)
    monkeypatch.setattr(contention, "time", coarse)
    assert not thread_clock_is_fine()


@needs_fine_clock
def test_waiting_for_the_core_is_seen_and_not_timed(
    busy: Callable[[int], None], own_core: int
) -> None:
    def work() -> None:
        sum(range(2_000_000))

    beside = ThreadSampler(work)
    busy(own_core)
    began_s = time.perf_counter()
    timed_ms = sum(beside.sample_ms(1) for _ in range(3))
    wall_ms = (time.perf_counter() - began_s) * 1000
    # The core is shared by two. Against the same seconds: other seconds may have a slower clock.
    assert 0.1 * wall_ms < timed_ms < 0.8 * wall_ms
    assert beside.interrupted == [True] * 3
