"""The house rules that a machine can check: import order, purity, start-up time."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hwloop

ROOT = Path(hwloop.__file__).parent
ORDER = (
    [
        "errors",
        "versions",
        "stats",
        "parsing",
        "records",
        "choice",
        "rowkinds",
        "space",
        "rowkinds",
        "reward",
        "progress",
        "inputs",
        "files",
        "hosts",
        "profile",
        "store",
        "scope",
    ]
    + ["table", "spec", "sources", "splits", "task", "demo", "tasks"]
    + [
        "host_runtime",
        "compress.prune",
        "model",
        "fp16",
        "compress.qdq_ort",
        "compress.qdq_tensorrt",
    ]
    + ["compress.quantize", "compress.apply"]
    + [
        "distill",
        "bulk",
        "accuracy",
        "sanity",
        "export",
        "fp16_range",
        "rowgraph",
        "rows",
        "proof",
        "refusals",
        "link",
        "answers",
        "exchange",
        "targets",
        "measure",
        "search",
    ]
    + [
        "identity",
        "evaluate",
        "prepare",
        "runs",
        "beside",
        "config",
        "trials",
        "finalists",
        "artefacts",
    ]
    + ["admission", "stages", "reading", "report", "tables", "modelfile", "benching", "options"]
    + ["estimate", "plan", "doctor", "checking", "loading", "api"]
    + ["cli_common", "cli_table", "cli_target", "cli", "__main__"]
)
PURE = ("errors", "versions", "parsing", "records", "choice", "stats", "space", "reward")
NUMBERS_ONLY = {"search", "reward", "records", "space", "errors", "stats"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "hwloop":
                names = [f"hwloop.{alias.name}" for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def rank(name: str) -> int:
    """Position in the order: of the module itself, or of the package that it is in."""
    candidates = [name.rsplit(".", drop)[0] for drop in range(name.count(".") + 1)]
    return next(ORDER.index(item) for item in candidates if item in ORDER)


def sources() -> list[Path]:
    skipped = {"", "compress", "demo.train"}
    paths = [p for p in sorted(ROOT.rglob("*.py")) if module_name(p) not in skipped]
    return [p for p in paths if not module_name(p).startswith("device")]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    own = rank(module_name(path))
    for name in imports(path):
        if name.startswith("hwloop.") and not name.startswith("hwloop.device"):
            wanted = name.removeprefix("hwloop.")
            if wanted not in ("__version__",):
                assert rank(wanted) <= own, f"{module_name(path)} imports {wanted}"


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


@pytest.mark.parametrize("name", PURE)
def test_the_vocabulary_has_no_torch_and_no_files(name: str) -> None:
    outside = {item.partition(".")[0] for item in imports(ROOT / f"{name}.py")}
    assert not outside & {"torch", "onnx", "onnxruntime", "pathlib", "os", "sqlite3", "subprocess"}


@pytest.mark.parametrize("name", ["dqn", "replay"])
def test_the_dqn_imports_nothing_of_ours_but_its_replay(name: str) -> None:
    ours = {item for item in imports(ROOT / "search" / f"{name}.py") if "hwloop" in item}
    assert ours <= {"hwloop.search.replay"}


@pytest.mark.parametrize(
    "code",
    [
        "import hwloop",
        "import sys; sys.argv = ['hwloop', '--help']; import hwloop.cli as c; c.run()",
    ],
)
def test_starting_is_quick_and_loads_no_torch(code: str) -> None:
    say = "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    watched = f"import sys, atexit; {say}; {code}"
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", watched], capture_output=True, text=True, timeout=60, check=True
        )
        seconds.append(time.monotonic() - started)
        assert done.stderr.strip() == "False"
    assert min(seconds) <= 0.3
