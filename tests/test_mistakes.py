"""What users get wrong: one sentence with its fix and exit code 2 before any work, or it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import HERE, MINI, MiniNet, MiniTask, Said, inside, is_refused, network

import hwloop

Capsys = pytest.CaptureFixture[str]

MINE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from hwloop.task import TensorSplit
from tiny import MiniNet, MiniTask, network, split

class Turns(MiniNet):
    def forward(self, x):
        y = super().forward(x)
        if x.sum() > 0:
            y = -y
        return y
def turns(): return network(Turns)

def untrained():
    torch.manual_seed(0)
    return MiniNet()

class PerCent(MiniTask):
    def metric(self, outputs, targets): return 100 * super().metric(outputs, targets)

class Four(MiniTask):
    def search(self):
        inputs, labels = split("search").batch(range(4))
        return TensorSplit(inputs, labels)
"""
TARGET = """
description = "test"
runtime = "{runtime}"
[settings]
{settings}
[space]
{space}
"""
FAST = ("--evaluations", "1", "--loop-steps", "1", "--final-steps", "2", "--finalists", "1")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my.py").write_text(MINE)
    return folder


def profile(name: str, *, runtime: str = "fake", settings: str = "", space: str = "") -> None:
    Path(name).write_text(TARGET.format(runtime=runtime, settings=settings, space=space))


def optimize(capsys: Capsys, *arguments: str) -> Said:
    """The mini task on the fake target, unless the arguments name others."""
    given = () if "--task" in arguments else ("--task", MINI)
    given += () if "--target" in arguments else ("--target", "fake")
    return inside(capsys, "optimize", *arguments, *given)


# ---------------------------------------------------------------------------------- options

OPTIONS: list[tuple[str, str, str]] = [
    ("--seed -1", "--seed is -1", "--seed 0"),
    ("--seed 4294967296", "from 0 to 4294967295", "--seed 0"),
    ("--evaluations 0", "--evaluations is 0", "--evaluations 1"),
    ("--finalists -3", "--finalists is -3", "--finalists 1"),
    ("--loop-steps -1", "--loop-steps is -1", "--loop-steps 0"),
    ("--final-steps -1", "--final-steps is -1", "--final-steps 0"),
    ("--max-drop inf", "--max-drop is inf", "--max-drop 0.01"),
    ("--max-drop -1", "--max-drop is -1", "--max-drop 0.01"),
    ("--max-drop nan", "--max-drop is nan", "--max-drop 0.01"),
    ("--max-drop 5", "every network would be good enough", "--max-drop 0.05"),
    ("--max-drop none", "needs a limit on the latency", "or add --min-speedup 2"),
    ("--max-latency-ms 0", "--max-latency-ms is 0", "--max-latency-ms 10"),
    ("--max-latency-ms 1e13", "--max-latency-ms is 1", "--max-latency-ms 10"),
    ("--min-speedup 0.5", "the network may become slower", "--min-speedup 1.5"),
    ("--lam 0.2", "the reward is goal", "add --reward linear"),
    ("--reward linear --lam -1", "--lam is -1", "--lam 0.01"),
    ("--table none/rows.sqlite", "no folder for none/rows.sqlite", "mkdir -p none"),
    ("--table my.py", "my.py is damaged or not an SQLite file", "name another"),
    ("--table .", ". is a folder", "name another"),
]


@pytest.mark.parametrize(("given", "named", "fix"), OPTIONS, ids=[row[0] for row in OPTIONS])
@pytest.mark.usefixtures("no_device")
def test_an_option_that_cannot_be_meant_is_refused_before_any_work(
    given: str, named: str, fix: str, project: Path, capsys: Capsys
) -> None:
    is_refused(optimize(capsys, *given.split()), named, f"fix: {fix}" if fix[0] == "-" else fix)
    assert sorted(item.name for item in project.iterdir() if item.name != "__pycache__") == [
        "my.py"
    ]


@pytest.mark.parametrize("command", [("optimize",), ("table", "build")], ids=" ".join)
@pytest.mark.usefixtures("no_device")
def test_a_model_alone_does_not_get_the_demos_data(
    command: tuple[str, ...], project: Path, capsys: Capsys
) -> None:
    said = inside(capsys, *command, "my.py:turns", "--target", "fake")
    is_refused(said, "there is no --task", "fix: --task my.py:MyTask")


def test_the_default_limit_on_the_drop_stays_unless_it_is_lifted(
    project: Path, capsys: Capsys
) -> None:
    def goal(*arguments: str) -> str:
        said = optimize(capsys, *arguments, "--min-speedup", "3", "--dry-run", "--json")
        return str(json.loads(said.out)["goal"])

    assert goal() == "max_drop 0.01, min_speedup 3.0"
    assert goal("--max-drop", "none") == "min_speedup 3.0"


PYTHON: list[tuple[dict[str, Any], str]] = [
    ({"evaluations": "10"}, "evaluations='10' is a str, not a whole number"),
    ({"evaluations": 2.5}, "evaluations=2.5 is a float, not a whole number"),
    ({"evaluations": True}, "evaluations=True is a bool, not a whole number"),
    ({"seed": -1}, "--seed is -1"),
    ({"max_drop": "0.01"}, "max_drop='0.01' is a str, not a number"),
    ({"max_drop": 10**400}, "--max-drop is 1000"),
    ({"max_drop": None}, "without a limit on the drop"),
    ({"min_speedup": float("nan")}, "--min-speedup is nan"),
    ({"task": object()}, "task=<object object"),
    ({"task": None, "model": MiniNet}, "A MODEL needs the data".lower()),
    ({"model": object()}, "not a torch.nn.Module"),
    ({"target": 5}, "target=5 is an int, not a path"),
    ({"run": None}, "run=None is a NoneType, not a path"),
    ({"run": ""}, "--run is ''"),
    ({"host": 5}, "host=5 is an int, not a name"),
    ({"simulate": "yes"}, "simulate='yes' is a str, not True or False"),
    ({"agent": None}, "unknown agent None"),
    ({"lam": 0.5}, "--lam is the weight"),
]


@pytest.mark.parametrize(("given", "named"), PYTHON, ids=[row[1][:40] for row in PYTHON])
@pytest.mark.usefixtures("no_device", "project")
def test_an_argument_of_another_kind_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(hwloop.UsageError) as caught:
        hwloop.optimize(**{"task": MiniTask, "target": "fake", **given})
    assert named in caught.value.message.replace("a MODEL", "a model")
    assert caught.value.hint
    assert not Path("hwloop-run").exists()


@pytest.mark.parametrize("given", [(), (5,), (["a.onnx", "b.onnx"],), ("none.onnx",)])
@pytest.mark.usefixtures("no_device")
def test_bench_wants_paths(given: tuple[Any, ...]) -> None:
    with pytest.raises(hwloop.UsageError) as caught:
        hwloop.bench(*given, target="cpu")
    assert caught.value.hint


@pytest.mark.parametrize("given", [5, None, "", "none"])
def test_load_wants_the_folder_of_a_run(given: Any, project: Path) -> None:
    with pytest.raises(hwloop.UsageError):
        hwloop.load(given)


def test_objects_classes_and_functions_are_what_specs_name(project: Path) -> None:
    options: dict[str, Any] = {"target": "fake", "evaluations": np.int64(1), "finalists": 1}
    options |= {"loop_steps": 0, "final_steps": 0, "max_drop": np.float32(0.3), "agent": "random"}
    first = hwloop.optimize(network(MiniNet), task=MiniTask, run="run", **options)
    # The same again: a class is named as its objects are.
    again = hwloop.optimize(network(MiniNet), task=MiniTask(), run=project / "run", **options)
    assert again["best"] == first["best"]
    assert first["command"].startswith("hwloop.optimize(...) as before, with run=")
    with pytest.raises(hwloop.UsageError, match=r"task: .*MiniTask' there, .*lambda"):
        hwloop.optimize(lambda: network(MiniNet), task=lambda: MiniTask(), run="run", **options)


@pytest.mark.parametrize("where", ["optimize", "bench"])
def test_the_variable_names_the_target_in_python_too(
    where: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWLOOP_TARGET", "fkae")
    with pytest.raises(hwloop.UsageError, match="unknown target 'fkae'"):
        hwloop.optimize(task=MiniTask) if where == "optimize" else hwloop.bench("a.onnx")
    monkeypatch.setenv("HWLOOP_TARGET", "fake")
    if where == "bench":
        with pytest.raises(hwloop.UsageError, match="'fake' is simulated"):
            hwloop.bench("a.onnx", target=None)
        return
    report = hwloop.optimize(
        task=MiniTask,
        target=None,
        evaluations=1,
        loop_steps=0,
        final_steps=0,
        finalists=1,
        max_drop=0.3,
        min_speedup=1.05,
    )
    assert report["target"]["name"] == "fake"
    assert report["goal"]["value"] == {"max_drop": 0.3, "min_speedup": 1.05}


# ---------------------------------------------------------------------------------- the data


@pytest.mark.usefixtures("no_device")
def test_an_if_over_values_is_the_users_mistake(project: Path, capsys: Capsys) -> None:
    line = 1 + MINE.splitlines().index("        if x.sum() > 0:")
    said = optimize(capsys, "my.py:turns")
    is_refused(said, f"my.py:{line} decides in Python what to compute", "torch.where")
    assert not Path("hwloop-run").exists()


@pytest.mark.usefixtures("no_device")
def test_a_network_in_which_nothing_can_be_decided_is_refused(
    project: Path, capsys: Capsys
) -> None:
    profile("thin.toml", space='align = 16\nprecisions = ["base"]')
    said = optimize(capsys, "--target", "thin.toml")
    is_refused(said, "nothing in mini can be compressed", "wider network")
    assert not Path("hwloop-run").exists()


@pytest.mark.usefixtures("no_device")
def test_four_search_samples_decide_nothing(project: Path, capsys: Capsys) -> None:
    is_refused(optimize(capsys, "--task", "my.py:Four"), "has 4 samples", "Four.search()")


def test_what_is_doubtful_is_said_on_stderr_and_in_the_report(
    project: Path, capsys: Capsys
) -> None:
    said = optimize(capsys, "my.py:untrained", "--max-drop", "0.003", *FAST, "--json")
    assert said.code in (0, 3), said.err
    report = json.loads(said.out)
    assert [text.split(":")[0].split(" is ")[0] for text in report["warnings"]] == [
        "--max-drop 0.003",
        "the network",
    ]
    assert "less than one of the 256 samples" in report["warnings"][0]
    assert "not clearly better than guessing" in report["warnings"][1]
    assert all(f"warning: {text}\n" in said.err for text in report["warnings"])
    assert all(text in inside(capsys, "report", "hwloop-run").out for text in report["warnings"])


def test_a_metric_in_per_cent_is_doubtful(project: Path, capsys: Capsys) -> None:
    said = optimize(capsys, "--task", "my.py:PerCent", "--dry-run", "--json")
    assert "so it is in per cent" in json.loads(said.out)["warnings"]


FAILS = """
from my import MiniNet, MiniTask, network

class Wide(MiniNet):
    def forward(self, x):
        y = super().forward(x)
        if self.conv.out_channels < 16 and x.sum() > 0:
            y = -y
        return y
def wide(): return network(Wide)
"""


def test_a_candidate_whose_graph_computes_something_else_fails_and_the_run_goes_on(
    project: Path, capsys: Capsys
) -> None:
    (project / "wide.py").write_text(FAILS)
    said = optimize(capsys, "wide.py:wide", "--max-drop", "0.3", *FAST, "--json")
    assert said.code in (0, 3), said.err
    search = json.loads(said.out)["search"]
    assert 0 < search["failed"] == len(search["failures"]) < search["evaluations"]
    assert all("check: ONNX and PyTorch differ by" in reason for reason in search["failures"])
