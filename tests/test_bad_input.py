"""The user's mistakes: named, with the line that fixes them, and nothing that exists is harmed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tiny import HERE, MINI, ON_FAKE, SMALL, inside

import hwloop

Capsys = pytest.CaptureFixture[str]

HEAD = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from torch import nn
from hwloop.task import TensorSplit
from tiny import TinyNet, TinyTask, network, split
"""
TASKS = {
    "raises": (
        "class T(TinyTask):\n    def model(self):\n        return 1 / 0\n",
        "ZeroDivisionError",
        "mine.py:",
    ),
    "nan": (
        "class T(TinyTask):\n    def model(self):\n        net = network()\n"
        "        net.block1.conv2.weight.data[0] = float('nan')\n        return net\n",
        "block1.conv2.weight",
        "",
    ),
    "shape": (
        "class T(TinyTask):\n    def example(self):\n        return torch.zeros(1, 3, 8, 8)\n",
        "(1, 3, 8, 8)",
        "",
    ),
    "empty": (
        "class T(TinyTask):\n    def train(self):\n"
        "        return TensorSplit(torch.zeros(0, 1, 8, 8), torch.zeros(0).long())\n",
        "train",
        "empty",
    ),
    "overlap": (
        "class T(TinyTask):\n    def test(self):\n        return split('search')\n",
        "search",
        "test",
    ),
    "nan_metric": (
        "class T(TinyTask):\n    def metric(self, outputs, targets):\n"
        "        return float('nan')\n",
        "metric",
        "nan",
    ),
    "text_metric": (
        "class T(TinyTask):\n    def metric(self, outputs, targets):\n        return 'good'\n",
        "metric",
        "good",
    ),
    "export": (
        "class Odd(nn.Module):\n    def forward(self, x):\n"
        "        return torch.linalg.eigvals(x[:, 0]).real\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 16, 3)\n        self.odd = Odd()\n"
        "    def forward(self, x):\n        return self.odd(self.conv(x))\n"
        "class T(TinyTask):\n    def model(self):\n        return Net()\n",
        "odd",
        "exported",
    ),
    "functional": (
        "class Net(TinyNet):\n    def __init__(self):\n        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.ones(1, 1, 1, 1))\n"
        "    def forward(self, x):\n"
        "        return super().forward(nn.functional.conv2d(x, self.weight))\n"
        "class T(TinyTask):\n    def model(self):\n        return Net()\n",
        "torch.nn.functional",
        "modules",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    options: dict[str, Any] = {"agent": "random", "evaluations": 4}
    options |= {"loop_steps": 1, "final_steps": 2}
    options |= {"finalists": 1, "max_drop": None, "min_speedup": 1.05}
    hwloop.optimize(task=MINI, target="fake", run=folder, **options)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run, as SMALL asks for it: what must stay as it is."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


def rows(run: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(f"file:{run / 'hwloop.sqlite'}?mode=ro", uri=True) as db:
        return db.execute("SELECT number, value FROM trials ORDER BY number").fetchall()


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_task_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, capsys: Capsys
) -> None:
    code, first, second = TASKS[name]
    path = tmp_path / "mine.py"
    path.write_text(HEAD + code)
    folder = tmp_path / "run"
    options = ["--task", f"{path}:T", "--target", "fake", "--run", folder, "--evaluations", "2"]
    said = inside(capsys, "optimize", *options)
    assert said.code == 2, said.err
    assert first in said.err
    assert second in said.err.replace("to ONNX", "exported")
    assert "Traceback" not in said.err
    assert not (folder / "report.json").exists()


def test_other_settings_in_the_same_folder_are_listed(run: Path, capsys: Capsys) -> None:
    before = rows(run)
    said = inside(capsys, "optimize", *SMALL, "--run", run, "--seed", "5")
    assert said.code == 2
    assert "seed: 0 there, 5 now" in said.err
    assert rows(run) == before


def test_two_runs_at_once_in_one_folder_are_refused(run: Path, capsys: Capsys) -> None:
    import fcntl

    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = inside(capsys, "optimize", *SMALL, "--run", run)
    assert said.code == 2
    assert "another hwloop works" in said.err


def test_a_damaged_store_is_named_and_kept(run: Path, capsys: Capsys) -> None:
    (run / "hwloop.sqlite").write_bytes(b"garbage" * 1000)
    said = inside(capsys, "optimize", *SMALL, "--run", run)
    assert said.code == 2
    assert "hwloop.sqlite" in said.err
    assert (run / "hwloop.sqlite").read_bytes().startswith(b"garbage")


def test_a_table_of_another_schema_is_named(tmp_path: Path, capsys: Capsys) -> None:
    table = tmp_path / "t.sqlite"
    assert inside(capsys, "table", "build", *ON_FAKE, "--table", table).code == 0
    with sqlite3.connect(table) as db:
        db.execute("PRAGMA user_version = 7")
    said = inside(capsys, "table", "show", "--table", table)
    assert said.code == 2
    assert "schema 7" in said.err


def test_a_file_that_is_no_table_is_named(tmp_path: Path, capsys: Capsys) -> None:
    missing = inside(capsys, "table", "show", "--table", tmp_path / "none.sqlite")
    assert missing.code == 2
    assert "hwloop table build" in missing.err
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"key": 1}\n')
    said = inside(capsys, "table", "import", lines, "--table", tmp_path / "t.sqlite")
    assert said.code == 2
    assert "line 1" in said.err


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path, capsys: Capsys) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"\x00\x01 not protobuf")
    said = inside(capsys, "bench", file)
    assert said.code == 2
    assert "a.onnx" in said.err
    assert "Traceback" not in said.err
