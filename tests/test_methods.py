"""Every method keeps the contract, and a new one needs nothing but its own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from method_contract import MethodContract
from toy_method import Split

import hwloop
from hwloop.compress import methods
from hwloop.compress.methods import lowrank, sparse
from hwloop.compress.methods.drop import Drop
from hwloop.compress.methods.lowrank import LowRank
from hwloop.compress.methods.method import Keep
from hwloop.compress.methods.prune import Prune
from hwloop.compress.methods.resize import Resize
from hwloop.compress.methods.sparse import Sparse
from hwloop.measure.store import Store
from hwloop.records import Action


class TestKeep(MethodContract):
    method = Keep()


class TestResize(MethodContract):
    method = Resize()
    legal_for = "demo"


class TestDrop(MethodContract):
    method = Drop()


class TestPrune(MethodContract):
    method = Prune()


class TestLowRank(MethodContract):
    method = LowRank()

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The contract's networks are thinner than what it is for."""
        monkeypatch.setattr(lowrank, "LEAST_CHANNELS", 1)


class TestSparse(MethodContract):
    method = Sparse()

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The contract's networks are thinner than what it is for."""
        monkeypatch.setattr(sparse, "LEAST_CHANNELS", 1)


class TestSplit(MethodContract):
    """A method that is defined in the tests alone."""

    method = Split()


def test_every_shipped_method_has_its_contract_tested() -> None:
    tested = (TestKeep, TestResize, TestDrop, TestPrune, TestLowRank, TestSparse)
    assert [method.kind for method in methods.METHODS] == [each.method.kind for each in tested]


def test_a_new_method_is_searched_applied_measured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, Split()))
    target = tiny.profile(tmp_path / "toy.toml")
    words = target.read_text().replace("[space]\n", '[space]\nkinds = ["keep", "split"]\n')
    target.write_text(words)
    run = tmp_path / "run"
    goal = ("--max-drop", "none", "--min-speedup", "1.01", "--evaluations", "6")
    less = ("--loop-steps", "1", "--final-steps", "2", "--finalists", "1")
    command = ("optimize", "--task", tiny.MINI, "--target", target, *goal, *less, "--run", run)
    said = tiny.inside(capsys, *command)
    assert said.code == 0, said.err
    with Store(run / "hwloop.sqlite", read_only=True) as store:
        trials = store.trials()
    found = [a for t in trials if t.outcome is not None for a in t.candidate.actions]
    assert {action.kind for action in found} == {"keep", "split"}
    assert {a.precision for a in found if a.kind == "split"} == {"base", "int8"}
    assert any(t.source.startswith("dqn") for t in trials)
    report = json.loads((run / "report.json").read_text())
    assert any("split at" in item["action"] for item in report["best"]["actions"])
    assert report["table"]["error"]["n"] > 0
    assert "split at" in tiny.inside(capsys, "report", run, "--why").out
    network = tiny.MiniTask().model()
    best = hwloop.load(run, model=network)
    assert any(isinstance(child, torch.nn.Sequential) for _, child in best.named_modules())
    again = tiny.inside(capsys, *command)
    assert again.code == 0, again.err
    with Store(run / "hwloop.sqlite", read_only=True) as store:
        assert store.trials() == trials


def test_an_action_that_no_method_has_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="split"):
        methods.method_of(Action(kind="split", amount=0.5))
