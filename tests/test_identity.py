"""A run belongs to its weights, data and code: when one changes, it is refused untouched."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import HERE, network, split

import hwloop
from hwloop.measure.progress import Progress
from hwloop.run import versions

MINE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from hwloop.task import TensorSplit
from tiny import TinyTask, TinyNet

FOLDER = Path(__file__).parent
SCALE = 1.0

def correct(outputs, targets):
    return outputs.argmax(axis=1) == targets

class Net(TinyNet):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

class Mine(TinyTask):
    name = "mine"

    def model(self):
        net = Net()
        net.load_state_dict(load_file(FOLDER / "weights.safetensors"))
        return net

    def search(self):
        with np.load(FOLDER / "search.npz") as kept:
            inputs, labels = torch.from_numpy(kept["inputs"]), torch.from_numpy(kept["labels"])
        return TensorSplit(inputs, labels, transform=lambda batch: batch * SCALE)

    def metric(self, outputs, targets):
        return float(correct(outputs, targets).mean())
"""
OPTIONS: dict[str, Any] = {
    "target": "fake",
    "agent": "random",
    "evaluations": 3,
    "loop_steps": 1,
    "final_steps": 2,
    "finalists": 1,
    "max_drop": None,
    "min_speedup": 1.05,
}
STATES = {"finished": None, "interrupted": "search", "table": "calibration networks"}


class StopsAt(Progress):
    """Ends a run as Ctrl-C does, in the middle of a stage."""

    def __init__(self, stage: str | None) -> None:
        self.wanted = stage
        self.now = ""

    def stage(self, name: str) -> None:
        self.now = name

    def advance(self, done: int, total: int, detail: str = "") -> None:
        if self.now == self.wanted and done >= 2:
            raise KeyboardInterrupt


def optimize(folder: Path, stop_at: str | None = None) -> dict[str, Any]:
    return hwloop.optimize(
        task=f"{folder / 'mine.py'}:Mine",
        run=folder / "run",
        progress=StopsAt(stop_at),
        **OPTIONS,
    )


@pytest.fixture(scope="module", params=STATES)
def state(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with its run: finished, stopped in its search, or with its table alone."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "mine.py").write_text(MINE)
    save_file(network().state_dict(), folder / "weights.safetensors")
    inputs, labels = split("search").batch(range(128))
    np.savez(folder / "search.npz", inputs=inputs.numpy(), labels=labels.numpy())
    stop_at = STATES[request.param]
    if stop_at is None:
        optimize(folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            optimize(folder, stop_at)
    assert (folder / "run" / "report.json").exists() == (stop_at is None)
    return folder


@pytest.fixture
def project(state: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    folder = tmp_path / "project"
    shutil.copytree(state, folder, symlinks=True)
    return folder


def edit(folder: Path, before: str, after: str) -> None:
    text = (folder / "mine.py").read_text()
    assert before in text
    (folder / "mine.py").write_text(text.replace(before, after))


def change_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "weights.safetensors"
    weights = load_file(path)
    weights["conv.weight"] = change(weights["conv.weight"])
    save_file(weights, path)


def change_search(folder: Path, **changes: Callable[[Any], Any]) -> None:
    path = folder / "search.npz"
    with np.load(path) as kept:
        arrays = dict(kept)
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


def by_a_millionth(weights: torch.Tensor) -> torch.Tensor:
    changed = weights.clone()
    changed[0, 0, 0, 0] += 1e-6
    assert not torch.equal(changed, weights)
    return changed


def one_more(labels: Any) -> Any:
    changed = labels.copy()
    changed[77] = (changed[77] + 1) % 4
    return changed


QUANTIZE = versions.RESULTS["quantize"]
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (lambda f: change_weights(f, torch.rand_like), "the network's weights"),
    "one weight": (lambda f: change_weights(f, by_a_millionth), "the network's weights"),
    "order": (
        lambda f: change_search(
            f, inputs=lambda a: a[::-1].copy(), labels=lambda a: a[::-1].copy()
        ),
        "the data of the search split",
    ),
    "one label": (lambda f: change_search(f, labels=one_more), "the data of the search split"),
    "metric": (lambda f: edit(f, "axis=1) ==", "axis=1) !="), "the task's metric"),
    "labels": (
        lambda f: edit(f, 'name = "mine"', 'name, label_share = "mine", 0.0'),
        "the task's metric",
    ),
    "transform": (lambda f: edit(f, "batch * SCALE", "batch * SCALE + 0"), "the search split"),
    "architecture": (lambda f: edit(f, "nn.ReLU()", "nn.ReLU6()"), "the network's architecture"),
    "quantization": (
        lambda f: None,
        f"hwloop's quantize (version {QUANTIZE}, now {QUANTIZE + 1})",
    ),
}


def snapshot(folder: Path) -> dict[str, Any]:
    """Every entry with its content and the time of its last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (
            hashlib.sha256(content).hexdigest(),
            about.st_mode,
            about.st_mtime_ns,
        )
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_whose_inputs_changed_is_refused_before_anything_is_written(
    kind: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, named = KINDS[kind]
    change(project)
    if kind == "quantization":
        monkeypatch.setitem(versions.RESULTS, "quantize", QUANTIZE + 1)
    before = snapshot(project / "run")
    with pytest.raises(hwloop.UsageError) as refused:
        optimize(project)
    assert named in refused.value.message
    assert "--run NEW" in refused.value.hint
    assert "put it back" in refused.value.hint
    assert snapshot(project / "run") == before


def test_unchanged_inputs_resume_also_after_comments_layout_and_a_move(project: Path) -> None:
    edit(project, "    def metric(", "    # what is counted\n\n    def metric(")
    moved = project.with_name("elsewhere")
    project.rename(moved)
    assert optimize(moved)["goal"]["met"]


def test_a_store_of_another_run_is_refused_also_without_its_configuration(project: Path) -> None:
    (project / "run" / "config.json").unlink()
    change_weights(project, torch.rand_like)
    with pytest.raises(hwloop.UsageError, match="the network's weights"):
        optimize(project)
