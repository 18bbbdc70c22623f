"""SQLite: nothing acknowledged is lost, nothing is stored twice, foreign files are left alone."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hwloop.errors import HwloopError, UsageError
from hwloop.files import write_atomically
from hwloop.records import Action, Candidate, Trial, TrialState
from hwloop.store import Store

WRITER = """
import sys
from pathlib import Path
from hwloop.store import Store
store = Store(Path(sys.argv[1]))
for number in range(100_000):
    store.add("row", f"{sys.argv[2]}{number:06d}", {"number": number})
    print(number, flush=True)
"""


NO_SPACE = """
import resource, sys
from pathlib import Path
from hwloop.errors import HwloopError
from hwloop.store import Store
store = Store(Path(sys.argv[1]))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
    for number in range(1000):
        store.add("row", f"{number:04d}", "x" * int(sys.argv[2]))
        print(number)
except HwloopError as error:
    print(error, "/", error.hint, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.add("row", "after", 1)
"""
NO_PERMISSION = """
import os, sys
from pathlib import Path
from hwloop.errors import HwloopError
from hwloop.store import Store
if os.getuid() == 0:
    os.setuid(65534)
try:
    Store(Path(sys.argv[1])).add("a", "k", 2)
except HwloopError as error:
    print(error, "/", error.hint)
"""


def failed(number: int, amount: float) -> Trial:
    return Trial(
        number=number,
        candidate=Candidate(actions=(Action(kind="prune", amount=amount),)),
        state=TrialState.FAILED,
        source="test",
        reason="because",
    )


def test_the_first_value_stands_and_put_replaces(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add("a", "k", 1)
        store.add("a", "k", 2)
        assert store.get("a", "k") == 1
        store.put("a", "k", 3)
    with Store(tmp_path / "s.sqlite") as again:
        assert again.all("a") == {"k": 3}
        assert again.get("b", "k") is None


def test_a_candidate_is_one_trial_however_often_it_is_added(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add_trial(failed(0, 0.5))
        store.add_trial(failed(0, 0.5))
        store.add_trial(failed(1, 0.25))
        assert [trial.number for trial in store.trials()] == [0, 1]
        assert store.trials()[0] == failed(0, 0.5)


def test_everything_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "k"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        seen = [int(child.stdout.readline()) for _ in range(40)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout if line.endswith("\n")]
    with Store(path) as store:
        rows = store.all("row")
    assert all(f"k{number:06d}" in rows for number in seen)
    assert len(rows) - len(seen) in (0, 1)


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store(path).close()
    code = WRITER.replace("100_000", "25")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], stdout=subprocess.DEVNULL)
        for name in "ab"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    with Store(path) as store:
        assert len(store.all("row")) == 50


@pytest.mark.parametrize("size", [3_000, 4_000_000])  # the larger fails before its commit
def test_a_full_disk_loses_nothing_and_is_survived(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", NO_SPACE, str(path), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    acknowledged = done.stdout.split()
    assert len(acknowledged) == 0 if size > 100_000 else 0 < len(acknowledged) < 1000
    assert str(path) in done.stderr
    assert re.search("sqlite: (disk I/O error|database or disk is full)", done.stderr)
    assert "free disk space" in done.stderr
    with Store(path) as store:
        assert set(store.all("row")) == {f"{int(number):04d}" for number in acknowledged} | {
            "after"
        }


def test_a_folder_that_may_not_be_written_is_an_error_with_a_fix() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        path = folder / "s.sqlite"
        with Store(path) as store:
            store.add("a", "k", 1)
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            command = [sys.executable, "-c", NO_PERMISSION, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            folder.chmod(0o755)
        assert f"cannot write {path}" in done.stdout
        assert "permissions" in done.stdout
        with Store(path) as store:
            assert store.get("a", "k") == 1


def test_a_value_without_json_leaves_the_store_usable(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(ValueError):
            store.add("a", "k", float("nan"))
        store.add("a", "k", 1)
        assert store.get("a", "k") == 1


def test_a_file_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="schema 99"):
        Store(path)


def test_garbage_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UsageError, match="damaged"):
        Store(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_does_not_exist_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(HwloopError) as caught:
        Store(tmp_path / "missing" / "s.sqlite")
    assert caught.value.hint


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(HwloopError, match="cannot write /proc"):
        write_atomically(Path("/proc/hwloop.json"), b"x")
