"""SQLite files that survive a kill at any moment: runs, trials, measurements.

Rollback journal and ``synchronous=FULL``: what :meth:`Store.add` acknowledged is on the disk.
Inserts are idempotent, so repeating an interrupted step stores nothing twice. Values are
canonical JSON text.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hwloop.errors import HwloopError, UsageError
from hwloop.records import Candidate, Outcome, Trial, TrialState, canonical_json

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


class Store:
    """One SQLite file. ``records`` maps (kind, key) to JSON; ``trials`` are numbered from 0.

    Raises:
        UsageError: the file is not a store of this version, or is damaged.
        HwloopError: the file cannot be written (folder missing, disk full, no permission).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            self._prepare()
        except sqlite3.DatabaseError as error:
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

    def get(self, kind: str, key: str) -> Any:
        """The JSON value, or None."""
        rows = self._read("SELECT value FROM records WHERE kind = ? AND key = ?", (kind, key))
        return json.loads(rows[0][0]) if rows else None

    def all(self, kind: str) -> dict[str, Any]:
        """Every value of a kind by key, in key order."""
        rows = self._read("SELECT key, value FROM records WHERE kind = ? ORDER BY key", (kind,))
        return {key: json.loads(value) for key, value in rows}

    def add(self, kind: str, key: str, value: Any) -> None:
        """Store a value unless the key has one already: the first measurement stands."""
        text = canonical_json(value)
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?)", (kind, key, text))

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store a value, replacing an older one."""
        text = canonical_json(value)
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, key, text))

    # -------------------------------------------------------------------------- trials

    def add_trial(self, trial: Trial) -> None:
        """Acknowledge a trial; adding the same candidate again changes nothing."""
        row = (trial.number, trial.candidate.digest(), trial.state.value, canonical_json(trial))
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO trials VALUES (?, ?, ?, ?)", row)

    def trials(self) -> list[Trial]:
        """All acknowledged trials, in the order in which they were evaluated."""
        rows = self._read("SELECT value FROM trials ORDER BY number", ())
        return [_trial(json.loads(value)) for (value,) in rows]

    # --------------------------------------------------------------------------- inside

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._writing() as db:
            (found,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif found != APPLICATION_ID:
                raise UsageError(
                    f"{self.path} is an SQLite file of another program", "name another file"
                )
            elif version != SCHEMA_VERSION:
                raise UsageError(
                    f"{self.path} has schema {version}, this hwloop writes {SCHEMA_VERSION}",
                    "use the hwloop that wrote it, or export and import: hwloop table export",
                )

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

    def _explained(self, error: sqlite3.DatabaseError) -> HwloopError:
        if isinstance(error, sqlite3.OperationalError):
            return HwloopError(
                f"cannot write {self.path}: {error}",
                "free disk space, or correct the folder's permissions, and repeat the command",
            )
        return UsageError(
            f"{self.path} is damaged or not an SQLite file: {error}",
            "restore it from a copy, or name another file",
        )


def _trial(value: dict[str, Any]) -> Trial:
    outcome = value["outcome"]
    return Trial(
        **{
            **value,
            "candidate": Candidate.from_json(value["candidate"]),
            "state": TrialState(value["state"]),
            "outcome": Outcome.from_json(outcome) if outcome else None,
        }
    )
