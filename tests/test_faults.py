"""A worker that fails now and then costs a retry; a candidate that is refused costs a trial."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import SPEC, TinyTask, faulty, inside

import hwloop
from hwloop.files import sha256

Capsys = pytest.CaptureFixture[str]
OPTIONS = ("--agent", "random", "--evaluations", "4", "--loop-steps", "1")
OPTIONS = (*OPTIONS, "--final-steps", "2", "--finalists", "1")


@pytest.mark.parametrize("kind", ["die", "hang", "nonsense"])
def test_one_failure_of_the_worker_costs_no_trial(
    kind: str, tmp_path: Path, capsys: Capsys
) -> None:
    target = faulty(tmp_path / "flaky.toml", "compare", kind, after=60, times=1)
    run = tmp_path / "run"
    said = inside(
        capsys, "optimize", "--task", SPEC, "--target", target, "--run", run, *OPTIONS, "--json"
    )
    assert said.code in (0, 3), said.err
    assert json.loads(said.out)["search"]["failed"] == 0


def test_refused_candidates_fail_with_their_reason_and_the_search_goes_on(
    tmp_path: Path, capsys: Capsys
) -> None:
    # The baseline comes first; the fault begins with the first candidates.
    target = faulty(tmp_path / "picky.toml", "infer", "refuse", after=8, times=3)
    run = tmp_path / "run"
    said = inside(
        capsys, "optimize", "--task", SPEC, "--target", target, "--run", run, *OPTIONS, "--json"
    )
    assert said.code in (0, 3), said.err
    search = json.loads(said.out)["search"]
    assert search["failed"] >= 1
    assert all("no kernel for this layer" in reason for reason in search["failures"])
    assert search["evaluations"] > search["failed"]


def test_python_gives_the_same_report_and_the_network_that_ships(tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = TinyTask()
    report = hwloop.optimize(
        task=task,
        target="fake",
        run=run,
        max_drop=0.2,
        evaluations=4,
        loop_steps=1,
        final_steps=2,
        finalists=1,
    )
    assert report == json.loads((run / "report.json").read_text())
    assert (run / "report.md").read_text().startswith("# hwloop")
    wanted = {"target", "goal", "baseline", "best", "comparisons", "pareto", "table", "search"}
    assert wanted | {"command", "versions"} <= set(report)
    note = json.loads((run / "best" / "candidate.json").read_text())
    for name in ("safetensors", "onnx"):
        data = (run / "best" / f"model.{name}").read_bytes()
        assert sha256(data) == note[f"{name}_sha256"]
    module = hwloop.load(run, task=task)
    inputs = task.test().batch(range(64))[0]
    session = onnxruntime.InferenceSession(str(run / "best" / "model.onnx"))
    shipped = np.concatenate([session.run(None, {"input": x[None]})[0] for x in inputs.numpy()])
    with torch.no_grad():
        agree = module(inputs).numpy().argmax(1) == shipped.argmax(1)
    assert agree.mean() > 0.9
