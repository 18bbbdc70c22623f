"""What of torchvision's families can be compressed, and is what comes out right?

The smallest member of each with random weights, on this CPU. For each: its groups, the share of
its multiply-accumulates in layers that a candidate can make cheaper by widths or depth, the rows of
its table, random candidates (outputs against PyTorch's, how long one takes to make, latency), and
NVIDIA's builder on graphs written for TensorRT.

    python benchmarks/zoo.py [FAMILY ...]      all by default; each is kept when it is done
    python benchmarks/zoo.py --errors [FAMILY ...]     how well a table predicts each
    python benchmarks/zoo.py --page            the table in docs/networks.md, from what is kept

The error of a table is that of ten candidates, after thirteen others of the same network, as in a
run, have been measured. Beside it stands by how much the ten differ from themselves when all are
measured a second time: no table can err less than that. It takes minutes for each family, in which
nothing else may run.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from common import print_table, read_result, write_result
from table_error import awake, planned
from torch import Tensor, nn
from trt_build import RULES as TENSORRT
from trt_build import proved

from hwloop.compress import space
from hwloop.compress.apply import compress
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.reachable import row_plan
from hwloop.compress.rows import groups_of
from hwloop.compress.rules import SpaceRules
from hwloop.device import state
from hwloop.errors import CandidateError, HwloopError
from hwloop.files import write_atomically
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.records import KEEP, Action, Candidate, Network
from hwloop.run.table_check import random_candidate
from hwloop.runtimes.proof import bindings
from hwloop.task import ClassificationTask
from hwloop.tasks.explicit import explicit

CANDIDATES, PROOFS, RUNS = 5, 2, 30
PREDICTED, FITTED = 10, 12
TOLD = ("median_abs_pct", "within_10pct", "spearman", "predicted_ms", "measured_ms")
PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
MOST_ERROR = 1e-3


class Maps(nn.Module):
    """A segmentation network that gives its map alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)["out"]
        return found


class Features(nn.Module):
    """The backbone of SSDLite, as one tensor of its last map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None
        ).backbone

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = list(self.backbone(x).values())[-1]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    make: Callable[[], nn.Module]
    pixels: int


class Untrained(ClassificationTask):
    """A family's network with random weights: good for latency, for nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return awake(FAMILIES[self.name].make())

    def example(self) -> Tensor:
        return torch.zeros(1, 3, FAMILIES[self.name].pixels, FAMILIES[self.name].pixels)


def _model(name: str, pixels: int, **settings: Any) -> Family:
    return Family(
        make=lambda: torchvision.models.get_model(name, weights=None, **settings), pixels=pixels
    )


FAMILIES: dict[str, Family] = {
    "ResNet": _model("resnet18", 128),
    "ResNeXt": _model("resnext50_32x4d", 128),
    "WideResNet": _model("wide_resnet50_2", 128),
    "VGG": _model("vgg11_bn", 224),
    "AlexNet": _model("alexnet", 224),
    "DenseNet": _model("densenet121", 128),
    "MobileNetV2": _model("mobilenet_v2", 128),
    "MobileNetV3": _model("mobilenet_v3_small", 128),
    "EfficientNet": _model("efficientnet_b0", 128),
    "EfficientNetV2": _model("efficientnet_v2_s", 128),
    "ShuffleNet": _model("shufflenet_v2_x1_0", 128),
    "SqueezeNet": _model("squeezenet1_1", 128),
    "MNASNet": _model("mnasnet0_5", 128),
    "RegNet-X": _model("regnet_x_400mf", 128),
    "RegNet-Y": _model("regnet_y_400mf", 128),
    "GoogLeNet": _model("googlenet", 128, init_weights=False, aux_logits=False),
    "Inception": _model("inception_v3", 128, init_weights=False, aux_logits=False),
    "ConvNeXt": _model("convnext_tiny", 128),
    "MaxViT": _model("maxvit_t", 224),
    "ViT": _model("vit_b_16", 224),
    "Swin": _model("swin_t", 128),
    "SwinV2": _model("swin_v2_t", 128),
    "LR-ASPP": Family(make=Maps, pixels=128),
    "SSDLite": Family(make=Features, pixels=160),
}


def can_change(network: Network, rules: SpaceRules) -> float:
    """Share of the multiply-accumulates in layers that widths or depth can make cheaper."""
    legal = space.masks(network, rules)
    menu = space.menu(rules)
    free = {
        index
        for index, mask in enumerate(legal)
        if any(ok and action.kind != KEEP.kind for action, ok in zip(menu, mask, strict=True))
    }
    changing = sum(layer.config.macs for layer in network.layers if free & set(groups_of(layer)))
    return changing / sum(layer.config.macs for layer in network.layers)


def in_float(value: Candidate) -> Candidate:
    """The candidate without INT8: its outputs can be compared."""
    actions = (
        action if action.precision == "base" else Action(kind=action.kind, amount=action.amount)
        for action in value.actions
    )
    return Candidate(actions=tuple(actions))


def latency_ms(graph: bytes, example: Tensor) -> tuple[float, list[Any]]:
    """Median of a few runs on one thread, and the outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: example.numpy()}
    outputs = session.run(None, inputs)
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        session.run(None, inputs)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds)), outputs


def relative_error(found: list[Any], expected: Tensor) -> float:
    wanted = expected.numpy()
    return float(np.abs(found[0] - wanted).max() / max(np.abs(wanted).max(), 1e-9))


def study(name: str, family: Family, rules: SpaceRules) -> dict[str, Any]:
    torch.manual_seed(0)
    module = awake(explicit(family.make().eval()))
    example = torch.randn(1, 3, family.pixels, family.pixels)
    started = time.monotonic()
    graph = export_onnx(module, example)
    export_s = time.monotonic() - started
    network = describe(module, example, graph, name=name)
    describe_s = time.monotonic() - started - export_s
    started = time.monotonic()
    plan = row_plan(network, rules)
    enumerate_s = time.monotonic() - started
    dense_ms, outputs = latency_ms(graph, example)
    with torch.no_grad():
        errors = [relative_error(outputs, module(example))]
    reasons = sorted({group.fixed_by for group in network.groups if group.fixed_by})
    found: dict[str, Any] = {
        "pixels": family.pixels,
        "groups": len(network.groups),
        "groups_of_free_width": sum(group.prunable for group in network.groups),
        "blocks_that_can_go": sum(bool(group.branch) for group in network.groups),
        "macs_that_can_change": round(can_change(network, rules), 4),
        "rows_measured": len(plan.measured),
        "rows_interpolated": plan.interpolated,
        "enumerate_s": round(enumerate_s, 2),
        "export_s": round(export_s, 2),
        "describe_s": round(describe_s, 2),
        "dense_ms": round(dense_ms, 3),
        "reasons": reasons,
    }
    return {
        **found,
        **candidates(module, example, network, rules, errors, export_s),
        **proofs(module, example, network),
    }


def candidates(
    module: nn.Module,
    example: Tensor,
    network: Network,
    rules: SpaceRules,
    errors: list[float],
    export_s: float,
) -> dict[str, Any]:
    """Random ones, without INT8."""
    rng = np.random.default_rng(0)
    seconds, latencies, failed = [], [], []
    for _ in range(CANDIDATES):
        candidate = in_float(random_candidate(network, rules, rng))
        started = time.monotonic()
        try:
            smaller = compress(module, example, network, candidate=candidate, rules=rules)
            graph = export_onnx(smaller, example)
        except CandidateError as error:
            failed.append(str(error))
            continue
        seconds.append(time.monotonic() - started)
        found_ms, outputs = latency_ms(graph, example)
        latencies.append(round(found_ms, 3))
        with torch.no_grad():
            errors.append(relative_error(outputs, smaller(example)))
    return {
        "candidate_s": round(float(np.median(seconds)), 2) if seconds else None,
        "candidate_s_by_export": round(float(np.median(seconds)) / export_s, 2)
        if seconds
        else None,
        "candidates_ms": latencies,
        "candidates_failed": failed,
        "wrong_outputs": sum(error > MOST_ERROR for error in errors),
        "largest_error": max(errors),
    }


def proofs(module: nn.Module, example: Tensor, network: Network) -> dict[str, Any]:
    """NVIDIA's builder on candidates for TensorRT, INT8 among them."""
    if bindings() is None:
        return {"nvidia": "not installed"}
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2, *example.shape[1:])).astype(np.float32)
    refused = []
    for _ in range(PROOFS):
        candidate = random_candidate(network, TENSORRT, rng)
        try:
            proved(module, example, network, candidate, inputs)
        except CandidateError as error:
            refused.append(str(error)[:300])
    return {"nvidia_built": PROOFS - len(refused), "nvidia_refused": refused}


def of_family(name: str) -> dict[str, Any]:
    """All but the table's error."""
    rules = rules_for(load_profile("cpu"), state.isa())
    started = time.monotonic()
    try:
        found = study(name, FAMILIES[name], rules)
    except HwloopError as error:
        found = {"refused": str(error)}
    found["wall_s"] = round(time.monotonic() - started, 1)
    found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["isa"] = state.isa()
    return found


def table_error(name: str) -> dict[str, Any]:
    started = time.monotonic()
    study = planned(
        Untrained(name),
        name,
        f"zoo_{name}",
        PREDICTED,
        fitted_on=FITTED,
        every_row=False,
        twice=True,
    )
    return {
        **{key: study["results"]["all"][key] for key in TOLD},
        "again_median_abs_pct": study["results"]["measured again"]["median_abs_pct"],
        **{key: study[key] for key in ("dense_ms", "row_seconds", "coefficients")},
        "wall_s": round(time.monotonic() - started, 1),
        "isa": state.isa(),
    }


COLUMNS = (
    *("family", "groups", "of free width", "blocks that can go", "MACs that can change"),
    *("rows measured", "between them", "enumerated in", "candidate / export"),
    *("latency", "wrong outputs", "NVIDIA's builder", "table's error", "within 10 %"),
    *("measured again", "CPU"),
)


def line(name: str, item: dict[str, Any]) -> list[str]:
    """One family, as a row of the table in docs/networks.md."""
    if "refused" in item:
        return [name, item["refused"][:60], *("" for _ in COLUMNS[2:])]
    wrong = item["wrong_outputs"]
    return [
        f"{name} ({item['pixels']} pixels)",
        str(item["groups"]),
        str(item["groups_of_free_width"]),
        str(item["blocks_that_can_go"]),
        f"{item['macs_that_can_change']:.0%}",
        str(item["rows_measured"]),
        str(item["rows_interpolated"]),
        f"{item['enumerate_s']:.1f} s",
        str(item["candidate_s_by_export"]),
        f"{item['dense_ms']:.1f} ms",
        f"{wrong} of {1 + len(item['candidates_ms'])}",
        f"{item.get('nvidia_built', 'not tried')} of {PROOFS}",
        f"{error['median_abs_pct']:.1f} %" if (error := item.get("table_error")) else "not taken",
        f"{error['within_10pct']:.0%}" if error else "",
        f"{again:.1f} %" if error and (again := error.get("again_median_abs_pct")) else "",
        " / ".join(dict.fromkeys(_machine(found["isa"]) for found in (item, error) if found)),
    ]


def _machine(isa: str) -> str:
    """The machine that has these instruction sets, of the three that this ran on."""
    if "avx_vnni" in isa.split("+"):
        return "Xeon"
    return "EPYC" if "vnni" in isa else "EPYC, AVX2"


def write_page(rows: list[list[str]]) -> None:
    """The page with these rows in place of its table."""
    lines = PAGE.read_text().splitlines()
    table = [number for number, text in enumerate(lines) if text.startswith("|")]
    made = [f"| {' | '.join(row)} |" for row in (list(COLUMNS), *rows)]
    made.insert(1, "|---" * len(COLUMNS) + "|")
    lines[table[0] : table[-1] + 1] = made
    write_atomically(PAGE, ("\n".join(lines) + "\n").encode())


def main(arguments: list[str]) -> None:
    started = time.monotonic()
    flags = {word for word in arguments if word.startswith("--")}
    names = [word for word in arguments if word not in flags]
    if flags - {"--errors", "--page"} or not set(names) <= set(FAMILIES):
        raise SystemExit(f"{__doc__}\nfamilies: {', '.join(FAMILIES)}")
    torch.set_num_threads(2)
    for name in [] if "--page" in flags else names or list(FAMILIES):
        families = read_result("zoo").get("families", {})
        known = families.get(name, {})
        if "--errors" in flags:
            families[name] = {**known, "table_error": table_error(name)}
        else:
            families[name] = {"table_error": known.get("table_error"), **of_family(name)}
        print(name, json.dumps(families[name]), file=sys.stderr)
        write_result("zoo", {"families": families}, started=started)
    families = read_result("zoo")["families"]
    rows = [line(name, families[name]) for name in FAMILIES if name in families]
    print_table([list(COLUMNS), *rows])
    write_page(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
