"""Every page of help ends in examples, and every example is run here."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torchvision
from method_contract import small_resnet
from onnx import TensorProto, helper
from PIL import Image
from tiny import ON_FAKE, SMALL, inside

from hwloop import api
from hwloop.cli.main import main

Capsys = pytest.CaptureFixture[str]

# Added to an example so that it takes seconds; click takes the last value of an option.
SHORTER = {
    ("optimize",): ("--dry-run", "--run", "runs/new"),
    ("table", "check"): ("--networks", "6", "--task", "my.py:Data"),
}
REAL = 'description = "this CPU, briefly"\nruntime = "onnxruntime"\nverified = false\n'
BOARDS = ("jetson-orin", "cuda")  # not here: the example must end with what is missing


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], (*path, name))


PAGES = list(walk(main, ()))


def command_at(path: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def page(path: tuple[str, ...]) -> str:
    found = command_at(path)
    return found.get_help(click.Context(found, info_name=" ".join(("hwloop", *path))))


def examples(text: str) -> list[str]:
    """The lines at the end of a page of help, below their title."""
    return re.findall(r"^  (hwloop .*)$", text.rpartition("\nExamples:\n")[2], re.MULTILINE)


def words(example: str) -> list[str]:
    """The arguments that the shell would hand over."""
    return shlex.split(example, comments=True)[1:]


EXAMPLES = sorted({shlex.join(words(line)) for path in PAGES for line in examples(page(path))})


def path_of(arguments: list[str]) -> tuple[str, ...]:
    return next(path for path in PAGES[::-1] if tuple(arguments[: len(path)]) == path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: " ".join(path) or "hwloop")
def test_every_page_ends_in_two_examples_that_are_about_it(path: tuple[str, ...]) -> None:
    text = page(path)
    found = examples(text)
    assert len(found) >= 2
    assert text.splitlines()[-len(found) :] == [f"  {line}" for line in found]
    assert all(words(line)[: len(path)] == list(path) for line in found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: " ".join(path) or "hwloop")
def test_help_tells_of_the_variable_wherever_a_target_is_asked_for(path: tuple[str, ...]) -> None:
    names = {name for param in command_at(path).params for name in param.opts}
    asks = "--target" in names or path == ("target", "check")
    assert ("HWLOOP_TARGET" in page(path)) == asks


def done(*arguments: str | Path) -> None:
    """Run the command for what it leaves behind."""
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], contextlib.suppress(SystemExit):
        main.main([str(argument) for argument in arguments], standalone_mode=False)


def any_size() -> bytes:
    """A file that takes images of any size."""
    dims = ["n", 3, "height", "width"]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n in ("input", "output")]
    relu = helper.make_node("Relu", ["input"], ["output"])
    graph = helper.make_graph([relu], "g", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(made.SerializeToString())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "my.py").write_text("from tiny import TinyTask as Data, network as net\n")
    table = folder / "cpu.sqlite"
    done("optimize", *SMALL, "--evaluations", "1", "--run", folder / "hwloop-run")
    shutil.copy(folder / "hwloop-run" / "dense.onnx", folder / "a.onnx")
    shutil.copy(folder / "hwloop-run" / "best" / "model.onnx", folder / "b.onnx")
    (folder / "any-size.onnx").write_bytes(any_size())
    done("table", "build", *ON_FAKE, "--table", table)
    done("table", "export", folder / "rows.jsonl", "--table", table)
    shutil.copy(table, folder / "hwloop-table.sqlite")
    for part, count in (("train", 50), ("val", 1)):
        for label in ("cat", "dog"):
            (folder / "imagenet" / part / label).mkdir(parents=True)
            for number in range(count):
                image = folder / "imagenet" / part / label / f"{number}.png"
                Image.new("RGB", (8, 8), (number, 0, 0)).save(image)
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'ssh: Could not resolve hostname' >&2\nexit 255\n")
    ssh.chmod(0o755)
    short = "".join(f"[protocol.{stage}]\ntime_limit_s = 0.05\n" for stage in ("loop", "bench"))
    (folder / "real.toml").write_text(REAL + short)
    return folder


@pytest.fixture
def at_desk(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the desk to work in: examples write, and must not see each other's files."""
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HWLOOP_TARGET", "fake")
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]))
    # The trained weights would be downloaded, and half of the blocks say the same.
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: small_resnet())
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_does_what_it_says(
    example: str, at_desk: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shlex.split(example)
    path = path_of(arguments)
    if path == ("bench",):  # a simulated target times no files
        monkeypatch.setenv("HWLOOP_TARGET", str(at_desk / "real.toml"))
    said = inside(capsys, *arguments, *SHORTER.get(path, ()))
    assert "internal error" not in said.err
    if set(arguments) & set(BOARDS) and "--simulate" not in arguments and path[-1] != "show":
        assert said.code in (4, 5), said.err
        assert "fix:" in said.err + said.out
    elif path == ("doctor",):  # how healthy this machine is, is not decided here
        assert said.code in (0, 5), said.err
        assert "python" in said.out.lower()
    else:
        assert said.code == 0, said.err
        assert said.out.strip()


@pytest.mark.parametrize("example", [line for line in EXAMPLES if line.startswith("optimize")])
def test_options_of_optimize_are_the_names_of_the_python_function(
    example: str, at_desk: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    report = json.loads((at_desk / "hwloop-run" / "report.json").read_text())
    signature = inspect.signature(api.optimize)

    def optimize(*args: Any, **options: Any) -> dict[str, Any]:
        asked.update(signature.bind(*args, **options).arguments)
        return report

    monkeypatch.setattr(api, "optimize", optimize)
    arguments = [word for word in shlex.split(example) if word != "--dry-run"]
    said = inside(capsys, *arguments)
    assert said.code in (0, 3), said.err
    assert asked["target"] == ("jetson-orin" if "jetson-orin" in arguments else "fake")
    for name, value in itertools.pairwise(arguments):
        if name.startswith("--") and not value.startswith("--"):
            taken = asked[name.strip("-").replace("-", "_")]
            assert taken == (float(value) if isinstance(taken, float) else type(taken)(value))


class TestTheVariable:
    def test_names_the_target_that_is_checked(
        self, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HWLOOP_TARGET", "fkae")
        said = inside(capsys, "target", "check")
        assert said.code == 2
        assert "did you mean 'fake'" in said.err
        assert inside(capsys, "target", "check", "fake").code == 0

    def test_names_the_target_that_the_doctor_looks_at(
        self, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HWLOOP_TARGET", "fkae")
        said = inside(capsys, "doctor")
        assert said.code == 2
        assert "fkae" in said.err
