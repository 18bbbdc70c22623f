"""What a report has beside latency and accuracy: copies, energy, precisions, doubtful rows."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import row_onnx
from test_measure import ROWS, STEADY, found
from tiny import ON_FAKE, Said, inside, profile

from hwloop.compress.fp16_range import Kept
from hwloop.errors import CandidateError
from hwloop.findings import Fingerprint, Measurement
from hwloop.measure import bench as benching
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import REFERENCE, LatencyTable, row_doubts
from hwloop.run import beside
from hwloop.runtimes.fp16 import FALLBACKS
from hwloop.runtimes.graph import OnnxModel

NOBODY: dict[str, Any] = {"core_taken_share": 0.01, "other_cores_busy_share": None}
Capsys = pytest.CaptureFixture[str]
COPIES = {"with_copies_ms": 0.7, "without_copies_ms": 0.4, "copied_bytes": 3_200}
ENERGY: dict[str, Any] = {
    **{"energy_mj": 2.5, "mean_mw": 6100.0, "samples": 50, "runs": 900, "source": "INA3221"},
    **{"idle_mw": 3300.0, "rails": ["VDD_CPU", "VDD_GPU"]},
}
OLD_ENERGY = {name: ENERGY[name] for name in ENERGY if name not in ("idle_mw", "rails")}


def optimized(capsys: Capsys, folder: Path, target: Path | str = "fake") -> Said:
    options = ("--evaluations", "3", "--loop-steps", "1", "--final-steps", "2", "--finalists", "1")
    goal = ("--max-drop", "none", "--min-speedup", "1.05", "--seed", "1")
    task = ("--task", ON_FAKE[1], "--target", target, "--run", folder / "run")
    return inside(capsys, "optimize", *task, *options, *goal)


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return found


def everywhere(folder: Path, capsys: Capsys, said: Said) -> list[str]:
    """The console at the end of a run, the page, and the console of ``hwloop report``."""
    again = inside(capsys, "report", folder / "run")
    assert again.code == 0, again.err
    return [said.out, (folder / "run" / "report.md").read_text(), again.out]


def stored(folder: Path, statement: str, *values: str) -> None:
    with sqlite3.connect(folder / "run" / "hwloop.sqlite") as db:
        db.execute(statement, values)
    db.close()


# --------------------------------------------------------------------- copies and energy


def test_copies_and_idle_power_stand_beside_both_networks(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceSession, "copies", lambda self, model: COPIES)
    monkeypatch.setattr(DeviceSession, "energy", lambda self, model, *, seconds: ENERGY)
    said = optimized(capsys, tmp_path)
    report = report_of(tmp_path)
    for name in ("baseline", "best"):
        assert report[name]["copies"] == COPIES
        assert report[name]["energy_mj"] == ENERGY
    assert report["not_measured"] == []
    for text in everywhere(tmp_path, capsys, said):
        assert "baseline 0.700 ms, 0.400 ms without (3.2 kB)" in text
        assert "best 0.700 ms, 0.400 ms without (3.2 kB)" in text
        assert "rails VDD_CPU + VDD_GPU; 6.10 W under load, 3.30 W idle before" in text


def test_a_final_from_before_copies_and_idle_power_is_still_read(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceSession, "energy", lambda self, model, *, seconds: OLD_ENERGY)
    optimized(capsys, tmp_path)
    with sqlite3.connect(tmp_path / "run" / "hwloop.sqlite") as db:
        ((value,),) = db.execute("SELECT value FROM records WHERE kind LIKE 'final/%'")
    db.close()
    final = json.loads(value)
    del final["copies"]
    assert "idle_mw" not in final["energy_mj"]["best"]
    stored(tmp_path, "UPDATE records SET value = ? WHERE kind LIKE 'final/%'", json.dumps(final))
    monkeypatch.setattr(DeviceSession, "copies", lambda self, model: pytest.fail("asked again"))
    said = optimized(capsys, tmp_path)
    report = report_of(tmp_path)
    assert "copies" not in report["best"]
    for text in everywhere(tmp_path, capsys, said):
        assert "6.10 W under load, idle not readable" in text


def test_a_report_from_before_is_still_shown(tmp_path: Path, capsys: Capsys) -> None:
    optimized(capsys, tmp_path)
    path = tmp_path / "run" / "report.json"
    report = report_of(tmp_path)
    del report["precisions"], report["not_measured"], report["table"]["row_doubts"]
    report["best"]["energy_mj"] = {"energy_mj": 2.5, "source": "INA3221"}
    path.write_text(json.dumps(report))
    shown = inside(capsys, "report", path.parent)
    assert shown.code == 0, shown.err
    assert "best: 2.50 mJ per inference, idle included (INA3221)" in shown.out


def test_what_cannot_be_measured_beside_does_not_end_a_run(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*unused: object, **more: object) -> None:
        raise CandidateError("copies", "no pinned memory is left")

    monkeypatch.setattr(DeviceSession, "copies", fails)
    said = optimized(capsys, tmp_path)
    assert said.code in (0, 3), said.err
    (problem,) = report_of(tmp_path)["not_measured"]
    assert problem == {"what": "copies", "why": "copies: no pinned memory is left"}
    for text in everywhere(tmp_path, capsys, said):
        assert "not measured: copies: copies: no pinned memory is left" in text


def test_a_target_without_copies_has_no_line_about_them(tmp_path: Path, capsys: Capsys) -> None:
    said = optimized(capsys, tmp_path)
    assert "copies" not in report_of(tmp_path)["best"]
    assert all("copied" not in text for text in everywhere(tmp_path, capsys, said))


# ------------------------------------------------------------------------------- FP16


def half(path: Path) -> Path:
    body = profile(path).read_text()
    space = 'align = 8\nrecipe = "tensorrt"\nbase_precision = "fp16"\n'
    path.write_text(body.replace("align = 8\n", space))
    return path


def test_fp16_is_said_and_stays_as_it_was_decided(tmp_path: Path, capsys: Capsys) -> None:
    target = half(tmp_path / "half.toml")
    said = optimized(capsys, tmp_path, target)
    report = report_of(tmp_path)
    assert report["precisions"]["base"] == "fp16"
    assert report["precisions"]["kept_float"] == []
    assert all("FP16 in every operator" in text for text in everywhere(tmp_path, capsys, said))
    # As another ONNX Runtime may have decided: stored figures are about that graph.
    other = {"operators": FALLBACKS[1], "reason": "a sum was too large"}
    stored(
        tmp_path,
        "UPDATE records SET value = ? WHERE kind = 'run' AND key = 'fp16'",
        json.dumps(other),
    )
    again = optimized(capsys, tmp_path, target)
    assert again.code == said.code, again.err
    assert report_of(tmp_path)["precisions"]["kept_float_why"] == "a sum was too large"


def test_a_run_from_before_the_choice_keeps_what_was_kept_then(
    tmp_path: Path, capsys: Capsys
) -> None:
    target = half(tmp_path / "half.toml")
    optimized(capsys, tmp_path, target)
    stored(tmp_path, "DELETE FROM records WHERE kind = 'run' AND key = 'fp16'")
    optimized(capsys, tmp_path, target)
    with Store(tmp_path / "run" / "hwloop.sqlite") as store:
        kept = store.get("run", "fp16", Kept.from_json)
    assert kept.operators == FALLBACKS[-1]


# ------------------------------------------------------------------------ doubtful rows


def measured(**changes: Any) -> Measurement:
    return replace(found(STEADY), **changes)


HOST_BOUND = ("host-bound: launching takes 1.4 times as long as running",)


def test_rows_that_hold_more_than_their_block_are_counted_and_named(
    tmp_path: Path, capsys: Capsys
) -> None:
    here = Fingerprint(device="d", runtime="tensorrt", runtime_version="10.3")
    kinds = [
        measured(reformats=0),
        measured(reformats=2),
        measured(reformats=1, unstable=HOST_BOUND),
        measured(),
    ]
    path = tmp_path / "t.sqlite"
    with Store(path) as store:
        table = LatencyTable(store, here, load_profile("fake").protocols.row)
        for config, measurement in zip(ROWS, kinds, strict=True):
            table.add(config, measurement)
        table.add_kind(replace(ROWS[0], precision="int8"), "no kernel")
        assert row_doubts(table.rows()) == [
            "2 of 3 rows pay layout changes of their own",
            "1 of 4 rows are host-bound: launching took longest",
        ]
    said = inside(capsys, "table", "show", "--table", path)
    assert said.code == 0, said.err
    assert "2 of 3 rows pay layout changes of their own" in said.out
    assert "host-bound, layout changes: 1" in said.out
    assert "INT8 refused: linear: no kernel" in said.out


def test_rows_of_a_runtime_that_tells_nothing_raise_no_doubt() -> None:
    assert row_doubts([(REFERENCE, measured())]) == []
    assert row_doubts([], interpolated=7) == [
        "7 more rows lie between measured widths and are interpolated"
    ]


# ------------------------------------------------------------------------------- trtexec

TENSORRT = load_profile("cuda")


class Stopwatch:
    """A session whose engines take a given time, and trtexec's opinion of them."""

    def __init__(self, latency_ms: float) -> None:
        self.profile: TargetProfile = TENSORRT
        self.latency_ms = latency_ms
        self.fingerprint = Fingerprint(device="d", runtime="tensorrt", runtime_version="10.3")

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def measure(self, *unused: object, **more: object) -> Measurement:
        return measured(reference_latency_ms=self.latency_ms)

    def cross_check(self, model: OnnxModel) -> dict[str, Any]:
        return {"trtexec_ms": 1.2 * self.latency_ms}


@pytest.mark.parametrize(("latency_ms", "noted"), [(0.05, True), (0.5, False)])
def test_trtexec_is_worth_less_for_quick_engines_and_it_is_said(
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    latency_ms: float,
    noted: bool,
) -> None:
    monkeypatch.setattr(benching, "DeviceSession", lambda profile: Stopwatch(latency_ms))
    path = tmp_path / "a.onnx"
    path.write_bytes(row_onnx(REFERENCE))
    said = inside(capsys, "bench", path, "--target", "cuda", "--cross-check", "trtexec")
    assert said.code == 0, said.err
    lines = [line for line in said.out.splitlines() if line.startswith("trtexec, ")]
    assert [("one launch per pair of events" in line) for line in lines] == [noted, noted]
    assert "ms (" in said.out
    assert said.out.count(" without copies") == 2
    records = inside(
        capsys, "bench", path, "--target", "cuda", "--cross-check", "trtexec", "--json"
    )
    for record in json.loads(records.out):
        assert record["without_copies"] is True
        assert ("note" in record["cross_check"]) is noted


def test_others_who_used_the_machine_are_told_with_what_they_disturbed() -> None:
    assert beside.disturbance_lines(NOBODY) == []
    assert beside.disturbance_lines({}) == []  # of a report from before
    found = {**NOBODY, "core_taken_share": 0.28, "disturbed_share": 0.12}
    (line,) = beside.disturbance_lines(found)
    assert line.startswith("others used 28% of its core meanwhile; 12% of the samples")
    (line,) = beside.disturbance_lines({**found, "other_cores_busy_share": 0.5})
    assert "28% of its core and 50% of the other cores" in line
