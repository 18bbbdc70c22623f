"""Kinds of int8 rows that a target does not build: found out once, masked, said and remembered."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_space import INT8, TENSORRT, chain
from tiny import ON_FAKE, SPEC, Said, inside, network, profile

from hwloop.compress import space
from hwloop.compress.reachable import reachable_configs
from hwloop.compress.rules import SpaceRules
from hwloop.compress.subject import Subject, subject
from hwloop.errors import CandidateError, TargetError, UsageError
from hwloop.measure import paired as measure
from hwloop.measure.answers import LostTwice
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable, stored_refused_kinds
from hwloop.records import LayerConfig
from hwloop.run import target_limits
from hwloop.run.table_files import show
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing
from hwloop.runtimes.rowkinds import kind_of
from hwloop.tasks.load import load_task

FAKE = load_profile("fake")
NO_KERNEL = "build: could not find any implementation for node"


class Builder(DeviceSession):
    """A target that builds what it is told to; it writes down what it was asked for."""

    def __init__(
        self, refuses: Callable[[LayerConfig], bool], error: type = CandidateError
    ) -> None:
        super().__init__(FAKE)
        self.refuses = refuses
        self.error = error
        self.asked: list[LayerConfig] = []

    def build(self, model: OnnxModel) -> float:
        (config,) = model.configs
        assert model.row
        self.asked.append(config)
        if self.refuses(config):
            raise self.error("build", "could not find any implementation for node")
        return 0.1

    def forget(self, model: OnnxModel) -> None:
        pass


def of_kind(*kinds: str) -> Callable[[LayerConfig], bool]:
    return lambda config: config.precision == "int8" and kind_of(config) in kinds


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    return again(tmp_path)


def again(folder: Path) -> LatencyTable:
    """The table as the next process reads it."""
    with DeviceSession(FAKE) as session:
        return LatencyTable(Store(folder / "t.sqlite"), session.fingerprint, FAKE.protocols.row)


def rows() -> tuple[LayerConfig, ...]:
    return reachable_configs(chain(), TENSORRT)


def tried(session: Builder, table: LatencyTable) -> dict[str, str]:
    return measure.quantized_kinds(session, table, rows(), runtime=writing("tensorrt"))


# --------------------------------------------------------------------------- one of each


def test_each_kind_is_built_once_and_nothing_else(table: LatencyTable) -> None:
    session = Builder(of_kind())
    assert tried(session, table) == {}
    kinds = [kind_of(config) for config in session.asked[1:]]
    assert session.asked[0] == REFERENCE
    assert sorted(kinds) == ["conv 3x3, relu", "quantize", "thin conv 3x3, relu"]
    assert {config.precision for config in session.asked[1:]} == {"int8"}


def test_a_refused_kind_is_stored_with_its_reason_and_not_tried_again(
    table: LatencyTable, tmp_path: Path
) -> None:
    refused = {"conv 3x3, relu": NO_KERNEL}
    first = Builder(of_kind("conv 3x3, relu"))
    assert tried(first, table) == refused
    assert first.asked[-1] == EMPTY  # it still builds
    later = Builder(of_kind())
    kept = again(tmp_path)
    assert tried(later, kept) == refused
    assert later.asked == []
    assert stored_refused_kinds(kept.store, kept.population) == refused


def test_a_target_that_builds_nothing_refuses_no_kind(table: LatencyTable, tmp_path: Path) -> None:
    for refuses in (lambda config: True, lambda config: config != REFERENCE):
        with pytest.raises(TargetError, match="cannot run the row"):
            tried(Builder(refuses), table)
        assert stored_refused_kinds(again(tmp_path).store, table.population) == {}


def test_a_kind_that_loses_workers_speaks_against_the_target(table: LatencyTable) -> None:
    with pytest.raises(TargetError, match="cannot run the row"):
        tried(Builder(of_kind("quantize"), LostTwice), table)
    assert not table.tried("quantize")


def test_rows_of_a_refused_kind_are_refused_without_a_try(table: LatencyTable) -> None:
    tried(Builder(of_kind("thin conv 3x3, relu")), table)
    thin = [c for c in rows() if c.precision == "int8" and kind_of(c).startswith("thin")]
    with DeviceSession(FAKE) as session:
        measure.build_rows(session, table, thin, runtime=writing("tensorrt"))
    assert [table.refusal(config) for config in thin] == [NO_KERNEL] * len(thin)
    assert len(table) == 2  # the reference and the empty row


# ---------------------------------------------------------------------------------- masks


def int8_of(rules: SpaceRules) -> list[bool]:
    return [mask[space.menu(rules).index(INT8)] for mask in space.masks(chain(), rules)]


def test_groups_that_need_a_refused_kind_are_masked_and_no_others() -> None:
    assert int8_of(TENSORRT) == [True, True, True, False]
    thin = replace(TENSORRT, refused_kinds=("thin conv 3x3, relu",))
    assert int8_of(thin) == [False, True, True, False]
    assert space.quantized_masked(chain(), thin) == (0,)
    assert int8_of(replace(TENSORRT, refused_kinds=("conv 5x5",))) == [True, True, True, False]


def test_without_a_quantize_there_is_no_int8_and_widths_are_left() -> None:
    found = space.masks(chain(), replace(TENSORRT, refused_kinds=("quantize",)))
    legal = {space.menu(TENSORRT)[i].precision for mask in found for i, ok in enumerate(mask) if ok}
    assert legal == {"base"}
    assert sum(found[0]) > 1


def test_no_reachable_row_is_of_a_kind_that_every_group_lost() -> None:
    rules = replace(TENSORRT, refused_kinds=("conv 3x3, relu", "thin conv 3x3, relu"))
    assert all(c.precision != "int8" for c in reachable_configs(chain(), rules))


def on_tensorrt(precisions: tuple[str, ...] = ("base", "int8"), *kinds: str) -> TargetProfile:
    rules = SpaceRules(precisions=precisions, kinds=kinds or ("keep", "prune"))
    return replace(FAKE, space=rules, recipe="tensorrt")


def tiny_subject(profile: TargetProfile) -> Subject:
    return subject(load_task(SPEC), network(), rules_for(profile, ""), isa="", name="tiny")


def test_a_network_with_nothing_left_is_refused_with_the_kinds(table: LatencyTable) -> None:
    found = tiny_subject(on_tensorrt(("base", "int8"), "keep"))
    everything = Builder(lambda config: config.precision == "int8")
    with pytest.raises(UsageError, match=r"it builds no INT8 .*conv 3x3"):
        target_limits.buildable(found, everything, table, Progress())


def test_other_recipes_are_not_asked(table: LatencyTable) -> None:
    found = tiny_subject(FAKE)
    session = Builder(of_kind())
    assert target_limits.buildable(found, session, table, Progress()) == (found, {})
    assert session.asked == []


# ---------------------------------------------------------------------------- a whole run


def refusing(folder: Path, times: int) -> Path:
    """A fake target of TensorRT's recipe: it builds the reference, then refuses, then builds."""
    path = profile(folder / "board.toml")
    body = path.read_text().replace("align = 8\n", 'align = 8\nrecipe = "tensorrt"\n')
    path.write_text(
        f'{body}[settings.faults]\nbuild = {{kind = "refuse", after = 2, times = {times}}}\n'
    )
    return path


def optimized(capsys: pytest.CaptureFixture[str], folder: Path, target: Path) -> Said:
    options = ("--evaluations", "3", "--loop-steps", "1", "--final-steps", "2", "--finalists", "1")
    goal = ("--max-drop", "none", "--min-speedup", "1.05", "--seed", "1")
    task = ("--task", ON_FAKE[1], "--target", target, "--run", folder / "run")
    return inside(capsys, "optimize", *task, *options, *goal)


def test_a_run_goes_on_without_what_is_refused_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = refusing(tmp_path, 1)
    said = optimized(capsys, tmp_path, target)
    assert said.code in (0, 3), said.err
    line = "INT8 is masked for 1 of 3 groups: thin conv 3x3, relu: build: RuntimeError"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["precisions"]["int8_refused"]) == ["thin conv 3x3, relu"]
    assert report["precisions"]["int8_masked_groups"] == ["conv"]
    for text in (said.err, said.out, (tmp_path / "run" / "report.md").read_text()):
        assert line in text, text
    actions = {item["group"]: item["action"] for item in report["best"]["actions"]}
    assert "int8" not in actions["conv"]
    with sqlite3.connect(tmp_path / "run" / "hwloop.sqlite") as db:
        trials = [json.loads(value) for (value,) in db.execute("SELECT value FROM trials")]
    assert {trial["candidate"]["actions"][0]["precision"] for trial in trials} == {"base"}
    assert "int8" in {trial["candidate"]["actions"][1]["precision"] for trial in trials}


def test_a_resumed_run_asks_no_kind_again_and_decides_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = optimized(capsys, tmp_path, refusing(tmp_path, 1))
    report = (tmp_path / "run" / "report.json").read_text()
    with sqlite3.connect(tmp_path / "run" / "hwloop.sqlite") as db:
        db.execute("DELETE FROM trials WHERE number > 2")
    db.close()
    # Now it would build them all: the identity of a run leaves the faults out.
    again = optimized(capsys, tmp_path, refusing(tmp_path, 0))
    assert first.code == again.code, again.err
    before, after = json.loads(report), json.loads((tmp_path / "run" / "report.json").read_text())
    assert after["precisions"] == before["precisions"]
    assert after["pareto"] == before["pareto"]


def test_without_any_int8_the_run_prunes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The reference, two kinds and the quantize row; the empty row is built again.
    said = optimized(capsys, tmp_path, refusing(tmp_path, 3))
    assert said.code in (0, 3), said.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["precisions"]["int8_masked_groups"] == ["conv", "block2.0"]
    assert all("int8" not in item["action"] for item in report["best"]["actions"])
    assert list(report["comparisons"]) == ["uniform width 50 %"]  # no recipe that is the dense one
    (population,) = show(tmp_path / "run" / "hwloop.sqlite")
    assert len(population["int8_refused"]) == 3
