"""Mistakes in the user's own code and goals: one sentence that names them, and the right fix."""

from __future__ import annotations

import functools
import math
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import COUNTS, HERE, TinyNet, TinyTask, inside, network, split
from torch import Tensor, nn

from hwloop.compress.export import check_exported, export_onnx, value_dependent_lines
from hwloop.errors import UsageError
from hwloop.task import Task, as_model, load_model
from hwloop.tasks import cifar10, fashion_mnist
from hwloop.tasks.download import no_downloads
from hwloop.tasks.load import as_task, load_task
from hwloop.tasks.sanity import check_goal, doubts
from hwloop.tasks.splits import TensorSplit

Capsys = pytest.CaptureFixture[str]

MINE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from torch import nn
from tiny import TinyNet, TinyTask, network, split

class Pair(TinyNet):
    def forward(self, x, mask):
        return super().forward(x * mask)

def half(): return network().half()
def brain(): return network().bfloat16()
def double(): return network().double()
def mixed():
    net = network()
    net.block2.conv1.double()
    return net

def needy(classes, width): return network()
class Needy(TinyTask):
    def __init__(self, folder): pass
def task_of(folder): return TinyTask()

class Doubles(TinyTask):
    def example(self): return super().example().double()

class NoTask:
    pass
def seven(): return 7
"""
# model, task, parts of the message, a part of the fix
THROUGH_THE_COMMAND: dict[str, tuple[str | None, str, tuple[str, ...], str]] = {
    "two inputs": ("Pair", "TinyTask", ("Pair takes 2 inputs (x, mask)", "one"), "wrap it"),
    "float16": ("half", "TinyTask", ("conv.weight is torch.float16",), ".float()"),
    "bfloat16": ("brain", "TinyTask", ("conv.weight is torch.bfloat16",), ".float()"),
    "float64": ("double", "TinyTask", ("conv.weight is torch.float64",), ".float()"),
    "one layer": ("mixed", "TinyTask", ("block2.conv1.weight is torch.float64",), ".float()"),
    "float64 example": (None, "Doubles", ("example()", "torch.float64"), ".float()"),
    "needy function": (
        "needy",
        "TinyTask",
        ("needy needs 2 arguments: classes, width",),
        "my.py:needy(classes=..., width=...)'",
    ),
    "needy task class": (None, "Needy", ("Needy needs an argument: folder",), "Needy(folder=...)'"),
    "needy task": (None, "task_of", ("task_of needs an argument: folder",), "task_of(folder=...)'"),
    "no task class": (None, "NoTask", ("NoTask is a class, but none of a Task",), "Classification"),
    "no task": (None, "seven", ("seven returned a int, not a Task",), "ClassificationTask"),
    "no network": ("seven", "TinyTask", ("seven is a int, not a torch.nn.Module",), "returns one"),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.py"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_the_command_names_the_mistake_and_the_fix(name: str, mine: Path, capsys: Capsys) -> None:
    model, task, parts, fix = THROUGH_THE_COMMAND[name]
    arguments = [] if model is None else [f"my.py:{model}"]
    said = inside(capsys, "optimize", *arguments, "--task", f"my.py:{task}", "--target", "fake")
    assert said.code == 2, said.err
    message, hint = said.err[said.err.index("hwloop: ") :].splitlines()
    assert all(part in message for part in parts), message
    assert hint.startswith("  fix: ")
    assert fix in hint
    assert not (mine.parent / "hwloop-run").exists()


def test_the_fix_for_a_factory_works(mine: Path) -> None:
    assert isinstance(load_model(TinyTask(), "my.py:needy(classes=4, width=8)"), TinyNet)
    assert isinstance(load_task('my.py:Needy(folder="data")'), TinyTask)


class TestObjects:
    """What ``hwloop.optimize`` is given instead of a SPEC."""

    def test_networks_their_classes_and_functions_are_models(self) -> None:
        mine = network()
        found = as_model(mine)
        assert found is not mine
        assert torch.equal(found.get_parameter("fc.weight"), mine.fc.weight)
        for given in (TinyNet, network, functools.partial(network), lambda: network().train()):
            made = load_model(TinyTask(), given)
            assert isinstance(made, TinyNet)
            assert not made.training

    def test_a_network_that_is_given_stays_as_it_is(self) -> None:
        mine = network().train()
        as_model(mine).get_parameter("fc.weight").data.zero_()
        assert mine.training
        assert mine.fc.weight.abs().sum() > 0

    def test_tasks_their_classes_and_functions_are_tasks(self) -> None:
        task = TinyTask()
        assert as_task(task) is task
        assert isinstance(as_task(TinyTask), TinyTask)
        assert isinstance(as_task(lambda: TinyTask()), TinyTask)

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            (None, "task=None is a NoneType, not a Task"),
            (5, "task=5 is a int, not a Task"),
            (object(), "task=<object object at"),
            (nn.Identity, "task=Identity is a class, but none of a Task"),
            (network, "task=network returned a TinyNet, not a Task"),
        ],
    )
    def test_anything_else_is_no_task(self, given: Any, named: str) -> None:
        with pytest.raises(UsageError) as caught:
            as_task(given)
        assert named in caught.value.message
        assert "ClassificationTask" in caught.value.hint
        assert "fashion-mnist" in caught.value.hint

    @pytest.mark.parametrize("given", [5, object(), lambda: 5])
    def test_anything_else_is_no_model(self, given: Any) -> None:
        with pytest.raises(UsageError, match=r"not a torch\.nn\.Module"):
            as_model(given)

    def test_a_factory_with_arguments_is_to_be_called(self) -> None:
        with pytest.raises(UsageError, match="model=Linear needs 2 arguments") as caught:
            as_model(nn.Linear)
        assert caught.value.hint == "give what Linear(in_features=..., out_features=...) returns"


class Branching(nn.Module):
    """Turns its output where the input is positive on average; the shape's check is harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if x.sum() > 0:  # this line
            y = -y
        return y.flatten(1)


class Noisy(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(x), 0.5, training=True).flatten(1)


class Chosen(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return torch.where(x.sum() > 0, -y, y).flatten(1)


class TestWhatIsExported:
    EXAMPLE = torch.zeros(1, 1, 8, 8)
    LINE = next(
        number
        for number, line in enumerate(Path(__file__).read_text().splitlines(), 1)
        if line.endswith("# this line")
    )

    def refused(self, module: nn.Module) -> UsageError:
        graph = export_onnx(module, self.EXAMPLE)
        with pytest.raises(UsageError) as caught:
            check_exported(module, self.EXAMPLE, graph, name="mine")
        assert caught.value.message.startswith(
            "the exported network computes something else than PyTorch's mine: "
        )
        return caught.value

    def test_an_if_over_values_is_named_with_its_line(self) -> None:
        error = self.refused(Branching())
        assert f"{__file__}:{self.LINE} decides in Python" in error.message
        assert "one branch only" in error.message
        assert "torch.where" in error.hint

    def test_the_fix_passes(self) -> None:
        module = Chosen()
        check_exported(module, self.EXAMPLE, export_onnx(module, self.EXAMPLE), name="mine")
        assert value_dependent_lines(module, self.EXAMPLE) == ()

    def test_random_numbers_are_another_cause(self) -> None:
        assert "no random numbers" in self.refused(Noisy()).hint

    def test_a_graph_that_the_runtime_refuses_is_no_bug_of_ours(self) -> None:
        with pytest.raises(UsageError, match="ONNX Runtime cannot run the exported mine: "):
            check_exported(network(), self.EXAMPLE, b"no graph", name="mine")

    def test_without_the_runtime_nothing_is_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = Branching()
        graph = export_onnx(module, self.EXAMPLE)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        check_exported(module, self.EXAMPLE, graph, name="mine")

    def test_lines_of_libraries_are_not_the_users(self) -> None:
        class Checked(Branching):
            def forward(self, x: Tensor) -> Tensor:
                unittest.TestCase().assertTrue(x.sum() > -1)  # noqa: PT009 - its `if` is a library's
                return super().forward(x)

        assert value_dependent_lines(Checked(), self.EXAMPLE) == (f"{__file__}:{self.LINE}",)


class InPerCent(TinyTask):
    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return 100 * super().metric(outputs, targets)


class Error(TinyTask):
    metric_name = "error"
    higher_is_better = False

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return 1 - super().metric(outputs, targets)


def with_search(count: int, base: type[Task] = TinyTask) -> Task:
    order = np.resize(np.arange(COUNTS["search"]), count)
    inputs, targets = split("search").batch(order)
    task: Task = type("Few", (base,), {"search": lambda self: TensorSplit(inputs, targets)})()
    return task


def untrained() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet().eval()


REFUSED: list[tuple[Callable[[], Task], float | None, str, str]] = [
    (TinyTask, math.nan, "--max-drop is nan", "--max-drop 0.01"),
    (TinyTask, math.inf, "--max-drop is inf", "--max-drop 0.01"),
    (TinyTask, -0.5, "--max-drop is -0.5", "--max-drop 0.01"),
    (TinyTask, 1.0, "every network would be good enough; 0.01 is one point", "--max-drop 0.01"),
    (TinyTask, 2.5, "every network would be good enough; 0.01 is one point", "--max-drop 0.025"),
    (TinyTask, 0.999, "every network would be good enough", "--max-drop 0.0"),
    (InPerCent, 120.0, "every network would be good enough", "--max-drop 0.9"),
    (lambda: with_search(9), 0.3, "Few.search()", "the search split of the task tiny has 9"),
    (lambda: with_search(9), None, "Few.search()", "a single one is worth 11 points"),
]


class TestGoals:
    @pytest.mark.parametrize(("task", "max_drop", "first", "second"), REFUSED)
    def test_that_every_network_meets_are_refused(
        self, task: Callable[[], Task], max_drop: float | None, first: str, second: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            check_goal(task(), network(), max_drop=max_drop)
        said = f"{caught.value.message}\n{caught.value.hint}"
        assert first in said
        assert second in said

    @pytest.mark.parametrize(
        ("task", "max_drop"),
        [(TinyTask, None), (TinyTask, 0.0), (TinyTask, 0.5), (InPerCent, 1.0), (Error, 2.0)],
    )
    def test_that_can_be_meant_pass(self, task: type[Task], max_drop: float | None) -> None:
        check_goal(task(), network(), max_drop=max_drop)

    def test_a_network_that_scores_nothing_leaves_no_limit_to_compare_with(self) -> None:
        class Zero(TinyTask):
            def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
                return 0.0

        check_goal(Zero(), network(), max_drop=0.01)


class TestDoubts:
    def test_a_sound_set_up_raises_none(self) -> None:
        assert doubts(with_search(256), network(), max_drop=0.01) == ()

    @pytest.mark.parametrize("max_drop", [0.0, 0.003])
    def test_a_goal_finer_than_one_sample(self, max_drop: float) -> None:
        (doubt,) = doubts(with_search(256), network(), max_drop=max_drop)
        assert f"--max-drop {max_drop:g} is less than one of the 256 samples" in doubt
        assert "0.0039" in doubt

    def test_few_samples(self) -> None:
        (doubt,) = doubts(with_search(199), network(), max_drop=0.1)
        assert "only 199 samples" in doubt

    def test_an_accuracy_in_per_cent(self) -> None:
        (doubt,) = doubts(with_search(256, InPerCent), network(), max_drop=0.001)
        assert "so it is in per cent" in doubt
        assert "--max-drop 1" in doubt

    @pytest.mark.parametrize("base", [TinyTask, InPerCent])
    def test_an_untrained_network(self, base: type[Task]) -> None:
        doubt = doubts(with_search(256, base), untrained(), max_drop=None)[-1]
        assert "not clearly better than guessing" in doubt
        assert "with 4 classes chance alone gives 0.250" in doubt

    def test_an_error_that_may_grow_beyond_itself(self) -> None:
        (doubt,) = doubts(with_search(256, Error), network(), max_drop=50.0)
        assert "--max-drop 50 allows it to become" in doubt

    def test_a_metric_of_the_users_own_is_left_alone(self) -> None:
        assert doubts(with_search(256, Error), untrained(), max_drop=0.001) == ()

    def test_outputs_that_are_not_finite_are_a_mistake(self) -> None:
        class Overflows(TinyNet):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) / 0

        with pytest.raises(UsageError, match="NaN or infinite"):
            doubts(TinyTask(), Overflows().eval(), max_drop=0.01)


class TestDownloads:
    @pytest.mark.parametrize(
        ("name", "source", "size"),
        [("cifar10", cifar10.URL, "170 MB"), ("fashion-mnist", fashion_mnist.URL, "26.4 MB")],
    )
    def test_that_are_forbidden_are_told_instead(
        self, name: str, source: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
        with no_downloads(), pytest.raises(UsageError) as caught:
            load_task(name)
        assert f"{source}" in caught.value.message
        assert f"({size}) would be downloaded to {tmp_path / 'cache'}" in caught.value.message
        assert "--data FOLDER" in caught.value.hint
        assert not list(tmp_path.iterdir())

    def test_are_allowed_again_afterwards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from hwloop.errors import EnvironmentProblem

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(cifar10, "URL", (tmp_path / "missing").as_uri())
        with pytest.raises(RuntimeError), no_downloads():
            raise RuntimeError
        with pytest.raises(EnvironmentProblem, match="cannot download"):
            load_task("cifar10")
