"""SQLite: nothing acknowledged is lost, nothing is stored twice, foreign files are left alone."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hwloop.errors import HwloopError, UsageError
from hwloop.files import write_atomically
from hwloop.findings import Measurement
from hwloop.measure.store import Store
from hwloop.measure.trial import Trial, TrialState
from hwloop.records import Action, Candidate

WRITER = """
import sys
from pathlib import Path
from hwloop.measure.store import Store
store = Store(Path(sys.argv[1]))
for number in range(100_000):
    store.add("row", f"{sys.argv[2]}{number:06d}", {"number": number})
    print(number, flush=True)
"""


NO_SPACE = """
import resource, sys
from pathlib import Path
from hwloop.errors import HwloopError
from hwloop.measure.store import Store
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
from hwloop.measure.store import Store
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


@contextmanager
def closed(folder: Path) -> Iterator[Path]:
    """A store of one value, in a folder in which nothing may be written meanwhile."""
    path = folder / "s.sqlite"
    with Store(path) as store:
        store.add("a", "k", 1)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        yield path
    finally:
        folder.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_an_error_with_a_fix() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        with closed(Path(name)) as path:
            command = [sys.executable, "-c", NO_PERMISSION, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
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


# ---------------------------------------------------------------------------- reading only


def test_reading_only_changes_and_creates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s # 1?.sqlite"
    with Store(path) as store:
        store.add("a", "k", 1)
    before, names = path.read_bytes(), sorted(tmp_path.iterdir())
    with Store(path, read_only=True) as store:
        assert store.get("a", "k") == 1
        assert store.trials() == []
        with pytest.raises(HwloopError, match="readonly"):
            store.add("a", "l", 2)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == names
    with pytest.raises(UsageError, match="no store at"):
        Store(tmp_path / "missing.sqlite", read_only=True)
    assert sorted(tmp_path.iterdir()) == names


def test_an_empty_file_is_no_store_to_read(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.touch()
    with pytest.raises(UsageError):
        Store(path, read_only=True)
    assert path.read_bytes() == b""


def test_a_store_is_read_where_nothing_may_be_written() -> None:
    with tempfile.TemporaryDirectory() as name, closed(Path(name)) as path:
        command = [sys.executable, "-c", READER.format(path=str(path))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1"]


READER = """
import os
from pathlib import Path
from hwloop.measure.store import Store
if os.getuid() == 0:
    os.setuid(65534)
print(Store(Path({path!r}), read_only=True).get("a", "k"))
"""
HALF = """
import os, sys
from pathlib import Path
from hwloop.measure.store import Store
store = Store(Path(sys.argv[1]))
store._db.execute("PRAGMA cache_size = 1")
with store._writing() as db:
    for number in range(2000):
        db.execute("INSERT INTO records VALUES ('a', ?, '2')", (f"{number:0200d}",))
    os._exit(0)
"""


def test_a_store_in_the_middle_of_a_write_is_for_its_writer_to_repair(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.add("a", "k", 1)
    subprocess.run([sys.executable, "-c", HALF, str(path)], check=True)
    assert path.with_name("s.sqlite-journal").exists()
    with pytest.raises(UsageError, match="middle of a write"):
        Store(path, read_only=True)
    with Store(path) as store:
        assert store.all("a") == {"k": 1}
    with Store(path, read_only=True) as store:
        assert store.all("a") == {"k": 1}


# ------------------------------------------------------------------- what others have stored


def test_values_are_added_together_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(ValueError):
            store.add_all([("a", "k", 1), ("a", "l", float("nan"))])
        assert store.all("a") == {}
        store.add_all([("a", "k", 1), ("a", "l", 2)])
        assert store.all("a") == {"k": 1, "l": 2}


def test_a_value_of_the_wrong_shape_is_damage(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add("latency", "k", {"samples_ms": ["1"]})
        with pytest.raises(UsageError, match=r"is damaged: latency 'k'.*samples_ms") as caught:
            store.get("latency", "k", Measurement.from_json)
        assert caught.value.hint
        with pytest.raises(UsageError, match="is damaged"):
            store.all("latency", Measurement.from_json)
        assert store.get("latency", "other", Measurement.from_json) is None


@pytest.mark.parametrize(
    "change",
    [
        "number = 7",
        "digest = 'x'",
        "value = '{}'",
        "value = 'null'",
        """value = replace(value, '"number":0', '"number":true')""",
        """value = replace(value, '"amount":0.5', '"amount":-0.5')""",
        """value = replace(value, '"because"', 'null')""",
        """value = replace(value, '"failed"', '"complete"')""",
        """value = replace(value, '"wall_s":0.0', '"wall_s":1e999')""",
        """value = x'ff'""",
    ],
)
def test_an_altered_trial_is_damage(tmp_path: Path, change: str) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.add_trial(failed(0, 0.5))
    with sqlite3.connect(path) as raw:
        assert raw.execute(f"UPDATE trials SET {change}").rowcount == 1  # noqa: S608
    with Store(path) as store, pytest.raises(UsageError, match="is damaged: trial"):
        store.trials()
