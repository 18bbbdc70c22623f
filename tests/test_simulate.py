"""``--simulate``: a rehearsal without the board, and every figure of it says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny import MINI, Said, hwloop, inside

from hwloop.errors import UsageError
from hwloop.measure.profile_file import resolve

SMALL = ("--agent", "random", "--evaluations", "3", "--loop-steps", "1")
SMALL = (*SMALL, "--final-steps", "2", "--finalists", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    folder = tmp_path_factory.mktemp("simulated") / "run"
    command = ("optimize", "--task", MINI, "--target", "jetson-orin", "--simulate")
    return folder, hwloop(*command, "--run", folder, *SMALL)


def test_every_figure_carries_the_word(run: tuple[Path, Said]) -> None:
    folder, said = run
    assert said.code in (0, 3), said.err
    figure = re.compile(r"\d ms\b|\d\.\d\dx")
    for text in (said.out, said.err, (folder / "report.md").read_text()):
        lines = [
            line for line in text.splitlines() if figure.search(line) and "1.00x  " not in line
        ]
        assert lines
        assert all("simulated" in line for line in lines), lines


def test_the_report_says_it_in_every_record(run: tuple[Path, Said]) -> None:
    report = json.loads((run[0] / "report.json").read_text())
    assert report["target"]["simulated"] is True
    assert report["target"]["verified"] is False
    records = [report["baseline"], report["best"], *report["comparisons"].values()]
    assert {record["latency_source"] for record in [*records, *report["pareto"]]} == {"simulated"}


def test_it_plans_for_the_boards_space_and_recipe() -> None:
    board, rehearsal = resolve("jetson-orin"), resolve("jetson-orin", simulate=True)
    assert rehearsal.space == board.space
    assert rehearsal.recipe == "tensorrt"
    assert rehearsal.simulated
    assert not rehearsal.verified
    assert rehearsal.host is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "cpu"), "no datasheet"),
        (("--target", "jetson-orin", "--table", "rows.sqlite"), "never enter a table of measured"),
        (("--target", "jetson-orin", "--host", "me@board"), "needs no board"),
    ],
)
def test_it_never_mixes_with_what_is_measured(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    found = inside(capsys, "optimize", "--simulate", *arguments)
    assert found.code == 2
    assert said in found.err


def test_a_board_of_another_kind_gives_other_figures() -> None:
    nano = resolve("jetson-orin-nano", simulate=True).settings["roofline"]
    thor = resolve("jetson-thor", simulate=True).settings["roofline"]
    assert thor["gbytes_per_s"] > nano["gbytes_per_s"]
    with pytest.raises(UsageError, match="no datasheet"):
        resolve("cuda", simulate=True)
