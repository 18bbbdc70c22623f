"""Does NVIDIA's builder take every graph that hwloop writes for TensorRT?

Random candidates (mixed widths, mixed precisions) of networks of plain, grouped, depthwise and
concatenated convolutions and of attention go through the TensorRT recipe and FP16, then through the
parser and the builder of TensorRT for RTX, on the CPU. So does every row that the latency tables of
three of them can need, with inputs and outputs in layouts of the builder's choice. The bar: none is
refused.

    python benchmarks/trt_build.py [N=100]     of each network; N=0: the rows alone, no result
    python benchmarks/trt_build.py --all-methods [N=100] [NETWORK ...]    candidates of all methods,
        smaller images, blocks left out, low rank, 2:4 and FP8 among them; no rows
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import print_table, write_result
from numpy.typing import NDArray
from table_error import RandomNetwork

from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.methods import METHODS
from hwloop.compress.reachable import row_plan
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import described
from hwloop.compress.space import PRECISIONS
from hwloop.device import trt_build
from hwloop.errors import CandidateError, EnvironmentProblem
from hwloop.measure.table import EMPTY, REFERENCE
from hwloop.records import Candidate, Network
from hwloop.run.table_check import random_candidate, unrecovered_graph
from hwloop.runtimes.known import writing
from hwloop.runtimes.proof import Proof, bindings, prove
from hwloop.task import load_model
from hwloop.tasks.load import load_task

RULES = SpaceRules(base_precision="fp16", recipe="tensorrt")
EVERYTHING = replace(RULES, kinds=tuple(method.kind for method in METHODS), precisions=PRECISIONS)
CALIBRATION_INPUTS = 4


RANDOM = (
    *("resnet18", "resnext50_32x4d-64", "densenet121-64"),
    *("mobilenet_v2-64", "vit_tiny-96"),
)
"""Networks with random weights, and their height and width if it is not ImageNet's."""

ALL_METHODS = ("resnet18-64", "mobilenet_v2-64", "vit_tiny-96")
WITH_ROWS = ("demo", "resnet18", "vit_tiny-96")


def networks(names: Sequence[str]) -> Iterator[tuple[str, torch.nn.Module, torch.Tensor]]:
    """The demo is trained, the others have random weights."""
    for name in names:
        task = load_task("demo") if name == "demo" else RandomNetwork(name)
        torch.manual_seed(0)
        example = torch.randn(task.example().shape)
        yield task.name, load_model(task, None), example


def proved(
    module: torch.nn.Module,
    example: torch.Tensor,
    network: Network,
    candidate: Candidate,
    inputs: NDArray[np.float32],
    rules: SpaceRules = RULES,
) -> Proof | None:
    """A candidate as NVIDIA's builder takes it. Raises CandidateError where it does not."""
    used = {action.precision for action in candidate.actions} - {"base"}
    graph = unrecovered_graph(
        module, example, network, candidate=candidate, calibration=inputs, rules=rules
    )
    return prove(graph, precisions=("fp16", *sorted(used)))


def candidates(
    module: torch.nn.Module, example: torch.Tensor, *, name: str, count: int, rules: SpaceRules
) -> tuple[list[Proof], list[str], Counter[str]]:
    """Proofs of random candidates, why others were refused, and how many have which action."""
    graph = export_onnx(module, example)
    network = described(module, example, graph, name=name, rules=rules)
    rng = np.random.default_rng(0)
    shape = (CALIBRATION_INPUTS, *example.shape[1:])
    inputs = rng.standard_normal(shape).astype(np.float32)
    proofs: list[Proof] = []
    refused: list[str] = []
    kinds: Counter[str] = Counter()
    for number in range(count):
        candidate = random_candidate(network, rules, rng)
        kinds.update({action.kind for action in candidate.actions})
        kinds.update({action.precision for action in candidate.actions} - {"base"})
        try:
            proof = proved(module, example, network, candidate, inputs, rules)
        except CandidateError as error:
            refused.append(f"{candidate.digest()}: {error}")
            continue
        if proof is not None:
            proofs.append(proof)
        if number % 20 == 19:
            print(f"{name}: {number + 1} of {count}, {len(refused)} refused", file=sys.stderr)
    return proofs, refused, kinds


def rows(
    module: torch.nn.Module, example: torch.Tensor, *, name: str
) -> tuple[list[Proof], list[str]]:
    """The same of every row that the network's table can need, built as a row is."""
    network = describe(module, example, export_onnx(module, example), name=name)
    proofs: list[Proof] = []
    refused: list[str] = []
    for config in (REFERENCE, EMPTY, *row_plan(network, RULES).measured):
        try:
            record = trt_build.prove(
                writing(RULES.recipe).row_graph(config), trt=bindings(), row=True
            )
        except trt_build.BuildFailed as error:
            refused.append(f"{config}: {error}")
            continue
        proofs.append(
            Proof(
                builder=record["version"],
                dtypes=tuple(sorted(record["dtypes"].items())),
                build_s=record["build_s"],
                engine_bytes=record["engine_bytes"],
            )
        )
    print(f"{name}: {len(proofs)} rows, {len(refused)} refused", file=sys.stderr)
    return proofs, refused


def summary(proofs: list[Proof], refused: list[str]) -> dict[str, Any]:
    """What is written of one kind of graph."""
    seconds = [proof.build_s for proof in proofs]
    layers: Counter[str] = Counter()
    for proof in proofs:
        layers.update(dict(proof.dtypes))
    total = sum(layers.values())
    return {
        "built": len(proofs),
        "refused": len(refused),
        "reasons": refused[:10],
        "median_build_s": round(float(np.median(seconds)), 3),
        "max_build_s": round(max(seconds), 3),
        "layer_dtype_shares": {
            name: round(count / total, 4) for name, count in sorted(layers.items())
        },
    }


def main(arguments: list[str]) -> None:
    started = time.monotonic()
    everything = "--all-methods" in arguments
    count = next((int(word) for word in arguments if word.isdigit()), 100)
    chosen = [word for word in arguments if word in (*RANDOM, *ALL_METHODS)]
    names = chosen or (ALL_METHODS if everything else ("demo", *RANDOM))
    trt = bindings()
    if trt is None:
        raise EnvironmentProblem("NVIDIA's builder is not installed", 'pip install "hwloop[rtx]"')
    found: dict[str, Any] = {}
    for name, module, example in networks(names):
        if count:
            print(f"{name}: {count} candidates", file=sys.stderr)
            proofs, refused, kinds = candidates(
                module,
                example,
                name=name,
                count=count,
                rules=EVERYTHING if everything else RULES,
            )
            found[f"{name} candidates"] = {
                **summary(proofs, refused),
                "with": dict(kinds),
            }
        if name in WITH_ROWS and not everything:
            found[f"{name} rows"] = summary(*rows(module, example, name=name))
    columns = ("built", "refused", "median_build_s", "max_build_s", "layer_dtype_shares")
    lines = [[kind, *(str(value[name]) for name in columns)] for kind, value in found.items()]
    print_table([["", *columns], *lines])
    if not count:
        return
    write_result(
        "trt_build_all_methods" if everything else "trt_build",
        {
            "builder": f"TensorRT for RTX {trt.__version__}",
            "built_for": "compute capability 8.6, with FP8 8.9, strongly typed",
            "note": "built on the CPU, nothing was run; build seconds were taken on a shared "
            "machine; layers of type FLOAT are the scales of Q/DQ nodes, which the parser keeps "
            "in FP32, and casts at the network's ends",
            "refused": sum(value["refused"] for value in found.values()),
            "graphs": found,
        },
        started=started,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
