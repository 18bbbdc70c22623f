"""Tables, exports and profiles that somebody altered: named, with a fix, and nothing else happens.

Every case runs the command. A canary beside the files shows that nothing outside was written.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_table import HERE, filled
from tiny import ON_FAKE, Said, inside

from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.measure.table_exchange import export_rows

Capsys = pytest.CaptureFixture[str]
Alter = Callable[[Path], None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound table and its export."""
    folder = tmp_path_factory.mktemp("plain")
    lines: list[str] = []
    with Store(folder / "t.sqlite") as store:
        table: LatencyTable = filled(store, (REFERENCE,))
        table.refuse(EMPTY, "no kernel")
        export_rows(store, lines.append)
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, beside the canary."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    yield Path(shutil.copytree(plain, tmp_path / "altered"))
    assert canary.read_text() == "alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["altered", "canary"]


def refused(said: Said) -> None:
    assert said.code == 2, said.err or said.out
    assert "Traceback" not in said.err + said.out
    assert "fix:" in said.err
    assert "\x1b" not in said.err


# ------------------------------------------------------------------------- the whole file


def sql(*statements: str) -> Alter:
    def alter(path: Path) -> None:
        with sqlite3.connect(path) as db:
            for statement in statements:
                db.execute(statement)
        db.close()

    return alter


def at(offset: int, data: bytes) -> Alter:
    def alter(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return alter


def in_place_of(make: Callable[[Path], Any]) -> Alter:
    def alter(path: Path) -> None:
        path.unlink()
        make(path)

    return alter


def beside(ending: str, make: Callable[[Path], Any]) -> Alter:
    return lambda path: make(path.with_name(path.name + ending)) and None


ENDLESS = """CREATE VIEW records AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
SELECT 'population' AS kind, i AS key, '1' AS value FROM n"""
SUPER = b"../canary" + (9).to_bytes(4, "big") * 2 + bytes.fromhex("d9d505f920a163d7")
FILES: dict[str, Alter] = {
    "a view that never ends": sql(
        "ALTER TABLE records RENAME TO hidden",
        ENDLESS,
    ),
    "a trigger": sql(
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM trials; END",
    ),
    "another table": sql("CREATE TABLE more (x)"),
    "an index of an expression": sql("CREATE INDEX i ON records (length(value))"),
    "another column": sql("ALTER TABLE trials ADD COLUMN x DEFAULT (random())"),
    "no table of trials": sql("DROP TABLE trials"),
    "a schema of the future": sql("PRAGMA user_version = 2147483647"),
    "another program": sql("PRAGMA application_id = 1"),
    "a write-ahead log": at(18, b"\2\2"),
    "a format of the future": at(44, b"\0\0\0\x63"),
    "half of it": lambda path: os.truncate(path, 6000),
    "its first bytes": lambda path: os.truncate(path, 10),
    "garbage in the schema": at(110, b"\xff" * 900),
    "text": in_place_of(lambda path: path.write_text("not a database\n" * 99)),
    "a pipe": in_place_of(os.mkfifo),
    "a folder": in_place_of(Path.mkdir),
    "a device": in_place_of(lambda path: path.symlink_to("/dev/zero")),
    "a journal that is a link": beside("-journal", lambda path: path.symlink_to("../new")),
    "a journal that is a pipe": beside("-journal", os.mkfifo),
    "a journal that names a file": beside("-journal", lambda path: path.write_bytes(SUPER)),
    "a log that is a link": beside("-wal", lambda path: path.symlink_to("../new")),
    "a log": beside("-wal", lambda path: path.write_bytes(b"x" * 99)),
    "shared memory that is a link": beside("-shm", lambda path: path.symlink_to("../new")),
}


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused_by_every_command(
    folder: Path, capsys: Capsys, name: str
) -> None:
    table, rows, out = folder / "t.sqlite", folder / "rows.jsonl", folder / "out.jsonl"
    FILES[name](table)
    refused(inside(capsys, "table", "show", "--table", table))
    refused(inside(capsys, "table", "export", out, "--table", table))
    refused(inside(capsys, "table", "import", rows, "--table", table))
    assert not out.exists()


@pytest.mark.parametrize("name", ["a trigger", "text", "a pipe", "a journal that is a link"])
def test_nothing_is_built_into_an_altered_file(folder: Path, capsys: Capsys, name: str) -> None:
    FILES[name](folder / "t.sqlite")
    refused(inside(capsys, "table", "build", *ON_FAKE, "--table", folder / "t.sqlite"))


# ------------------------------------------------------------------------ what is in the file


def text(kind: str, change: Callable[[str], object]) -> Alter:
    """Change the stored text of a kind."""

    def alter(path: Path) -> None:
        with sqlite3.connect(path) as db:
            found = db.execute("SELECT kind, key, value FROM records").fetchall()
            for name, key, value in found:
                if name.startswith(kind):
                    db.execute(
                        "UPDATE records SET value = ? WHERE kind = ? AND key = ?",
                        (change(value), name, key),
                    )
        db.close()

    return alter


def row(**changes: Any) -> Alter:
    """Change fields of every row's measurement."""

    def change(value: str) -> str:
        found = json.loads(value)
        return json.dumps({**found, "measurement": {**found["measurement"], **changes}})

    return text("row/", change)


def header(field: str, **changes: Any) -> Alter:
    def change(value: str) -> str:
        found = json.loads(value)
        return json.dumps({**found, field: {**found[field], **changes}})

    return text("population", change)


def config(**changes: Any) -> Alter:
    def change(value: str) -> str:
        found = json.loads(value)
        return json.dumps({**found, "config": {**found["config"], **changes}})

    return text("row/", change)


VALUES: dict[str, Alter] = {
    "no JSON": text("row/", lambda value: value[:-1]),
    "NaN": text("row/", lambda value: value.replace("1.0", "NaN")),
    "Infinity": text("row/", lambda value: value.replace("1.0", "-Infinity")),
    "overflow": text("row/", lambda value: value.replace("1.0", "1e999")),
    "an endless integer": text("row/", lambda value: value.replace("1.0", "9" * 5000)),
    "nested": text("row/", lambda value: "[" * 200 + "]" * 200),
    "nested very deeply": text("row/", lambda value: "[" * 100_000),
    "twice": text("row/", lambda value: value.replace("{", '{"config":1,', 1)),
    "no UTF-8": text("row/", lambda value: b'{"\xff": 1}'),
    "a lone surrogate": text("row/", lambda value: value.replace("dense", "\\ud800")),
    "an integer": text("row/", lambda value: 7),
    "a list": text("row/", lambda value: "[]"),
    "null": text("row/", lambda value: "null"),
    "samples that are text": row(samples_ms=["1.0"] * 3),
    "samples that are true": row(samples_ms=[True] * 3),
    "no samples": row(samples_ms=[], reference_ms=[]),
    "one sample less": row(samples_ms=[1.0]),
    "samples that are an object": row(samples_ms={"0": 1.0}),
    "samples below zero": row(samples_ms=[-1.0] * 3),
    "samples beyond reason": row(samples_ms=[1e300] * 3),
    "a reference of zero": row(reference_latency_ms=0),
    "an unknown field": row(colour="red"),
    "heat in words": row(temperature_c="hot"),
    "a shape below zero": config(in_shape=[1, -3, 8, 8]),
    "a shape in words": config(in_shape="1382"),
    "a huge shape": config(in_shape=[1, 1 << 40, 8, 8]),
    "another operator": config(op="\x1b[2J"),
    "another precision": config(precision="fp8"),
    "another block under this key": config(out_channels=7),
    "a device with an escape": header("fingerprint", device="\x1b]0;title\x07"),
    "a device that is a list": header("fingerprint", device=["x"]),
    "settings that are no pairs": header("fingerprint", settings=[["a", "b", "c"]]),
    "rounds that are true": header("protocol", rounds=True),
    "a population of no name": sql("UPDATE records SET key = 'x' WHERE kind = 'population'"),
    "a key that is no UTF-8": sql(
        "UPDATE records SET key = CAST(x'ff' AS TEXT) WHERE kind = 'population'"
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_altered_value_is_refused(folder: Path, capsys: Capsys, name: str) -> None:
    table, out = folder / "t.sqlite", folder / "out.jsonl"
    VALUES[name](table)
    said = inside(capsys, "table", "show", "--table", table)
    refused(said)
    assert "is damaged" in said.err
    refused(inside(capsys, "table", "export", out, "--table", table))
    assert not out.exists()


def test_a_run_does_not_read_an_altered_row_or_refusal(folder: Path) -> None:
    from hwloop.errors import UsageError
    from hwloop.measure.profile import Protocols

    for alter in (row(samples_ms=["x"] * 3), text("refused/", lambda value: '{"reason": 1}')):
        table = Path(shutil.copy(folder / "t.sqlite", folder / "copy.sqlite"))
        alter(table)
        with Store(table) as store, pytest.raises(UsageError, match="is damaged"):
            LatencyTable(store, HERE, Protocols().row)


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_named_or_harmless(folder: Path, capsys: Capsys, seed: int) -> None:
    table = folder / "t.sqlite"
    rng, data = random.Random(seed), bytearray(table.read_bytes())
    for _ in range(rng.choice((1, 4, 40))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    table.write_bytes(data)
    said = inside(capsys, "table", "show", "--table", table)
    assert said.code in (0, 2), said.err
    assert "Traceback" not in said.err


# ------------------------------------------------------------------------------- an export


def line(number: int, change: Callable[[dict[str, Any]], Any]) -> Alter:
    def alter(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number] = json.dumps(change(json.loads(lines[number])))
        path.write_text("\n".join(lines))

    return alter


def lines(change: Callable[[str], str]) -> Alter:
    return lambda path: path.write_text(change(path.read_text())) and None


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


EXPORTS: dict[str, Alter] = {
    "empty": lines(lambda found: ""),
    "cut": lines(lambda found: found[:-20]),
    "no header": lines(lambda found: found.split("\n", 1)[1]),
    "a list": lines(lambda found: "[]\n" + found),
    "a number": lines(lambda found: "1\n" + found),
    "nested": lines(lambda found: "[" * 100_000),
    "NaN": lines(lambda found: found.replace("1.0", "NaN")),
    "overflow": lines(lambda found: found.replace("1.0", "1e999")),
    "an endless integer": lines(lambda found: found.replace("1.0", "9" * 5000)),
    "binary": in_place_of(lambda path: path.write_bytes(os.urandom(5000))),
    "another schema": line(0, lambda found: {**found, "schema": 99}),
    "a population that is a list": line(0, lambda found: {**found, "population": []}),
    "another device": line(
        0, lambda found: {**found, "fingerprint": {**found["fingerprint"], "device": "x"}}
    ),
    "a field more": line(0, lambda found: {**found, "more": 1}),
    "no measurement": line(1, lambda found: {**found, "measurement": None}),
    "a key that is a number": line(1, lambda found: {**found, "key": 1}),
    "another block": line(1, lambda found: {**found, "config": {**found["config"], "groups": 2}}),
    "missing": Path.unlink,
    "a pipe": in_place_of(os.mkfifo),
    "a folder": in_place_of(Path.mkdir),
    "a device": in_place_of(lambda path: path.symlink_to("/dev/zero")),
    "huge": in_place_of(a_huge_file),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_altered_export_adds_nothing_and_creates_nothing(
    folder: Path, capsys: Capsys, name: str
) -> None:
    table, new = folder / "t.sqlite", folder / "new.sqlite"
    before = table.read_bytes()
    EXPORTS[name](folder / "rows.jsonl")
    for target in (table, new):
        refused(inside(capsys, "table", "import", folder / "rows.jsonl", "--table", target))
    assert table.read_bytes() == before
    assert not new.exists()


def test_a_sound_export_makes_a_sound_table(folder: Path, capsys: Capsys) -> None:
    rows, new, out = folder / "rows.jsonl", folder / "new.sqlite", folder / "out.jsonl"
    assert inside(capsys, "table", "import", rows, "--table", new).code == 0
    assert inside(capsys, "table", "export", out, "--table", new).code == 0
    assert out.read_bytes() == rows.read_bytes()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_an_export_replaces_files_only(folder: Path, capsys: Capsys, make: Alter) -> None:
    out = folder / "out"
    make(out)
    refused(inside(capsys, "table", "export", out, "--table", folder / "t.sqlite"))
    assert not out.is_file()


# --------------------------------------------------------------------------------- options


def test_a_table_that_is_missing_is_not_built_by_a_check(tmp_path: Path, capsys: Capsys) -> None:
    table = tmp_path / "typo.sqlite"
    said = inside(capsys, "table", "check", *ON_FAKE, "--table", table)
    refused(said)
    assert f"hwloop table build --table {table}" in said.err
    assert not table.exists()


@pytest.mark.parametrize(
    "options",
    [
        *[("check", "--networks", value) for value in ("0", "-1", "1000000000", "x")],
        *[("check", "--seed", value) for value in ("-1", "4294967296")],
        *[("show", "--rows", value) for value in ("0", "-1", "1000000000")],
    ],
    ids=" ".join,
)
def test_a_number_that_makes_no_sense_is_refused(
    folder: Path, capsys: Capsys, options: tuple[str, ...]
) -> None:
    said = inside(capsys, "table", *options, "--table", folder / "t.sqlite")
    assert said.code == 2
    assert options[1] in said.err
