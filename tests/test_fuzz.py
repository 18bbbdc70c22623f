"""Anything on the command line, anything into the Python names: an answer or a refusal, in order.

A command line that is accepted ends where the target would be started: there is none here, which is
exit code 4. The examples are the same every time; ``HWLOOP_FUZZ=5000`` draws as many others.
"""

from __future__ import annotations

import decimal
import fractions
import functools
import inspect
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_identity import snapshot
from test_table import filled
from tiny import HERE, ON_FAKE, SPEC, TinyNet, TinyTask, inside, network

import hwloop
from hwloop.cli.main import main
from hwloop.compress.export import export_onnx
from hwloop.errors import ExitCode, HwloopError, TargetError
from hwloop.measure import bench as benching
from hwloop.measure import checking
from hwloop.measure.progress import Progress
from hwloop.measure.store import Store
from hwloop.measure.table import REFERENCE
from hwloop.measure.table_exchange import export_rows
from hwloop.run import admission, config, stages
from hwloop.run import dry_run as plan
from hwloop.run import table_check as tables
from hwloop.run.folder import RunFolder
from hwloop.run.options import settings_of
from hwloop.tasks.demo import task as demo
from hwloop.tasks.download import no_downloads

Capsys = pytest.CaptureFixture[str]

EXAMPLES = int(os.environ.get("HWLOOP_FUZZ", "300"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="HWLOOP_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ENDED = (
    *(ExitCode.MET, ExitCode.USAGE, ExitCode.NOT_MET, ExitCode.TARGET, ExitCode.ENVIRONMENT),
    ExitCode.FAILED,
)
CANNOT_WRITE = ("cannot write", "cannot open")
"""What exit code 1 is for: a disk or a folder that takes nothing."""


@pytest.fixture(autouse=True)
def nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No target, no download, and an ``ssh`` that leaves a trace."""

    def unreachable(*args: Any) -> Any:
        raise TargetError("no target here", "none is needed")

    checked, kept = admission.checked, {}

    def once(options: Any, task: Any, module: Any, profile: Any) -> Any:
        key = (type(task), type(module), options.goal.max_drop, options.table)
        if key not in kept:
            kept[key] = checked(options, task, module, profile)
        return kept[key]

    monkeypatch.setattr(admission, "checked", once)
    monkeypatch.setattr(plan, "checked", once)
    for module in (stages, tables, benching, checking):
        monkeypatch.setattr(module, "DeviceSession", unreachable)
    monkeypatch.setattr(demo, "DemoTask", TinyTask)  # the real one takes seconds to check
    outside = tmp_path / "outside"
    (outside / "bin").mkdir(parents=True)
    (outside / "canary").write_text("alive")
    stub = outside / "bin" / "ssh"
    stub.write_text(f"#!/bin/sh\ntouch {outside}/called\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(outside / "bin"), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here-cache"))  # ONNX Runtime has one
    monkeypatch.delenv("HWLOOP_TARGET", raising=False)
    with no_downloads():
        yield


NUMBERS = itertools.count()


@functools.cache
def sound_files() -> dict[str, bytes]:
    """A table, its export, and a network."""
    with tempfile.TemporaryDirectory() as folder:
        lines: list[str] = []
        with Store(Path(folder) / "t.sqlite") as store:
            filled(store, (REFERENCE,))
            export_rows(store, lines.append)
        table = (Path(folder) / "t.sqlite").read_bytes()
    graph = export_onnx(network(), TinyTask().example())
    return {"t.sqlite": table, "rows.jsonl": "".join(lines).encode(), "a.onnx": graph}


def fresh(tmp_path: Path) -> Path:
    """A folder to work in, with a bit of everything that a path can lead to."""
    here = tmp_path / f"here{next(NUMBERS)}"
    (here / "folder").mkdir(parents=True)
    (here / "folder" / "file").write_text("kept")
    (here / "text").write_text("one\ntwo\n")
    (here / "empty").touch()
    (here / "binary").write_bytes(bytes(range(256)) * 4)
    for name, data in sound_files().items():
        (here / name).write_bytes(data)
    (here / "p.toml").write_text('description = "x"\nruntime = "fake"\n')
    (here / "bad.toml").write_text("description = 1\n")
    (here / "my.py").write_text("def boom():\n    raise KeyError\n\nseven = 7\n")
    (here / "tiny.py").symlink_to(HERE / "tiny.py")
    os.mkfifo(here / "pipe")
    (here / "endless").symlink_to("/dev/zero")
    (here / "circle").symlink_to("circle")
    os.chdir(here)
    return here


@pytest.fixture(autouse=True)
def where_it_was() -> Iterator[None]:
    """What these tests change of the process itself: the folder that it is in."""
    before = Path.cwd()
    yield
    os.chdir(before)


def around(tmp_path: Path) -> Any:
    names = [path.name for path in tmp_path.iterdir() if not path.name.startswith("here")]
    return names, snapshot(tmp_path / "outside")


# ------------------------------------------------------------------------- command lines

ABSURD = (
    *("", " ", "-", "--", "-1", "0", "-0", "nan", "inf", "-inf", "1e308", "1e-320", "1e999"),
    *("9" * 30, "9" * 5000, "-" + "9" * 400, "0x10", "1_000", "1,5", "\u0663", "None", "none"),
    *("true", "\u00fc\u4e2d\u202e", "\x1b[31mred", "a\nb", "\t", "\udcff", "x" * 300, "x" * 70_000),
    *("$(touch canary)", "`touch canary`", "; touch canary", "| cat", "*", "~", "~nobody-here/x"),
    *("../..", "/", ".", "..", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem"),
    *("missing", "missing/deep/file", "folder", "text", "empty", "binary", "pipe", "endless"),
    *("circle", "circle/x", "text/x", "a.onnx", "p.toml", "bad.toml", "pipe.toml", "missing.toml"),
    *("demo", "images", "cifar10", "fake", "cpu", "jetson-orin", "linear", "planner", "trtexec"),
    *("my.py:boom", "my.py:seven", "my.py:gone", "my.py", ":", "a:b", "os:system('touch canary')"),
    *("os:getcwd()", "my.py:boom(__import__('os'))", "pipe.py:x", "folder:x", "my.py:" + "(" * 500),
    *("me@host", "-oProxyCommand=touch canary", "host:99999", "a b", "ssh://u@h:22", "[::1]:22"),
    *("90s", "1h", "-1s", "1e9h", "input:1x3x8x8", "input:-1", "input:" + "9x" * 500, "input:0"),
    *("tiny.py:TinyNet", "tiny.py:network", "tiny.py:TinyTask"),  # they may become run folders
)
VALID = {
    "task": (SPEC,),
    "target": ("fake", "cpu", "p.toml"),
    "host": ("me@board", "board:2222"),
    "max_drop": ("0.01", "none"),
    "max_latency_ms": ("5",),
    "min_speedup": ("1.5",),
    "run": ("run", "runs/mine"),
    "agent": ("dqn", "planner"),
    "reward": ("goal", "linear"),
    "lam": ("0.1",),
    "time_limit": ("90s", "2h"),
    "finish": ("90s", "10m"),
    "table": ("t.sqlite",),
    "table_file": ("t.sqlite",),
    "model": (f"{HERE}/tiny.py:network",),
    "files": ("a.onnx",),
    "file": ("rows.jsonl",),
    "name": ("fake", "p.toml", "jetson-orin"),
    "shapes": ("input:1x1x8x8",),
}


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it; groups by themselves too."""
    found = {path: command}
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            found.update(leaves(inner, (*path, name)))
    return found


COMMANDS = leaves(main)
MOST = [("optimize",), ("optimize",), ("bench",), ("table", "build"), ("table", "import")]
NONSENSE = [["--nonsense"], ["--run"], ["-x"], ["--json=1"], ["--", "x"]]


SOUND_SHARE = (0, 5, 9, 10)
"""Tenths of the values that are sound: without the last two hardly a line would get far."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    path = draw(st.sampled_from(sorted(COMMANDS)) | st.sampled_from(MOST))
    share = draw(st.sampled_from(SOUND_SHARE))

    def value(name: str | None) -> str:
        if draw(st.integers(0, 9)) < share:
            return draw(st.sampled_from(VALID.get(name or "", ("6", "8"))))
        return draw(st.sampled_from(ABSURD) | st.text(max_size=12))

    known = {param.name for param in COMMANDS[path].params}
    options = [*ON_FAKE] if share > 5 and {"task", "target"} <= known else []
    arguments = []
    for param in COMMANDS[path].params:
        if param.name == "debug":  # it asks for a traceback
            continue
        if isinstance(param, click.Argument):
            needed = draw(st.integers(0, 5)) > 0
            arguments += [value(param.name)] * needed
        elif draw(st.integers(0, 3)) == 0:
            flag = isinstance(param, click.Option) and param.is_flag
            options += [draw(st.sampled_from(param.opts)), *([] if flag else [value(param.name)])]
    if draw(st.integers(0, 9)) == 0:
        options += draw(st.sampled_from(NONSENSE))
    if draw(st.integers(0, 9)) == 0:
        arguments.append(value(None))
    words = [*path, *options, *arguments] if draw(st.booleans()) else [*path, *arguments, *options]
    return [word.replace("\0", "") for word in words]  # no process can be given one


@FUZZ
@given(line=command_lines())
def test_any_command_line_ends_in_order(line: list[str], tmp_path: Path, capsys: Capsys) -> None:
    here = fresh(tmp_path)
    try:
        outside, before = around(tmp_path), snapshot(here)
        said = inside(capsys, *line)
        text = said.out + said.err
        assert said.code in ENDED, text
        assert "Traceback" not in text
        assert "internal error" not in text
        assert around(tmp_path) == outside
        if said.code == ExitCode.FAILED:
            assert any(words in said.err for words in CANNOT_WRITE), said.err
        if said.code == ExitCode.USAGE:
            assert snapshot(here) == before
            assert said.err.strip()
    finally:
        os.chdir(tmp_path)
        shutil.rmtree(here)


# ------------------------------------------------------------------------- the Python names


class Odd:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = object.__hash__


class OddPath:
    def __fspath__(self) -> bytes:
        return b"x"


def boom(*args: Any) -> Any:
    raise KeyError("boom")


ANYTHING: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "list": list,
    "dict": dict,
    "set": set,
    "object": object,
    "a function": lambda: boom,
    "a lambda": lambda: lambda: 0,
    "a class": lambda: int,
    "a module": lambda: os,
    "a generator": lambda: (i for i in "abc"),
    "range": lambda: range(3),
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(b"x"),
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "0.5": lambda: 0.5,
    "1e308": lambda: 1e308,
    "tiny": lambda: 5e-324,
    "a huge integer": lambda: 10**5000,
    "a large integer": lambda: 10**400,
    "complex": lambda: 1j,
    "Decimal": lambda: decimal.Decimal("0.01"),
    "Fraction": lambda: fractions.Fraction(3, 2),
    "True": lambda: True,
    "False": lambda: False,
    "np.int64": lambda: np.int64(3),
    "np.float32": lambda: np.float32(1.5),
    "np.float64": lambda: np.float64("nan"),
    "np.bool": lambda: np.bool_(True),
    "np.str": lambda: np.str_("x"),
    "np.array": lambda: np.zeros(3),
    "np.datetime64": lambda: np.datetime64("NaT"),
    "torch.tensor": lambda: torch.tensor(1),
    "tensors": lambda: torch.zeros(2, 2),
    "a module of torch": lambda: torch.nn.Linear(2, 2),
    "a network": network,
    "a task": TinyTask,
    "the class of a task": lambda: TinyTask,
    "Path": lambda: Path("x"),
    "a path of a folder": lambda: Path("folder"),
    "a path of a pipe": lambda: Path("pipe"),
    "an odd path": OddPath,
    "an odd object": Odd,
    "the odd class": lambda: Odd,
    "an exception": lambda: KeyError("x"),
    "progress": Progress,
    "pairs": lambda: {"input": (1, 2)},
    "odd pairs": lambda: {7: None},
    "endless pairs": lambda: {"input": range(1 << 40)},
    "negative pairs": lambda: {"input": [-1, "x"]},
    "numpy pairs": lambda: {"input": np.array([1, 2])},
    "strings": lambda: ["input:1x2", None],
    "iterator": lambda: itertools.islice(itertools.repeat("input:1x1"), 3),
    "null": lambda: "\0",
    "a surrogate": lambda: "\ud800",
    "nothing": lambda: "",
    "a long text": lambda: "x" * 100_000,
    "an unknown home": lambda: "~nobody-here/x.py:y",
    "an option": lambda: "-oProxyCommand=touch canary",
    "lines": lambda: "a\nb",
    "escapes": lambda: "\x1b[2J",
    "circle": lambda: "circle",
    "demo": lambda: "demo",
    "fake": lambda: "fake",
    "a spec": lambda: "tiny.py:TinyTask",
}
OPTIMIZE = (
    *("model", "task", "target", "host", "simulate", "run", "data", "max_drop", "max_latency_ms"),
    *("min_speedup", "agent", "reward", "lam", "evaluations", "time_limit_s", "seed", "table"),
    *("loop_steps", "finalists", "final_steps", "finish_s", "progress"),
)
LOAD = ("run", "model", "task", "trust")
BENCH = ("files", "target", "host", "shapes", "cross_check", "progress")


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A name, and what each of its arguments is replaced by."""
    name, known = draw(st.sampled_from([("optimize", OPTIMIZE), ("load", LOAD), ("bench", BENCH)]))
    chosen = draw(st.sets(st.sampled_from(known), min_size=1, max_size=2))
    return name, {key: draw(st.sampled_from(sorted(ANYTHING))) for key in sorted(chosen)}


def call(name: str, values: dict[str, Any]) -> Any:
    if name == "load":
        return hwloop.load(**{"run": "run", "task": TinyTask, **values})
    if name == "bench":
        files = values.pop("files", "a.onnx")
        return hwloop.bench(files, **{"target": "cpu", **values})
    return hwloop.optimize(**{"task": TinyTask, "target": "fake", "run": "run", **values})


@FUZZ
@given(wanted=calls())
def test_any_argument_of_the_python_names_is_taken_or_refused(
    wanted: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    name, kinds = wanted
    ends_in_order(name, {key: ANYTHING[kind]() for key, kind in kinds.items()}, tmp_path)


@pytest.mark.parametrize("name", ["optimize", "load", "bench"])
def test_every_argument_with_everything(name: str, tmp_path: Path) -> None:
    """Each pair once, where a refusal comes at once."""
    known = {"optimize": OPTIMIZE, "load": LOAD, "bench": BENCH}[name]
    for key, kind in itertools.product(known, sorted(ANYTHING)):
        ends_in_order(name, {key: ANYTHING[kind]()}, tmp_path)


def ends_in_order(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    here = fresh(tmp_path)
    try:
        outside, before = around(tmp_path), snapshot(here)
        refused = None
        try:
            call(name, values)
        except HwloopError as error:
            refused = error
        code = ExitCode.MET if refused is None else refused.exit_code
        assert code in ENDED
        assert code != ExitCode.FAILED or str(refused).startswith(CANNOT_WRITE)
        assert code != ExitCode.USAGE or snapshot(here) == before, refused
        assert around(tmp_path) == outside
    finally:
        os.chdir(tmp_path)
        shutil.rmtree(here)


def test_the_lists_are_all_arguments() -> None:
    known = {hwloop.optimize: OPTIMIZE, hwloop.load: LOAD, hwloop.bench: BENCH}
    for function, expected in known.items():
        assert tuple(inspect.signature(function).parameters) == expected
    names = {param.name for command in COMMANDS.values() for param in command.params}
    assert set(VALID) <= names | {"files"}


@pytest.mark.parametrize(
    "values",
    [
        {"evaluations": np.int64(4), "seed": np.uint32(7), "finalists": np.int8(1)},
        {"max_drop": np.float32(0.5), "min_speedup": np.float64(1.5)},
        {"max_drop": 0, "min_speedup": 2, "time_limit_s": np.int32(60)},
        {"max_drop": fractions.Fraction(1, 100), "reward": "linear", "lam": np.float16(0.5)},
        {"seed": 2**32 - 1, "max_latency_ms": 1e12},
    ],
    ids=["integers", "floats", "mixed", "fractions", "limits"],
)
def test_numbers_of_other_libraries_are_numbers_and_the_run_can_be_read_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    defaults = {
        key: param.default
        for key, param in inspect.signature(hwloop.optimize).parameters.items()
        if key not in ("model", "progress", "run")
    }
    made = settings_of(TinyNet, **{**defaults, "task": TinyTask, **values})
    folder = RunFolder(tmp_path / "run")
    folder.create()
    config.write(folder, made, {})
    assert config.read_settings(folder)[0] == made
