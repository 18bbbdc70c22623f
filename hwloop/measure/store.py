"""SQLite files that survive a kill at any moment: runs, trials, measurements.

Rollback journal and ``synchronous=FULL``: what :meth:`Store.add` acknowledged is on the disk.
Inserts are idempotent, so repeating an interrupted step stores nothing twice. Values are
canonical JSON text.

A store may come from anybody: before SQLite reads a row, the file must have our schema and nothing
else (a view or a trigger is a program); :mod:`hwloop.measure.storefile` looks at it before that.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shlex import quote as quote_word
from types import TracebackType
from typing import Any
from urllib.parse import quote

from hwloop.errors import HwloopError, UsageError
from hwloop.files import check_regular
from hwloop.measure import storefile
from hwloop.measure.storefile import RESTORE
from hwloop.measure.trial import Trial
from hwloop.parsing import canonical_json, parse_json

APPLICATION_ID = 0x48574C50
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 20.0
_SCHEMA = """
CREATE TABLE records (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    value TEXT NOT NULL
);
"""
_ENTRIES = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
IN_MEMORY = Path(":memory:")


def _as_read(value: Any) -> Any:
    return value


class Store:
    """One SQLite file. ``records`` maps (kind, key) to JSON; ``trials`` are numbered from 0.

    Args:
        read_only: never create or change the file; also where the disk is mounted read-only.

    Raises:
        UsageError: the file is not a store of this version, was altered, or is damaged.
        HwloopError: the file cannot be written (folder missing, disk full, no permission).
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if path != IN_MEMORY:
            storefile.examine(path, read_only=read_only)
        try:
            self._db = sqlite3.connect(
                f"file://{quote(str(path.absolute()))}?mode=ro" if read_only else path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                uri=read_only,
            )
            try:
                self._prepare(read_only)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.DatabaseError as error:
            if read_only and "readonly" in str(error):  # SQLite would repair it first
                raise UsageError(
                    f"{path} was left in the middle of a write", "repeat the command that wrote it"
                ) from error
            raise self._explained(error) from error

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------------------- records

    def get(self, kind: str, key: str, parse: Callable[[Any], Any] = _as_read) -> Any:
        """The JSON value as ``parse`` returns it, or None where there is none.

        Raises:
            UsageError: it is no JSON, or ``parse`` raised a ValueError.
        """
        rows = self._read("SELECT value FROM records WHERE kind = ? AND key = ?", (kind, key))
        return self._parsed(kind, key, rows[0][0], parse) if rows else None

    def all(self, kind: str, parse: Callable[[Any], Any] = _as_read) -> dict[str, Any]:
        """Every value of a kind by key, in key order, as ``parse`` returns them; see get."""
        rows = self._read("SELECT key, value FROM records WHERE kind = ? ORDER BY key", (kind,))
        keys = [self._text(key) for key, _ in rows]
        return {
            key: self._parsed(kind, key, value, parse)
            for key, (_, value) in zip(keys, rows, strict=True)
        }

    def add(self, kind: str, key: str, value: Any) -> None:
        """Store a value unless the key has one already: the first measurement stands."""
        self.add_all([(kind, key, value)])

    def add_all(self, values: Iterable[tuple[str, str, Any]]) -> None:
        """Store (kind, key, value) like :meth:`add`, all of them or, where that fails, none."""
        rows = [(kind, key, canonical_json(value)) for kind, key, value in values]
        with self._writing() as db:
            db.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?)", rows)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store a value, replacing an older one."""
        text = canonical_json(value)
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, key, text))

    def damaged(self, kind: str, key: str, why: object) -> UsageError:
        """The error for a value that is not what its kind is."""
        return UsageError(f"{self.path} is damaged: {kind[:12]} {key[:12]!r}: {why}", RESTORE)

    # -------------------------------------------------------------------------- trials

    def add_trial(self, trial: Trial) -> None:
        """Acknowledge a trial; adding the same candidate again changes nothing."""
        row = (trial.number, trial.candidate.digest(), trial.state.value, canonical_json(trial))
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO trials VALUES (?, ?, ?, ?)", row)

    def trials(self) -> list[Trial]:
        """All acknowledged trials, in the order in which they were evaluated."""
        rows = self._read("SELECT number, digest, value FROM trials ORDER BY number", ())
        found = []
        for number, key, value in rows:
            trial: Trial = self._parsed("trial", str(number), value, Trial.from_json)
            if trial.number != number or trial.candidate.digest().encode() != key:
                raise self.damaged("trial", str(number), "it is another than it says")
            found.append(trial)
        return found

    # --------------------------------------------------------------------------- inside

    def _prepare(self, read_only: bool) -> None:
        self._db.text_factory = bytes  # what is no UTF-8 is found where the value is parsed
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("PRAGMA cell_size_check = ON")
        if not read_only:
            self._db.execute("PRAGMA synchronous = FULL")
            if not self._db.execute(_ENTRIES).fetchall():
                self._create()
        (found,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if found != APPLICATION_ID:
            raise UsageError(
                f"{self.path} is an SQLite file of another program", "name another file"
            )
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{self.path} has schema {version}, this hwloop writes {SCHEMA_VERSION}",
                "use the hwloop that wrote it, or export and import: hwloop table export",
            )
        if self._db.execute(_ENTRIES).fetchall() != _expected_entries():
            raise storefile.altered(self.path, "its schema")

    def _create(self) -> None:
        with self._writing() as db:
            if db.execute(_ENTRIES).fetchall():
                return  # another process was faster
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk afterwards, or none."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _parsed(self, kind: str, key: str, text: Any, parse: Callable[[Any], Any]) -> Any:
        try:
            return parse(parse_json(text))
        except ValueError as error:
            raise self.damaged(kind, key, error) from error

    def _text(self, value: Any) -> str:
        try:
            return str(value, "utf-8")
        except (TypeError, ValueError) as error:
            raise self.damaged("key", repr(value), error) from error

    def _explained(self, error: sqlite3.DatabaseError) -> HwloopError:
        # Our statements are sound, so an SQLITE_ERROR (named since Python 3.11) is the file's.
        file_s = getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR" or "format" in str(error)
        if isinstance(error, sqlite3.OperationalError) and not file_s:
            return HwloopError(
                f"cannot write {self.path}: {error}",
                "free disk space, or correct the folder's permissions, and repeat the command",
            )
        return UsageError(f"{self.path} is damaged or not an SQLite file: {error}", RESTORE)


def check_can_be_store(path: Path) -> None:
    """A store, or a place where one can be made; nothing is written.

    Raises:
        UsageError: it is something else, or has no folder that can be written.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder for {path}", f"mkdir -p {quote_word(str(folder))}")
    exists = os.path.exists(path)
    if not os.access(folder, os.W_OK | os.X_OK) or (exists and not os.access(path, os.W_OK)):
        raise UsageError(f"{path} cannot be written", "name another file, or correct permissions")
    left_by_a_kill = os.path.exists(f"{path}-journal")  # opening repairs it, and so writes
    if exists and not left_by_a_kill:
        check_regular(path, what="an SQLite file", hint="name another file")
        if path.stat().st_size:
            Store(path, read_only=True).close()


def _expected_entries() -> list[Any]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.text_factory = bytes
        db.executescript(_SCHEMA)
        return db.execute(_ENTRIES).fetchall()
