"""Kill a run at any moment, repeat it, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import HERE, MINI, environment

KILLS = 20
# One process imports torch once, with what optimizers import when they are first made, and forks a
# child per attempt: the child is what is killed.
SERVER = """
import os, sys, traceback
sys.path.insert(0, sys.argv[1])
import hwloop.search.agent, hwloop.api, hwloop.run.calibrate, hwloop.run.rounds, torch._dynamo
hwloop.run.rounds.ROUNDS = (3,)  # a full recovery every few candidates, so that kills meet them
hwloop.run.calibrate.CALIBRATION_NETWORKS = 4
print("imported", flush=True)
for run in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            hwloop.api.optimize(
                task=sys.argv[2], target="fake", run=run.strip(), evaluations=6, seed=4,
                loop_steps=1, finalists=2, final_steps=2, max_drop=0.05,
            )
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Runs `optimize` in a child that may be killed after a while."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(HERE), MINI],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(OMP_NUM_THREADS="1"),
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "imported\n"

    def attempt(self, run: Path, kill_after_s: float | None = None) -> int:
        """Exit code of one attempt; -9 when it was killed in time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(run, file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it may have finished meanwhile
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(timeout=30)


def stored(run: Path, table: str, query: str) -> list[Any]:
    """What the run's store answers; nothing where the table is not there yet."""
    store = run / "hwloop.sqlite"
    if not store.exists():
        return []
    with sqlite3.connect(store) as db:  # may have to undo what a kill interrupted
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        return list(db.execute(query)) if table in tables else []


def trials(run: Path) -> dict[int, str]:
    """Number and digest of every acknowledged trial."""
    return dict(stored(run, "trials", "SELECT number, digest FROM trials"))


def figures_stored(run: Path) -> int:
    """How far a run is: rows, latencies, scores, probes and the rest."""
    return len(stored(run, "records", "SELECT 1 FROM records"))


def without_times(run: Path) -> Any:
    """The report less what may differ: how long things took, and where the folder is."""
    report = json.loads((run / "report.json").read_text())
    for name in ("wall_s", "seconds_by_stage"):
        report["search"].pop(name)
    report.pop("command")
    return report


def test_twenty_kills_lose_nothing_and_change_nothing(server: Server, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    started = time.monotonic()
    assert server.attempt(undisturbed) == 0
    whole_s = time.monotonic() - started

    rng = random.Random(0)
    kills = 0
    moments = []
    for number in range(KILLS):
        run = tmp_path / f"disturbed{number}"
        seen: dict[int, str] = {}
        code = -signal.SIGKILL
        while code == -signal.SIGKILL and kills < KILLS:
            after_s = rng.uniform(0.02, 0.5) * whole_s
            code = server.attempt(run, after_s)
            kills += code == -signal.SIGKILL
            now = trials(run)
            assert seen.items() <= now.items()
            assert sorted(now) == list(range(len(now)))
            assert len(set(now.values())) == len(now)
            seen = now
            moments.append(figures_stored(run))
        if code == -signal.SIGKILL:
            assert server.attempt(run) == 0
        assert seen.items() <= trials(run).items()
        assert trials(run) == trials(undisturbed)
        assert without_times(run) == without_times(undisturbed)
        if kills == KILLS:
            break
    assert kills == KILLS
    assert len(set(moments)) > KILLS // 5  # the kills hit different stages
