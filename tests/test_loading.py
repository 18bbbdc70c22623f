"""``hwloop.load``: the network that ships, from a folder whose code is not run unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import HERE, MINI, MiniNet, MiniTask, network, split
from torch import nn

import hwloop

MINE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
from tiny import MiniNet, MiniTask, network

def net(): return network(MiniNet)

(Path(__file__).parent / "was-run").touch()
"""
FP32 = 'description = "FP32"\nruntime = "fake"\n[space]\nalign = 8\nprecisions = ["base"]\n'
OPTIONS: dict[str, Any] = {"evaluations": 1, "loop_steps": 1, "finalists": 1, "final_steps": 1}
OPTIONS |= {"max_drop": None, "min_speedup": 1.01}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that is named by SPECs, typed relative to it, and ships FP32."""
    folder = tmp_path_factory.mktemp("kept") / "project"
    folder.mkdir()
    (folder / "my.py").write_text(MINE)
    (folder / "fp32.toml").write_text(FP32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report = hwloop.optimize(
            "my.py:net", task="my.py:MiniTask", target="fp32.toml", run="runs/mine", **OPTIONS
        )
    assert report["best"]["speedup"] > 1
    (folder / "was-run").unlink()
    return folder


@pytest.fixture
def project(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it elsewhere, seen from another working directory."""
    folder = tmp_path / "moved" / "here"
    shutil.copytree(kept, folder, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return folder


def is_what_ships(module: nn.Module, run: Path) -> bool:
    """Whether it gives the outputs of the file that ships."""
    inputs = split("test").batch(range(16))[0]
    session = onnxruntime.InferenceSession(run / "best" / "model.onnx")
    expected = np.concatenate([session.run(None, {"input": x[None].numpy()})[0] for x in inputs])
    with torch.no_grad():
        found = module(inputs).numpy()
    assert not module.training
    return bool(np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max())


def test_code_that_a_folder_names_is_not_run_unasked(project: Path) -> None:
    with pytest.raises(hwloop.UsageError) as caught:
        hwloop.load(project / "runs" / "mine")
    assert "my.py:net, " in caught.value.message
    assert "is not run unasked" in caught.value.message
    assert all(way in caught.value.hint for way in ("model=", "task=", "trust=True"))
    assert not (project / "was-run").exists()


GIVEN: dict[str, dict[str, Any]] = {
    "an object": {"model": network(MiniNet)},
    "a class": {"model": MiniNet},
    "a function": {"model": lambda: network(MiniNet)},
    "a SPEC": {"model": MINI.replace("MiniTask", "MiniNet")},
    "a task": {"task": MiniTask()},
    "a task's class": {"task": MiniTask},
    "a task's SPEC": {"task": MINI},
    "both": {"task": MiniTask, "model": MiniNet},
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_dense_network_is_the_callers(name: str, project: Path) -> None:
    run = project / "runs" / "mine"
    assert is_what_ships(hwloop.load(run, **GIVEN[name]), run)
    assert not (project / "was-run").exists()


def test_with_trust_the_run_finds_its_own_code_wherever_both_have_moved(project: Path) -> None:
    run = project / "runs" / "mine"
    assert is_what_ships(hwloop.load(run, trust=True), run)
    assert (project / "was-run").exists()


def test_the_same_through_a_link(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "a" / "b" / "c"
    links.mkdir(parents=True)
    (links / "link").symlink_to(project / "runs")
    monkeypatch.chdir(links)
    assert is_what_ships(hwloop.load("link/mine", trust=True), project / "runs" / "mine")


def test_another_network_does_not_fit(project: Path) -> None:
    for other in (network(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Linear(1, 1)):
        with pytest.raises(hwloop.UsageError) as caught:
            hwloop.load(project / "runs" / "mine", model=other)
        assert "the dense network that the run began with" in caught.value.hint


def test_a_run_of_objects_says_what_to_give(project: Path) -> None:
    run = project / "runs" / "objects"
    hwloop.optimize(MiniNet, task=MiniTask, target=str(project / "fp32.toml"), run=run, **OPTIONS)
    with pytest.raises(hwloop.UsageError, match=r"made of objects in Python: .*tiny\.MiniNet"):
        hwloop.load(run, trust=True)
    assert is_what_ships(hwloop.load(run, model=MiniNet), run)


@pytest.mark.parametrize("name", ["weights", "note"])
def test_a_damaged_file_is_named(name: str, project: Path) -> None:
    best = project / "runs" / "mine" / "best"
    file = best / ("model.safetensors" if name == "weights" else "candidate.json")
    if name == "weights":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        note = json.loads(file.read_text())
        file.write_text(json.dumps({**note, "align": 0}))
    with pytest.raises(hwloop.UsageError, match=file.name):
        hwloop.load(project / "runs" / "mine", model=MiniNet)
