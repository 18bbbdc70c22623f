"""The command line: what it prints where, what it understands, and how it names mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import ON_FAKE, SMALL, SPEC, Said, hwloop, inside

from hwloop.compress.export import export_onnx

Capsys = pytest.CaptureFixture[str]

COMMANDS = [
    ("optimize",),
    ("table",),
    *[("table", name) for name in ("build", "check", "show", "export", "import")],
    ("bench",),
    ("report",),
    *[("target", name) for name in ("list", "show", "check")],
]
MISTAKES = [
    (("optimise",), "'optimize'"),
    (("table", "biuld"), "'build'"),
    (("optimize", "--max-dorp", "0.1"), "--max-drop"),
    (("optimize", "--target", "fkae"), "'fake'"),
    (("optimize", "--task", "dmeo"), "'demo'"),
    (("optimize", "--agent", "dqm"), "'dqn'"),
    (("optimize", "--reward", "gaol"), "'goal'"),
    (("optimize", "--task", SPEC.replace("TinyTask", "TinyTsak")), "'TinyTask'"),
    (("optimize", "tinny.py:TinyNet", *ON_FAKE), "tinny.py"),
    (("optimize", SPEC.replace("TinyTask", "TinyNte"), *ON_FAKE), "'TinyNet'"),
    (("target", "show", "fakee"), "'fake'"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A run with ``--json`` in a process of its own, and what it said."""
    run = tmp_path_factory.mktemp("cli") / "run"
    return run, hwloop("optimize", *SMALL, "--run", run, "--json")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that was built by the command."""
    path = tmp_path_factory.mktemp("table") / "rows.sqlite"
    said = hwloop("table", "build", *ON_FAKE, "--table", path, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["measured"] == json.loads(said.out)["rows"] > 0
    return path


def parsed(said: Said) -> Any:
    assert said.code == 0, said.err
    return json.loads(said.out)


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_shows_an_example_of_every_command(
        self, command: tuple[str, ...], capsys: Capsys
    ) -> None:
        said = inside(capsys, *command, "--help")
        assert said.code == 0
        examples = re.findall(rf"^ +hwloop {command[0]}\b.*$", said.out, re.MULTILINE)
        assert examples, said.out

    def test_of_the_whole_shows_examples(self, capsys: Capsys) -> None:
        assert "hwloop optimize my.py:net" in inside(capsys, "--help").out


class TestMistakes:
    @pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=lambda v: str(v)[:50])
    def test_name_the_closest_word(
        self, arguments: tuple[str, ...], named: str, capsys: Capsys, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        extra = ("--run", run) if arguments[0] == "optimize" else ()
        said = inside(capsys, *arguments, *extra)
        assert said.code == 2
        assert named in said.err
        assert said.out == ""
        assert not run.exists()

    @pytest.mark.parametrize(
        "option", [("--evaluations", "0"), ("--time-limit", "soon"), ("--min-speedup", "-1")]
    )
    def test_impossible_values_are_refused(self, option: tuple[str, str], capsys: Capsys) -> None:
        said = inside(capsys, "optimize", *ON_FAKE, *option)
        assert said.code == 2
        assert option[0].strip("-").split("-")[0] in said.err


class TestJson:
    def test_of_optimize_is_the_report_and_talk_is_elsewhere(
        self, finished: tuple[Path, Said]
    ) -> None:
        run, said = finished
        assert parsed(said) == json.loads((run / "report.json").read_text())
        assert "baseline:" in said.err

    def test_of_a_simulated_run_says_so_everywhere(
        self, finished: tuple[Path, Said], capsys: Capsys
    ) -> None:
        run, said = finished
        report = parsed(said)
        shown = [report["baseline"], report["best"], *report["pareto"]]
        assert {values["latency_source"] for values in shown} == {"simulated"}
        assert inside(capsys, "report", run).out.count(" simulated") >= 2

    def test_of_the_report_is_the_same(self, finished: tuple[Path, Said], capsys: Capsys) -> None:
        run, said = finished
        assert parsed(inside(capsys, "report", run, "--json")) == parsed(said)

    def test_of_targets(self, capsys: Capsys) -> None:
        names = {item["name"] for item in parsed(inside(capsys, "target", "list", "--json"))}
        assert {"cpu", "fake"} <= names
        assert parsed(inside(capsys, "target", "show", "fake", "--json"))["simulated"] is True
        checked = parsed(inside(capsys, "target", "check", "fake", "--json"))
        assert checked["fingerprint"]["runtime"] == "fake"

    def test_of_a_table_shown_exported_and_imported(
        self, table: Path, capsys: Capsys, tmp_path: Path
    ) -> None:
        lines, copy = tmp_path / "rows.jsonl", tmp_path / "copy.sqlite"
        before = parsed(inside(capsys, "table", "show", "--table", table, "--json"))
        count = parsed(inside(capsys, "table", "export", lines, "--table", table, "--json"))["rows"]
        assert before[0]["rows"] == count
        read = parsed(inside(capsys, "table", "import", lines, "--table", copy, "--json"))
        assert read["rows"] == count
        assert parsed(inside(capsys, "table", "show", "--table", copy, "--json")) == before

    def test_of_a_checked_table_tells_the_error(self, table: Path, capsys: Capsys) -> None:
        options = (*ON_FAKE, "--table", table, "--networks", "6", "--json")
        found = parsed(inside(capsys, "table", "check", *options))
        assert found["error"]["n"] == len(found["networks"]) > 0


class TestTables:
    def test_that_are_complete_are_not_measured_again(self, table: Path, capsys: Capsys) -> None:
        said = inside(capsys, "table", "build", *ON_FAKE, "--table", table, "--json")
        assert parsed(said)["measured"] == 0


class TestOptimize:
    def test_dry_run_measures_nothing_and_writes_nothing(
        self, capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = inside(capsys, "optimize", *SMALL, "--dry-run", "--json")
        assert parsed(said)["run folder"] == "hwloop-run (new)"
        assert list(tmp_path.iterdir()) == []

    def test_dry_run_refuses_what_the_run_would_refuse(self, capsys: Capsys) -> None:
        assert inside(capsys, "optimize", *SMALL, "--dry-run", "--agent", "dqm").code == 2

    def test_talks_little_where_nobody_watches(self, finished: tuple[Path, Said]) -> None:
        lines = finished[1].err.splitlines()
        assert 0 < len(lines) <= 22  # two for each full recovery
        assert "\r" not in finished[1].err
        assert "\x1b" not in finished[1].err

    def test_target_comes_from_the_environment(
        self, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HWLOOP_TARGET", "fkae")
        said = inside(capsys, "optimize", "--task", SPEC)
        assert said.code == 2
        assert "fkae" in said.err


class TestReport:
    def test_why_tells_what_was_done_to_each_group(
        self, finished: tuple[Path, Said], capsys: Capsys
    ) -> None:
        run, said = finished
        shown = inside(capsys, "report", run, "--why").out
        short = inside(capsys, "report", run).out
        for item in parsed(said)["best"]["actions"]:
            line = rf"^{re.escape(item['group'])} +{re.escape(item['action'])}$"
            assert re.search(line, shown, re.MULTILINE)
            assert not re.search(line, short, re.MULTILINE)

    def test_of_a_folder_without_one_is_refused(self, capsys: Capsys, tmp_path: Path) -> None:
        said = inside(capsys, "report", tmp_path)
        assert said.code == 2
        assert "there is no run in" in said.err


class TestBench:
    def test_of_equal_files_is_not_significant(self, capsys: Capsys, tmp_path: Path) -> None:
        from tiny import TinyTask

        file = tmp_path / "a.onnx"
        file.write_bytes(export_onnx(TinyTask().model(), TinyTask().example()))
        said = inside(capsys, "bench", file, file, "--target", "cpu")
        assert said.code == 0, said.err
        assert "not significant" in said.out

    def test_json_has_one_record_per_file(
        self, finished: tuple[Path, Said], capsys: Capsys
    ) -> None:
        run, _ = finished
        first, second = parsed(inside(capsys, "bench", run, "--target", "cpu", "--json"))
        assert first["file"].endswith("dense.onnx")
        assert second["latency_source"] == "device"
        assert second["samples"] >= 80

    def test_a_second_opinion_that_cannot_be_had_is_refused_before_any_work(
        self, capsys: Capsys
    ) -> None:
        said = inside(capsys, "bench", "none.onnx", "--target", "cpu", "--cross-check", "trtexec")
        assert said.code == 2
        assert "'cpu' runs onnxruntime" in said.err

    def test_never_times_a_file_on_a_simulated_target(
        self, finished: tuple[Path, Said], capsys: Capsys
    ) -> None:
        said = inside(capsys, "bench", finished[0], "--target", "fake")
        assert said.code == 2
        assert "simulated" in said.err
