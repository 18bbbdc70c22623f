"""What users keep, held as it was: a stored run, its report, a latency table, and the keys.

``tests/data/golden`` was made by an earlier hwloop and is never made anew when the code moves: a
run folder that goes on, a table that imports, and digests by which stored figures are found. Only
where a version in ``hwloop/run/versions.py`` was raised the run is of that version, and what is
left of the one before (``earlier``) is told and refused. A width more on the menu added rows, and
changed no key before it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_keys import keys
from tiny import inside

from hwloop.run.versions import RESULTS

Capsys = pytest.CaptureFixture[str]

GOLDEN = Path(__file__).resolve().parent / "data" / "golden"
MADE_WITH = json.loads((GOLDEN / "run" / "config.json").read_text())["versions"]
EXPORTED_ALIKE = torch.__version__.rpartition(".")[0] == MADE_WITH["torch"].rpartition(".")[0]
same_exporter = pytest.mark.skipif(
    not EXPORTED_ALIKE,
    reason=f"the stored run is about what torch {MADE_WITH['torch']} exports",
)
TIMES = ("wall_s", "seconds_by_stage")


def started(folder: Path, *extra: str) -> list[str | Path]:
    """The stored run's command, on a copy of it."""
    run = folder / "run"
    if not run.exists():
        shutil.copytree(GOLDEN / "run", run, symlinks=True)
        shutil.copy(GOLDEN / "golden_task.py", folder)
    task = f"{folder / 'golden_task.py'}:GoldenTask"
    goal = ("--max-drop", "none", "--min-speedup", "1.05", "--final-steps", "4")
    less = ("--loop-steps", "2", "--finalists", "2")
    return ["optimize", "--task", task, "--target", "fake", *goal, *less, *extra, "--run", run]


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """The report without seconds, versions and the command, which name this machine."""
    kept = {key: value for key, value in report.items() if key not in ("versions", "command")}
    search = {key: value for key, value in kept["search"].items() if key not in TIMES}
    return {**kept, "search": search}


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return without_times(found)


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]


@same_exporter
def test_a_stored_run_that_is_repeated_evaluates_nothing_and_reports_the_same(
    tmp_path: Path, capsys: Capsys
) -> None:
    before = report_of(GOLDEN / "run")
    done = inside(capsys, *started(tmp_path, "--evaluations", "5"))
    assert done.code == 0, done.err
    assert events(tmp_path / "run").count("trial") == events(GOLDEN / "run").count("trial")
    assert report_of(tmp_path / "run") == before


@same_exporter
def test_a_stored_run_that_is_given_more_evaluates_the_difference(
    tmp_path: Path, capsys: Capsys
) -> None:
    before = report_of(GOLDEN / "run")
    done = inside(capsys, *started(tmp_path, "--evaluations", "7"))
    assert done.code == 0, done.err
    after = report_of(tmp_path / "run")
    assert after["search"]["evaluations"] == before["search"]["evaluations"] + 2
    assert after["comparisons"] == before["comparisons"]
    assert after["baseline"] == before["baseline"]


def test_a_run_of_an_earlier_search_is_told_as_it_was_and_not_gone_on_with(
    tmp_path: Path, capsys: Capsys
) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "earlier", run)
    shutil.copy(GOLDEN / "golden_task.py", tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    told = inside(capsys, "report", run)
    assert told.code == 0, told.err
    assert "* after the short recovery of the search, on the search split" in told.out
    done = inside(capsys, *started(tmp_path, "--evaluations", "5"))
    assert done.code == 2
    assert f"hwloop's search (version 1, now {RESULTS['search']})" in done.err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def edited(folder: Path, **changes: Any) -> Path:
    """The stored run's settings with some of them changed; None takes one out."""
    started(folder)
    path = folder / "run" / "config.json"
    value = {**json.loads(path.read_text()), **changes}
    kept = {name: item for name, item in value.items() if name not in changes or item is not None}
    path.write_text(json.dumps(kept))
    return folder / "run"


@same_exporter
def test_settings_that_came_later_than_a_stored_run_count_as_their_defaults(
    tmp_path: Path, capsys: Capsys
) -> None:
    before = report_of(GOLDEN / "run")
    run = edited(tmp_path, seed=None, loop_allowance=None, reward=None, simulate=None)
    assert inside(capsys, "report", run).code == 0
    assert inside(capsys, *started(tmp_path, "--evaluations", "5", "--seed", "1")).code == 2
    done = inside(capsys, *started(tmp_path, "--evaluations", "5"))
    assert done.code == 0, done.err
    assert events(run).count("trial") == events(GOLDEN / "run").count("trial")
    assert report_of(run) == before


@pytest.mark.parametrize("changes", [{"colour": "red"}, {"goal": None}, {"task": None}])
def test_settings_that_are_unknown_or_have_no_default_are_refused(
    changes: dict[str, Any], tmp_path: Path, capsys: Capsys
) -> None:
    run = edited(tmp_path, **changes)
    for command in (started(tmp_path, "--evaluations", "5"), ["report", run]):
        done = inside(capsys, *command)
        assert done.code == 2
        assert "config.json is damaged" in done.err


@same_exporter
def test_a_run_from_the_start_finds_what_the_stored_one_found(
    tmp_path: Path, capsys: Capsys
) -> None:
    """Latencies of a simulated target are the same anywhere; metrics nearly, by the machine."""
    command = started(tmp_path, "--evaluations", "5")
    shutil.rmtree(tmp_path / "run")
    done = inside(capsys, *command)
    assert done.code == 0, done.err
    before, after = report_of(GOLDEN / "run"), report_of(tmp_path / "run")
    assert after["table"]["rows"] == before["table"]["rows"]
    assert after.keys() == before.keys()
    same = ("latency_ms", "size_bytes", "macs", "actions", "speedup", "latency_ms_ci95")
    for name, values in before["comparisons"].items():
        found = after["comparisons"][name]
        assert {key: found[key] for key in same} == {key: values[key] for key in same}
        assert found["metric"] == pytest.approx(values["metric"], abs=0.05)


def test_a_stored_table_imports(tmp_path: Path, capsys: Capsys) -> None:
    file, table = GOLDEN / "table.jsonl", tmp_path / "table.sqlite"
    done = inside(capsys, "table", "import", file, "--table", table)
    assert done.code == 0, done.err
    again = tmp_path / "again.jsonl"
    assert inside(capsys, "table", "export", again, "--table", table).code == 0
    assert again.read_text() == file.read_text()


def test_the_stored_keys_are_those_of_today() -> None:
    """Digests of candidates, fingerprints, protocols, populations and kinds of rows."""
    assert keys() == json.loads((GOLDEN / "keys.json").read_text())
