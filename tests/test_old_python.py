"""The device side on what a stock board has: Python 3.10 with numpy 1.21.5 (JetPack 6) or 1.26."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board import Board, needs_board
from graphs import row_onnx
from on_old_python import CHECKS
from test_cuda import compiled

from hwloop import device
from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Protocol
from hwloop.measure.link import sources
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import REFERENCE
from hwloop.runtimes.graph import OnnxModel

TESTS = Path(__file__).parent
NUMPY = ("1.21.5", "1.26.4")
MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
SHORT = Protocol(warmup_s=0.01, rounds=1, sample_s=0.001, time_limit_s=0.2)


def stem(path: Path) -> str:
    return path.stem


def python_310() -> str | None:
    """An interpreter of Python 3.10 on the PATH or of pyenv. A shim may stand for none."""
    found = [sys.executable, *filter(None, [shutil.which("python3.10")])]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += [str(path) for path in sorted(pyenv.glob("versions/3.10.*/bin/python"), reverse=True)]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in found:
        done = subprocess.run([path, "-c", ask], capture_output=True, timeout=30, check=False)
        if done.stdout.strip() == b"3.10":
            return path
    return None


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture(scope="module", params=NUMPY)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv's interpreter: Python 3.10 with this numpy and nothing else."""
    base = python_310()
    if base is None:
        pytest.skip("needs Python 3.10: python3.10 on the PATH, or pyenv install 3.10")
    folder = tmp_path_factory.mktemp("venv")
    python, numpy = folder / "bin" / "python", f"numpy=={request.param}"
    # This environment's pip: a system's Python 3.10 often has none, and installing one takes time.
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    install = (*pip, "install", "--quiet", "--only-binary=:all:", "--no-deps", numpy)
    for command in ((base, "-m", "venv", "--without-pip", folder), install):
        done = run(*command)
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
            pytest.skip(f"{numpy} for {base} cannot be had: {reason[-1]}")
    return python


@pytest.fixture(scope="module")
def found(old: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the checks of tests/on_old_python.py found."""
    folder = tmp_path_factory.mktemp("sent")
    for name, text in sources().items():
        is_package = name in ("hwloop", "hwloop.device")
        path = folder / (name.replace(".", "/") + ("/__init__.py" if is_package else ".py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    library = "-"
    if shutil.which("cc"):
        library = str(compiled(folder / "libcudart.so", "fake_cudart.c"))
    done = run(
        old,
        TESTS / "on_old_python.py",
        folder / "scratch",
        library,
        cwd=folder,
        env={"PYTHONPATH": f"{folder}{os.pathsep}{TESTS}", "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, str | None] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", CHECKS)
def test_the_device_side_works_on_an_old_python(found: dict[str, str | None], name: str) -> None:
    assert found[name] is None, found[name]


@pytest.fixture
def stock(there: Board, reachable: None, old: Path) -> Iterator[Board]:
    """A board whose ``python`` is the old one."""
    made = replace(there, python=old)
    yield made
    assert made.gone_within(10), "a worker was left on the board"


@needs_board
def test_a_stock_board_serves_over_ssh(stock: Board, tmp_path: Path) -> None:
    profile = load_profile(str(stock.profile(tmp_path / "there.toml")))
    with DeviceSession(profile) as session:
        measured = session.measure(MODEL, MODEL, protocol=SHORT, reference_latency_ms=1.0)
        assert measured.ratio == pytest.approx(1.0, abs=0.01)
        state = session.state()
        assert state["python"].startswith("3.10.")
        assert state["numpy"] in NUMPY
        assert len(stock.workers()) == 1
        inputs = np.zeros((1, 32, 14, 14), np.float32)
        with pytest.raises(CandidateError, match="No module named 'onnxruntime'"):
            session.infer(MODEL, inputs)  # it arrived there, and only the runtime is missing


@needs_board
@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_a_stock_board_names_the_runtime_that_it_lacks(
    stock: Board, tmp_path: Path, runtime: str
) -> None:
    profile = load_profile(str(stock.profile(tmp_path / "there.toml", runtime=runtime)))
    with pytest.raises(TargetError, match=f"No module named '{runtime}'"), DeviceSession(profile):
        pass


@pytest.mark.parametrize("path", sorted(Path(device.__file__).parent.glob("*.py")), ids=stem)
def test_no_module_subscripts_a_type_of_numpy_when_it_is_imported(path: Path) -> None:
    """Also where there is no Python 3.10 to try it: numpy before 1.22 cannot."""
    tree = ast.parse(path.read_text())
    found = [node for node in evaluated(tree) if isinstance(node, ast.Subscript)]
    assert [ast.unparse(node) for node in found if ast.unparse(node).startswith("np.")] == []


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """What an import evaluates: not what functions do, nor annotations, nor types for mypy."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.AnnAssign) and child is node.annotation:
            continue
        yield child
        yield from evaluated(child)
