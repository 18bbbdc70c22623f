"""The five checks that build engines, on a played board: lines, figures, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_board import FLOOR, POWER, PROFILE, PlayedBoard

from hwloop.errors import CandidateError
from hwloop.measure.doctor import engines
from hwloop.measure.doctor.check import Check
from hwloop.measure.doctor.engines import Finding, Line, Task
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.rowkinds import INT8_KINDS

ORIN, CUDA = load_profile("jetson-orin"), load_profile("cuda")
NAMES = ["import", "launch_floor", "int8_kinds", "layers", "power"]


@pytest.fixture(autouse=True, scope="module")
def one_demo() -> Iterator[None]:
    """The demo's network is described once for each kind of board, and not in every test."""
    described, known = engines._dense, dict[tuple[str, str], OnnxModel]()

    def once(board: Any, task: Task) -> OnnxModel:
        key = task.profile.name, board.isa
        if key not in known:
            known[key] = described(board, task)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "_dense", once)
        yield


class Clock:
    """Goes forward by ``step`` whenever it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def examined(board: PlayedBoard, *, step: float = 0.0, profile: Any = ORIN) -> dict[str, Finding]:
    task = Task(profile=profile, state=board.state(), progress=Progress(), clock=Clock(step))
    found = engines.examine(Line(lambda: board), task)
    assert [finding.name for finding in found] == NAMES
    return {finding.name: finding for finding in found}


def line(finding: Finding, text: str = "") -> Check:
    (found,) = [check for check in finding.checks if text in check.what]
    return found


def test_a_board_in_order_has_a_line_for_each_check_and_no_complaint(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path)
    found = examined(board)
    assert {check.state for finding in found.values() for check in finding.checks} == {"ok"}
    assert line(found["import"]).what == (
        "/usr/bin/python3 imports numpy in 0.3 s, tensorrt in 4.2 s"
    )
    empty = line(found["launch_floor"], "empty row")
    assert empty.what == "the empty row: 12.4 us alone, 3.1 us each of 32 in one graph"
    count = len(INT8_KINDS)
    expected = f"{count} of {count} kinds of INT8 rows are built ({count * 1.5:.1f} s)"
    assert line(found["int8_kinds"]).what == expected
    assert "3 of 34 layers" in line(found["layers"]).what
    assert "4.2% of the time (trtexec 10.3.0)" in line(found["layers"]).what
    assert line(found["power"]).what == (
        "power 4.1 W idle, 11.2 W under load (VDD_IN), 3.21 mJ an inference"
    )


def test_the_example_in_the_documentation_shows_the_lines_as_they_are(tmp_path: Path) -> None:
    shown = (Path(__file__).parent.parent / "docs" / "on-hardware.md").read_text()
    board = PlayedBoard(tmp_path, refuses={"dequantize": "Error Code 9: ..."})
    checks = [check for finding in examined(board).values() for check in finding.checks]
    for check in checks:
        if "the reference row" in check.what or "are built" in check.what:
            continue  # played with the empty row's figures, and in another time
        assert f"{check.state:4}  {check.what}\n" in shown
        assert check.fix is None or f"fix: {check.fix}\n" in shown
    assert f" of {len(INT8_KINDS)} kinds of INT8 rows are built (" in shown


def test_the_figures_are_kept_as_they_came(tmp_path: Path) -> None:
    found = examined(PlayedBoard(tmp_path))
    assert found["launch_floor"].result == {"empty": FLOOR, "reference": FLOOR}
    assert (found["layers"].result, found["power"].result) == (PROFILE, POWER)
    first = found["int8_kinds"].result[0]
    assert first == {"kind": "quantize", "built": True, "build_s": 1.5, "reason": None}


def test_every_kind_is_built_once_as_a_row(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path)
    examined(board)
    assert board.built == [kind for kind, _ in INT8_KINDS]
    assert all(board.rows)


def test_refused_kinds_are_listed_by_reason_and_the_rest_is_built(tmp_path: Path) -> None:
    reasons = dict.fromkeys(["conv 3x3, relu", "conv 1x1", "linear", "dequantize"], "no kernel")
    board = PlayedBoard(tmp_path, refuses={**reasons, "max pool": "Error Code 9"})
    found = examined(board)["int8_kinds"]
    count = len(INT8_KINDS)
    assert line(found, "are built").what.startswith(f"{count - 5} of {count} kinds")
    refused = line(found, "no kernel")
    assert refused.state == "warn"
    assert refused.what.startswith("INT8 is refused for [dequantize]; [conv 1x1]; [conv 3x3, relu]")
    assert "and 1 more: build: no kernel" in refused.what
    assert "4832" not in str(refused.fix)
    assert line(found, "[max pool]: build: Error Code 9")
    assert len(board.built) == count


def test_an_orin_under_jetpack_72_is_told_of_the_known_fault(tmp_path: Path) -> None:
    release = "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic\n"
    board = PlayedBoard(tmp_path, refuses={"dequantize": "no matching rules"})
    (board.root / "etc/nv_tegra_release").write_text(release)
    assert "4832" in str(line(examined(board)["int8_kinds"], "refused").fix)


def test_what_takes_too_long_is_left_out_and_named(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path)
    found = examined(board, step=engines.KINDS_BUDGET_S / 3)["int8_kinds"]
    assert len(board.built) == 2
    late = line(found, "left out")
    assert (late.state, "[conv 1x1]" in late.what) == ("warn", True)
    assert [record["built"] for record in found.result].count(None) == len(INT8_KINDS) - 2


def test_a_launch_floor_that_is_the_hosts_is_a_warning(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path, floor={**FLOOR, "host_share": 0.93})
    check = line(examined(board)["launch_floor"], "empty")
    assert check.state == "warn"
    assert "host-bound: the CPU takes 93%" in check.what
    assert "jetson_clocks" in str(check.fix)


def test_on_a_graphics_card_nobody_is_sent_to_jetson_clocks(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path, board="", floor={**FLOOR, "host_share": 0.93})
    found = examined(board, profile=CUDA)
    assert "jetson" not in str(line(found["launch_floor"], "empty").fix)
    assert line(found["import"]).what.startswith("Python imports")


@pytest.mark.parametrize(
    ("name", "answers", "said"),
    [
        ("import", {"import_s": {"tensorrt": 48.0}}, "tensorrt in 48.0 s"),
        ("launch_floor", {"floor": None}, "knows no launch floor"),
        ("layers", {"profile": {**PROFILE, "reformat_share": 0.4}}, "40.0% of the time"),
        ("power", {"power": None}, "power cannot be read"),
        ("power", {"power": {**POWER, "mean_mw": 4150.0}}, "the load does not show"),
    ],
)
def test_what_is_doubtful_is_a_warning(
    tmp_path: Path, name: str, answers: dict[str, Any], said: str
) -> None:
    checks = examined(PlayedBoard(tmp_path, **answers))[name].checks
    assert {check.state for check in checks} == {"warn"}
    assert said in checks[0].what


def test_a_board_that_hides_its_idle_power_is_not_called_wrong(tmp_path: Path) -> None:
    power = {key: value for key, value in POWER.items() if key not in ("idle_mw", "rails")}
    check = line(examined(PlayedBoard(tmp_path, power=power))["power"])
    assert check.state == "ok"
    assert "unknown idle, 11.2 W under load (VDD_IN)" in check.what


def test_a_check_that_fails_does_not_hide_the_next(tmp_path: Path) -> None:
    missing = CandidateError("run", "trtexec is not there; sudo apt-get install libnvinfer-bin")
    board = PlayedBoard(tmp_path, floor=CandidateError("run", "no"), profile=missing)
    found = examined(board)
    assert line(found["launch_floor"]).what == "the launch floor of rows: not known: run: no"
    layers = line(found["layers"])
    assert (layers.state, layers.fix) == ("warn", "sudo apt-get install libnvinfer-bin")
    assert line(found["power"]).state == line(found["import"]).state == "ok"
    assert (board.opened, board.closed) == (1, 0)


def test_a_lost_target_is_called_again_for_the_next_check(tmp_path: Path) -> None:
    board = PlayedBoard(tmp_path, lost_in="build")
    found = examined(board)
    lost = line(found["int8_kinds"])
    assert (lost.state, lost.fix) == ("fail", "look at its power supply")
    assert found["int8_kinds"].result is None
    assert line(found["layers"]).state == "ok"
    assert (board.opened, board.closed) == (2, 1)


@pytest.mark.parametrize("nonsense", [{}, {"layers": "x", "single_ms": [], "mean_mw": "\x1b[2J"}])
def test_nonsense_of_a_board_is_no_crash(tmp_path: Path, nonsense: dict[str, Any]) -> None:
    board = PlayedBoard(tmp_path, floor=nonsense, profile=nonsense, power=nonsense)
    found = examined(board)
    checks = [check for finding in found.values() for check in finding.checks]
    assert all(check.what.isprintable() for check in checks)
    assert "unknown" in line(found["power"]).what
