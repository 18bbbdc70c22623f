"""What one candidate costs before it is trained and measured: compress, export, quantize, check.

    python benchmarks/candidate_cost.py

Every prunable group of a network of torchvision with random weights keeps half of its channels;
inputs are 1x3x224x224, INT8 ranges come from 128 of them. Beside it stands what is done once in a
run: what layers are given in as many inputs, and the order in which channels go. Each case is a
process of its own on one core. Memory is the peak above what is resident once the dense network is
exported and described, and that was done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from common import print_table, write_result

from hwloop.compress.apply import compress, quantized
from hwloop.compress.cut import ranking
from hwloop.compress.describe import describe
from hwloop.compress.export import check_outputs, export_onnx, host_run
from hwloop.compress.moments import input_moments
from hwloop.compress.rules import SpaceRules
from hwloop.device import state
from hwloop.records import Action, Candidate, Network
from hwloop.run.build import CALIBRATION_INPUTS
from hwloop.runtimes.known import writing

CASES = (
    *((name, "base") for name in ("resnet18", "mobilenet_v2", "regnet_y_400mf")),
    *((name, "int8") for name in ("resnet18", "mobilenet_v2", "regnet_y_400mf")),
    ("resnext50_32x4d", "int8"),
)
LIMITS_S = {
    ("mobilenet_v2", "base"): 4,
    ("mobilenet_v2", "int8"): 8,
    ("resnet18", "base"): 2,
    ("resnet18", "int8"): 6,
    ("regnet_y_400mf", "base"): 6,
}
LIMIT_MB = 1500
MOMENTS_BATCH = 16
STAGES = ("compress", "export", "quantize", "check")
WIDTH = 0.5
RULES = SpaceRules(recipe="ort-x86")


def halved(network: Network, precision: str) -> Candidate:
    """Half of every group's channels where it can change, the precision everywhere."""
    return Candidate(
        actions=tuple(
            Action(kind="prune", amount=WIDTH, precision=precision)
            if group.prunable
            else Action(precision=precision)
            for group in network.groups
        )
    )


def measured(name: str, precision: str) -> dict[str, Any]:
    """Seconds by stage, and memory, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dense = getattr(torchvision.models, name)().eval()
    example = torch.zeros(1, 3, 224, 224)
    graph = export_onnx(dense, example)
    network = describe(dense, example, graph, name=name)
    check_outputs(dense, example, host_run(graph))  # as a run does; it loads ONNX Runtime, too
    shape = (CALIBRATION_INPUTS, *example.shape[1:])
    calibration = np.random.default_rng(0).standard_normal(shape, np.float32)
    candidate, seconds = halved(network, precision), {}

    @contextmanager
    def stage(which: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[f"{which}_s"] = round(time.monotonic() - started, 2)

    with stage("once"):
        moments = input_moments(dense, torch.split(torch.from_numpy(calibration), MOMENTS_BATCH))
        paths = [group.name for group in network.groups if group.prunable]
        ranking(dense, example, paths, moments)
    once_s = seconds.pop("once_s")
    before_mb = resident_mb("VmRSS")
    with stage("compress"):
        module = compress(
            dense, example, network, candidate=candidate, rules=RULES, moments=moments
        )
    with stage("export"):
        plain = export_onnx(module, example)
    with stage("quantize"):
        final = quantized(
            module,
            example,
            plain,
            network=network,
            candidate=candidate,
            calibration=calibration,
            runtime=writing(RULES.recipe, state.isa()),
        )
    with stage("check"):
        check_outputs(module, example, host_run(plain))
    return {
        **seconds,
        "once_s": once_s,
        "total_s": round(sum(seconds.values()), 2),
        "limit_s": LIMITS_S.get((name, precision)),
        "memory_mb": round(resident_mb("VmHWM") - before_mb),
        "size_mb": round(len(final) / 1e6, 1),
    }


def resident_mb(kind: str) -> float:
    """VmRSS, what this process holds now, or VmHWM, the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{kind}:"))
    return int(kib) * 1024 / 1e6


def in_a_process(name: str, precision: str) -> dict[str, Any]:
    """:func:`measured` in a fresh Python that has one core."""
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, __file__, name, precision],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    started = time.monotonic()
    cases = [
        {"network": name, "precision": precision, **in_a_process(name, precision)}
        for name, precision in CASES
    ]
    titles = ["network", "precision", *STAGES, "total s", "limit", "memory MB", "once s"]
    keys = ["network", "precision", *(f"{stage}_s" for stage in STAGES)]
    keys += ["total_s", "limit_s", "memory_mb", "once_s"]
    print_table([titles, *([str(case[key] or "") for key in keys] for case in cases)])
    write_result(
        "candidate_cost",
        {
            "calibration_inputs": CALIBRATION_INPUTS,
            "limit_mb": LIMIT_MB,
            "cases": cases,
            "within_limits": all(
                case["total_s"] <= (case["limit_s"] or float("inf"))
                and case["memory_mb"] <= LIMIT_MB
                for case in cases
            ),
        },
        started=started,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measured(sys.argv[1], sys.argv[2])))
    else:
        main()
