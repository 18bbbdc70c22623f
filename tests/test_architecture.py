"""The house rules that a machine can check: import order, purity, start-up time."""

from __future__ import annotations

import ast
import functools
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path

import pytest

import hwloop
from hwloop.errors import ExitCode
from hwloop.measure.table import REFERENCE
from hwloop.runtimes.known import RECIPES, RUNTIMES, writing

ROOT = Path(hwloop.__file__).parent
WORDS = ("errors", "parsing", "stats", "findings", "records", "files")
"""Files above the rooms that know nothing of them; ``task``, ``api`` and ``__main__`` do."""

MAY_IMPORT = {
    "tasks": (),
    "runtimes": (),
    "device": (),
    "compress": ("tasks", "runtimes"),
    "measure": ("tasks", "runtimes", "compress"),
    "search": (),
    "run": ("tasks", "runtimes", "compress", "measure", "search"),
    "report": ("tasks", "runtimes", "compress", "measure", "run"),
    "cli": ("tasks", "runtimes", "compress", "measure", "search", "run", "report"),
}
"""Room to the rooms that it may import beside the words."""

BESIDE: dict[str, tuple[str, ...]] = {
    "runtimes": ("device",),
    "measure": ("device", "task"),
    "run": ("device", "task"),
    "compress": ("task",),
    "cli": ("api",),
    "task": ("tasks",),
    "api": ("task", *MAY_IMPORT),
    "__main__": ("cli",),
    "__init__": ("api",),
}
"""Who may import the board's side, the public names of tasks, and what the public files import."""

NAMES_OF_OTHERS = {
    "compress.rules": {"ort-x86"},  # part of every stored digest of what a profile asks for
    "measure.doctor.facts": {"onnxruntime", "openvino", "tensorrt"},
    "measure.doctor.wheels": {"tensorrt"},
    "measure.doctor.scrub": {"onnxruntime", "openvino", "tensorrt", "fake"},
    "run.identity": {"onnxruntime", "openvino"},
}
"""Packages on an index, and words that identify nobody, that are called like runtimes."""

MOST_FILES = 10
PURE = ("errors", "parsing", "findings", "records", "stats", "compress.space", "search.reward")
PURE = (*PURE, "run.versions", "run.choice")
NUMBERS_ONLY = {"search", "records", "findings", "errors", "stats"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


def imports(path: Path, modules: Container[str] = ()) -> set[str]:
    """Names of the modules that a file imports; ``from package import module`` is the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("hwloop.") in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if "__pycache__" not in path.parts]


def room(name: str) -> str:
    """The room that a module is in, or its own name above the rooms."""
    return name.partition(".")[0]


def edges() -> dict[str, set[str]]:
    """Which modules of hwloop each of them imports, also within functions."""
    names = {module_name(path): path for path in sources()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted = {item.removeprefix("hwloop.") for item in imports(path, names)}
        wanted = {"__init__" if item == "hwloop" else item for item in wanted}
        found[name] = {item for item in wanted if item in names and item != name}
    return found


def test_there_are_few_rooms_and_few_files_beside_them() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)
    assert len(rooms) <= 9
    assert len(list(ROOT.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_says_its_purpose_in_a_sentence(name: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text()))
    assert text
    assert text.partition("\n")[0].endswith(".")
    assert f"`{name}/`" in (ROOT.parent / "docs" / "architecture.md").read_text()


def test_imports_point_one_way() -> None:
    """Between rooms by the table above; the words import words only."""
    for name, wanted in edges().items():
        own = room(name)
        allowed = {*WORDS, own, "__init__"}  # everybody may ask for the version
        if own in WORDS:
            allowed = set(WORDS)
        elif own == "device":
            allowed = {"device"}
        else:
            allowed |= {*MAY_IMPORT.get(own, ()), *BESIDE.get(own, ())}
        wrong = sorted(item for item in wanted if room(item) not in allowed)
        assert not wrong, f"{name} imports {', '.join(wrong)}"


def test_no_two_files_import_each_other() -> None:
    """Not by way of others either, and not within functions."""
    left = edges()
    del left[
        "__init__"
    ]  # the package's face names what is below, and everybody may ask its version
    left = {name: wanted - {"__init__"} for name, wanted in left.items()}
    while free := [name for name, wanted in left.items() if not wanted]:
        left = {name: wanted - set(free) for name, wanted in left.items() if name not in free}
    assert not left, f"in a circle, or behind one: {', '.join(sorted(left))}"


@pytest.mark.parametrize("path", sorted((ROOT / "device").glob("*.py")), ids=module_name)
def test_the_device_side_imports_nothing_else_of_hwloop(path: Path) -> None:
    for name in imports(path):
        assert not name.startswith("hwloop") or name.startswith("hwloop.device")
        assert name.partition(".")[0] not in ("torch", "onnx", "click", "execnet")


@pytest.mark.parametrize("path", sorted((ROOT / "search").glob("*.py")), ids=module_name)
def test_the_search_knows_numbers_only(path: Path) -> None:
    for name in imports(path):
        if name.startswith("hwloop."):
            assert name.split(".")[1] in NUMBERS_ONLY


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_nobody_but_a_runtime_knows_its_name_or_its_recipes(path: Path) -> None:
    """Who needs to know what a runtime does asks its class: :mod:`hwloop.runtimes.known`."""
    name = module_name(path)
    if room(name) in ("runtimes", "device"):
        return
    names = {known.name for known in RUNTIMES} | set(RECIPES)
    said = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert said <= NAMES_OF_OTHERS.get(name, set())


@pytest.mark.parametrize("name", PURE)
def test_the_vocabulary_has_no_torch_and_no_files(name: str) -> None:
    outside = {item.partition(".")[0] for item in imports(ROOT / f"{name.replace('.', '/')}.py")}
    assert not outside & {"torch", "onnx", "onnxruntime", "pathlib", "os", "sqlite3", "subprocess"}


@pytest.mark.parametrize("name", ["dqn", "replay"])
def test_the_dqn_imports_nothing_of_ours_but_its_replay(name: str) -> None:
    ours = {item for item in imports(ROOT / "search" / f"{name}.py") if "hwloop" in item}
    assert ours <= {"hwloop.search.replay"}


def leads_somewhere(name: str) -> bool:
    """Whether there is a module, or something in one, of this dotted name."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_references_in_docstrings_lead_somewhere() -> None:
    wanted = re.compile(r":[a-z]+:`(hwloop\.[\w.]+)`")
    found = {(path.name, name) for path in sources() for name in wanted.findall(path.read_text())}
    assert len(found) > 30
    assert not sorted(place for place in found if not leads_somewhere(place[1]))


GOLDEN = Path(__file__).resolve().parent / "data" / "golden"
LIGHT = {
    "help": ("--help",),
    "bench-help": ("bench", "--help"),
    "doctor": ("doctor",),
    "targets": ("target", "list"),
    "target": ("target", "show", "cpu"),
    "report": ("report", str(GOLDEN / "run")),
    "show": ("table", "show", "--table", str(GOLDEN / "run" / "hwloop.sqlite")),
    "export": ("table", "export", "{here}/rows.jsonl", "--table", "{here}/t.sqlite"),
    "import": ("table", "import", str(GOLDEN / "table.jsonl"), "--table", "{here}/t.sqlite"),
}
"""Commands that only read, and need no network, no graph and no target."""

HEALTHY_OR_NOT = (0, ExitCode.ENVIRONMENT)
"""How a light command ends: the doctor may find something missing."""


START_UP_LIMIT_S = 0.3
START_UP_TRIES = 20
NEEDED, NEEDED_S, NEEDED_TRIES = "import click, numpy, sqlite3", 0.08, 8
"""What light commands cannot do without, and its time where the limit holds as it stands: on a
machine that takes twice as long for it, twice as long is quick."""


def quick_and_light(code: str) -> None:
    """Run in a Python of its own, the best of many times: start-up is the whole wait."""
    loaded = "[name for name in ('torch', 'onnx', 'execnet') if name in sys.modules]"
    say = f"atexit.register(lambda: print({loaded}, file=sys.stderr))"
    best_s, limit_s = math.inf, START_UP_LIMIT_S * slowness()
    for _ in range(START_UP_TRIES):
        taken_s, done = timed(f"import sys, atexit; {say}; {code}")
        assert done.returncode in HEALTHY_OR_NOT, done.stderr
        assert done.stderr.strip() == "[]"
        best_s = min(best_s, taken_s)
        if best_s <= limit_s:
            break
    assert best_s <= limit_s


@functools.cache
def slowness() -> float:
    """Of this machine, at least 1."""
    return max(min(timed(NEEDED)[0] for _ in range(NEEDED_TRIES)) / NEEDED_S, 1.0)


def timed(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of a Python that runs some code, and how it ended."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return time.monotonic() - started, done


def test_importing_is_quick_and_loads_no_torch() -> None:
    quick_and_light("import hwloop")


@pytest.mark.parametrize("name", LIGHT)
def test_commands_that_only_read_are_quick_and_load_no_torch(name: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "run" / "hwloop.sqlite", tmp_path / "t.sqlite")
    words = ["hwloop", *(word.format(here=tmp_path) for word in LIGHT[name])]
    quick_and_light(f"sys.argv = {words!r}; import hwloop.cli as c; c.run()")


@pytest.mark.parametrize("words", [("target", "check"), ("bench", "{here}/a.onnx")])
def test_commands_that_measure_load_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(writing("ort-x86").row_graph(REFERENCE))
    profile = tmp_path / "quick.toml"
    limits = "".join(f"[protocol.{stage}]\ntime_limit_s = 0.05\n" for stage in ("loop", "bench"))
    profile.write_text(f'description = "quick"\nruntime = "onnxruntime"\n{limits}')
    arguments = [word.format(here=tmp_path) for word in words]
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
        f"sys.argv = {['hwloop', *arguments]!r}; import hwloop.cli as c; c.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HWLOOP_TARGET": str(profile)},
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, ExitCode.TARGET), done.stderr  # it may be too noisy to measure
    assert done.stdout.splitlines()[-1] == "False"
    assert len(done.stdout.splitlines()) > 2


@pytest.mark.parametrize("name", ["report.facts", "report.text", "report.markdown", "run.result"])
def test_what_tells_a_result_loads_no_torch(name: str) -> None:
    quick_and_light(f"import hwloop.{name}")
