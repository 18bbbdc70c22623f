"""The store of a run folder from somebody else: every record and every trial, altered."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strangers import COMMANDS, Alter, Capsys, beside, sound
from strangers import plain_fixture as plain_fixture
from strangers import quick_fixture as quick_fixture
from strangers import run_fixture as run_fixture
from tiny import inside

from hwloop.errors import ExitCode
from hwloop.records import Candidate


def sql(statement: str, *values: Any) -> Alter:
    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            assert db.execute(statement, values).rowcount != 0, statement
        db.close()

    return alter


def record(kind: str, text: str | bytes | float | None) -> Alter:
    """Every value of a kind; the key of a run's inputs is part of most kinds."""
    return sql("UPDATE records SET value = ? WHERE kind LIKE ?", text, f"{kind}%")


def of_run(key: str, text: str | bytes) -> Alter:
    return sql("UPDATE records SET value = ? WHERE kind = 'run' AND key = ?", text, key)


def each_record(kind: str, change: Callable[[Any], Any], renamed: str = "") -> Alter:
    """Every value of a kind as ``change`` makes it, under another kind if one is given."""

    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            question = "SELECT kind, key, value FROM records WHERE kind LIKE ?"
            found = db.execute(question, (f"{kind}%",)).fetchall()
            assert found
            for where, key, value in found:
                row = (where.replace(kind, renamed or kind), json.dumps(change(json.loads(value))))
                statement = "UPDATE records SET kind = ?, value = ? WHERE kind = ? AND key = ?"
                db.execute(statement, (*row, where, key))
        db.close()

    return alter


def changed(kind: str, **changes: Any) -> Alter:
    """Every value of a kind with some fields replaced."""
    return each_record(kind, lambda value: {**value, **changes})


def rows(measurement: dict[str, Any]) -> Alter:
    def change(value: Any) -> Any:
        return {**value, "measurement": {**value["measurement"], **measurement}}

    return each_record("row/", change)


def trial(changes: dict[str, Any], **outcome: Any) -> Alter:
    """Every trial with some fields replaced, and some of its outcome's."""

    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            for number, value in db.execute("SELECT number, value FROM trials").fetchall():
                found = json.loads(value)
                found["outcome"].update(outcome)
                text = json.dumps({**found, **changes})
                db.execute("UPDATE trials SET value = ? WHERE number = ?", (text, number))
        db.close()

    return alter


def another_method(run: Path) -> None:
    """The last trial as one of a method that is not on the menu; its digest fits."""
    with sqlite3.connect(run / "hwloop.sqlite") as db:
        question = "SELECT number, value FROM trials ORDER BY number DESC LIMIT 1"
        number, value = db.execute(question).fetchone()
        found = json.loads(value)
        found["candidate"]["actions"][0].update(kind="unheard-of", amount=0.5)
        digest = Candidate.from_json(found["candidate"]).digest()
        row = (json.dumps(found), digest, number)
        db.execute("UPDATE trials SET value = ?, digest = ? WHERE number = ?", row)
    db.close()


def flat(value: float) -> dict[str, Any]:
    """The fields of a measurement that is the same at every sample."""
    return {"samples_ms": [value] * 3, "reference_ms": [1e9] * 3, "reference_latency_ms": value}


FAILED = {"state": "failed", "outcome": None, "reason": "\x1b[2J\r\nhwloop: all is well\u202e"}


def refusal(row: Any) -> Any:
    """As if the target had refused it; the empty call and the reference are among them."""
    return {"config": row["config"], "reason": "\x1b[2J"}


def unstable(final: Any) -> Any:
    return {**final, "measurement": {**final["measurement"], "unstable": ["\x1b[2J"]}}


def older(final: Any) -> Any:
    return {name: value for name, value in final.items() if name != "copies"}


NO_ENERGY = {"energy_mj": "x", "source": "\x1b"}
MENU = [{"kind": "prune", "amount": 0.3, "precision": "base"}] * 4
UNHEARD_OF = [{"kind": "unheard-of", "amount": 0.5, "precision": "base"}] * 4
ENDLESS = (
    "CREATE VIEW records AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT 'run' AS kind, i AS key, '1' AS value FROM n"
)
STORES: dict[str, Alter] = {
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM trials; END"),
    "a view": lambda run: [sql("ALTER TABLE records RENAME TO r")(run), sql(ENDLESS)(run)],
    "null trials": sql("UPDATE trials SET value = 'null'"),
    "trials of bytes": sql("UPDATE trials SET value = x'ff00'"),
    "trials of spaces": sql("UPDATE trials SET value = ?", " " * (8 << 20)),
    "deep trials": sql("UPDATE trials SET value = ?", "[" * 100_000),
    "another digest": sql("UPDATE trials SET digest = 'x' || number"),
    "a digest of bytes": sql("UPDATE trials SET digest = CAST(number || 'x' AS BLOB)"),
    "other numbers": sql("UPDATE trials SET number = number + 100"),
    "negative numbers": sql("UPDATE trials SET number = number - 100"),
    "no trials": sql("DELETE FROM trials"),
    "one trial less": sql("DELETE FROM trials WHERE number = 1"),
    "another menu": trial({"candidate": {"actions": MENU}}),
    "another method": another_method,
    "failed trials": trial(FAILED),
    "odd sources": trial({"source": "\u202eplanner"}),
    "sources with escapes": trial({"source": "\x1b[31m"}),
    "absurd predictions": trial({"predicted_ms": 1e300}),
    "absurd metrics": trial({}, metric=1e300, metric_drop=-1e300),
    "absurd latencies": trial({"predicted_ms": 1e30}, latency_ms=1e-9),
    "absurd measurements": trial({}, measurement=flat(1e-9)),
    "absurd sizes": trial({}, size_bytes=1 << 62, macs=1 << 62),
    "a latency of nothing": record("latency", "{}"),
    "latencies that are absurd": changed("latency", **flat(1e-9)),
    "latencies that are huge": changed("latency", **flat(1e9)),
    "latencies with escapes": changed("latency", unstable=["\x1b[2J\u202e"], stopped="\x1b"),
    "a baseline of nothing": record("baseline", "null"),
    "a baseline that is absurd": record("baseline", "1e300"),
    "a score of text": record("score", '"x"'),
    "scores that are absurd": changed("score", metric=-1e300, drop=-1e300, upper_drop=-1e300),
    "scores that are huge": changed("score", metric=1e300, drop=1e300, upper_drop=None),
    "probes of nothing": record("probe", "[]"),
    "probes that are absurd": changed("probe", divergence=1e300, drop=1e300),
    "probes that are negative": changed("probe", divergence=-1e300, drop=0.1),
    "probes that failed": record("probe", '{"failed": "\\u001b[2J"}'),
    "a finalist of nothing": record("finalist", "{}"),
    "a finalist of another network": changed("finalist", candidate={"actions": MENU}),
    "a finalist of another method": changed("finalist", candidate={"actions": UNHEARD_OF}),
    "a finalist with too few actions": changed("finalist", candidate={"actions": MENU[:1]}),
    "a finalist of endless steps": changed("finalist", steps=1 << 60, latency_ms=1e-9, drop=-1e300),
    "a finalist that is absurd": changed("finalist", latency_ms=-1e300, drop=-1e300, speedup=0.0),
    "a final of nothing": record("final/", "true"),
    "a final that is absurd": changed("final/", metric=1e300, dense_metric=-1e300),
    "a final with escapes": each_record("final/", unstable),
    "a final with energy": changed("final/", energy_mj={}),
    "a final with odd energy": changed("final/", energy_mj={"baseline": {}, "best": {"a": []}}),
    "a final with text as energy": changed(
        "final/",
        energy_mj={"baseline": NO_ENERGY, "best": NO_ENERGY},
    ),
    "a final of older times": each_record("final/", older),
    "a final with odd copies": changed("final/", copies={"baseline": {}, "best": 7}),
    "a final with failed copies": changed("final/", copies={"failed": "\x1b[2J"}),
    "a choice of FP16": sql(
        """INSERT INTO records VALUES ('run', 'fp16', '{"operators": ["Conv"], "reason": ""}')"""
    ),
    "a kind of INT8 row": sql(
        "INSERT INTO records SELECT DISTINCT replace(kind, 'row/', 'int8/'), 'conv', '{}' "
        "FROM records WHERE kind LIKE 'row/%'"
    ),
    "an engine": sql("INSERT INTO records VALUES ('final', 'engine', '{\"file\": [1]}')"),
    "weights of another digest": record("weights", json.dumps("0" * 64)),
    "weights of no digest": record("weights", "7"),
    "another device": of_run("fingerprint", '{"device": "x"}'),
    "a device with escapes": of_run(
        "fingerprint", '{"device": "\\u001b[2J", "runtime": "fake", "runtime_version": "1"}'
    ),
    "inputs of nothing": of_run("inputs", "{}"),
    "inputs of lists": of_run("inputs", '{"hwloop": [], "train": 7}'),
    "an odd version": of_run("inputs", '{"hwloop": {"\\u202e": {"a": 1}}}'),
    "no inputs": sql("DELETE FROM records WHERE kind = 'run'"),
    "seconds of text": of_run("seconds", '{"train": "x"}'),
    "absurd seconds": of_run("seconds", '{"train": -1e300}'),
    "absurd time": of_run("wall_s", "-1e300"),
    "a best of text": of_run("best_so_far", '"x"'),
    "rows from before": of_run("rows_before", "-1"),
    "very many rows from before": of_run("rows_before", str((1 << 63) - 1)),
    "a stage with escapes": of_run("stage", '"\\u001b[2J"'),
    "a stage of a list": of_run("stage", "[1]"),
    "rows of nothing": record("row/", "{}"),
    "rows of absurd values": rows(flat(1e9)),
    "rows of tiny values": rows(flat(1e-9)),
    "populations of nothing": record("population", "{}"),
    "every row refused": each_record("row/", refusal, "refused/"),
    "a text of null bytes": record("probe", b"\0" * 1000),
    "a number as a value": record("probe", 7.5),
}


DAMAGED = {
    *("a trigger", "a view", "null trials", "other numbers", "negative numbers", "one trial less"),
    *("another digest", "another menu", "sources with escapes", "absurd predictions"),
    *("another method", "a finalist of another method"),
    *("a latency of nothing", "a baseline of nothing", "probes of nothing"),
    *("probes that are absurd", "probes that are negative"),
    *("a finalist of nothing", "a finalist of another network"),
    *("a finalist with too few actions", "a finalist of endless steps", "a final of nothing"),
    *("a final with energy", "a final with odd energy", "a final with text as energy"),
    *("a final with odd copies", "a choice of FP16", "a kind of INT8 row"),
    *("weights of no digest", "another device", "inputs of nothing", "rows from before"),
    *("rows of nothing", "a text of null bytes", "a number as a value"),
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_that_was_altered(case: str, run: Path, capsys: Capsys) -> None:
    STORES[case](run)
    (run / "report.json").unlink()  # so that the report is about the store
    before = beside(run)
    for name in ("json", "dry run", "optimize", "why"):
        said = inside(capsys, *COMMANDS[name](run))
        blocks = name == "optimize" and case == "every row refused"
        assert name != "optimize" or case not in DAMAGED or said.code == ExitCode.USAGE
        assert (blocks and said.code == ExitCode.TARGET) or sound(name, said)
        assert beside(run) == before
    assert b"\x1b" not in (run / "report.md").read_bytes()
