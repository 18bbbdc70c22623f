"""NVIDIA's own parser and builder: what hwloop writes is taken, what it must not write is not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torchvision
from graphs import needs_builder, node_graph, nodes
from method_contract import small_mobilenet, small_resnet
from torch import nn

from hwloop.compress import space
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.rules import SpaceRules
from hwloop.errors import CandidateError
from hwloop.records import Action, Candidate, Network
from hwloop.run.table_check import random_candidate, unrecovered_graph
from hwloop.runtimes import proof
from hwloop.runtimes.fp16 import to_fp16
from hwloop.runtimes.proof import prove
from hwloop.tasks.demo.network import ResNet20

RULES = SpaceRules(base_precision="fp16", recipe="tensorrt")
PRUNED_GROUPS = 2  # cutting a group takes about a second; benchmarks/trt_build.py cuts them all


def small_bottlenecks() -> nn.Module:
    kind = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(kind, [1, 1, 1, 1])


def small_efficientnet() -> nn.Module:
    """Gates, kernels of five, and blocks with and without a sum."""
    kind = torchvision.models.efficientnet.MBConvConfig
    setting = [kind(1, 3, 1, 32, 16, 1), kind(6, 3, 2, 16, 24, 2), kind(6, 5, 2, 24, 40, 2)]
    return torchvision.models.EfficientNet(setting, dropout=0.2, last_channel=320)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "demo": (ResNet20, (1, 1, 28, 28)),
    "resnet": (small_resnet, (1, 3, 64, 64)),
    "bottlenecks": (small_bottlenecks, (1, 3, 32, 32)),
    "mobilenet": (small_mobilenet, (1, 3, 32, 32)),
    "efficientnet": (small_efficientnet, (1, 3, 32, 32)),
}
# The dense network, each kind of action everywhere, and a mixture.
KINDS: dict[str, Action | None] = {
    "dense": Action(),
    "narrow": Action(kind="prune", amount=0.5),
    "int8": Action(precision="int8"),
    "narrow int8": Action(kind="prune", amount=0.5, precision="int8"),
    "mixed": None,
}
CASES = [
    *[("demo", kind) for kind in KINDS],
    *[("resnet", kind) for kind in ("int8", "mixed")],
    *[(name, "mixed") for name in ("mobilenet", "efficientnet")],
    *[(name, "int8") for name in ("bottlenecks", "mobilenet", "efficientnet")],
]


@functools.cache
def described(name: str) -> tuple[nn.Module, torch.Tensor, Network]:
    factory, shape = NETWORKS[name]
    torch.manual_seed(0)
    dense, example = factory().eval(), torch.randn(shape)
    return dense, example, describe(dense, example, export_onnx(dense, example), name=name)


def chosen(network: Network, kind: str, rng: np.random.Generator) -> Candidate:
    """The kind of action in every group where it is legal; widths in a few only."""
    action = KINDS[kind]
    if action is None:
        found = random_candidate(network, RULES, rng)
    else:
        found = space.uniform(network, action, RULES)
    actions = list(found.actions)
    pruned = [index for index, action in enumerate(actions) if action.kind == "prune"]
    for index in rng.permutation(pruned)[PRUNED_GROUPS:]:
        actions[index] = Action(precision=actions[index].precision)
    return Candidate(actions=tuple(actions))


@needs_builder
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_kind_of_candidate_is_built(name: str, kind: str) -> None:
    dense, example, network = described(name)
    rng = np.random.default_rng(2)
    candidate = chosen(network, kind, rng)
    int8 = any(action.precision == "int8" for action in candidate.actions)
    assert int8 == ("int8" in kind or kind == "mixed")
    pruned = any(action.kind == "prune" for action in candidate.actions)
    assert pruned == ("narrow" in kind or kind == "mixed")
    calibration = rng.standard_normal((2, *example.shape[1:])).astype(np.float32)
    graph = unrecovered_graph(
        dense, example, network, candidate=candidate, calibration=calibration, rules=RULES
    )
    found = prove(graph, precisions=["fp16", "int8"] if int8 else ["fp16"])
    assert found is not None
    assert found.engine_bytes > 0
    assert ("INT8" in dict(found.dtypes)) == int8


# ------------------------------------------------------------------------- what is refused


def quantized_convolution(**changed: np.ndarray) -> bytes:
    """One int8 convolution by hand, with what a test breaks."""
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.standard_normal((32, 16, 1, 1)).astype(np.float32),
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "weight_scales": np.full(32, 0.01, np.float32),
        "weight_zeros": np.zeros(32, np.int8),
        "bias": np.zeros(32, np.float32),
        **changed,
    }
    make = onnx.helper.make_node
    weight_ends = ["weight_scales", "weight_zeros"]
    made = [
        make("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="q"),
        make("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
        make("QuantizeLinear", ["weight", *weight_ends], ["wq"], name="wq", axis=0),
        make("DequantizeLinear", ["wq", *weight_ends], ["wdq"], name="wdq", axis=0),
    ]
    bias = "bias"
    if constants["bias"].dtype == np.int32:
        constants["bias_scales"] = np.full(32, 0.01, np.float32)
        made.append(make("DequantizeLinear", ["bias", "bias_scales"], ["bdq"], name="bdq", axis=0))
        bias = "bdq"
    made.append(make("Conv", ["dq", "wdq", bias], ["output"], name="conv"))
    return node_graph(made, constants)


@needs_builder
def test_the_graph_that_the_next_tests_break_is_built() -> None:
    assert prove(quantized_convolution(), precisions=["int8"]) is not None


@needs_builder
@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"zero": np.uint8(128)}, "QuantizeLinear 'q'"),
        ({"zero": np.int8(3)}, "QuantizeLinear 'q'"),
        ({"bias": np.zeros(32, np.int32)}, "DequantizeLinear 'bdq'"),
        ({"scale": np.float32(0)}, "QuantizeLinear 'q'"),
        ({"weight_scales": np.append(np.ones(31), 0).astype(np.float32)}, "QuantizeLinear 'wq'"),
    ],
    ids=["uint8", "zero point", "int32 bias", "scale", "dead channel"],
)
def test_what_tensorrt_cannot_read_is_refused_with_the_node(
    changed: dict[str, np.ndarray], where: str
) -> None:
    with pytest.raises(CandidateError, match=f"export: TensorRT's parser refuses.*{where}"):
        prove(quantized_convolution(**changed))


@needs_builder
def test_a_precision_that_no_layer_has_is_refused() -> None:
    plain = export_onnx(nn.Sequential(nn.Conv2d(1, 8, 3)), torch.zeros(1, 1, 8, 8))
    assert prove(plain, precisions=["fp32"]) is not None
    with pytest.raises(CandidateError, match=r"no layer is fp16: {'FLOAT': \d+}"):
        prove(plain, precisions=["fp16"])
    with pytest.raises(CandidateError, match="no layer is int8"):
        prove(to_fp16(plain), precisions=["fp16", "int8"])


@needs_builder
def test_a_build_ends_at_its_deadline() -> None:
    plain = export_onnx(nn.Sequential(nn.Conv2d(1, 8, 3)), torch.zeros(1, 1, 8, 8))
    late = r"build: TensorRT built no engine \(cancelled after 0 s"
    with pytest.raises(CandidateError, match=late):
        prove(plain, deadline_s=0.0)


def test_without_the_builder_there_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "MODULE", "tensorrt_of_nobody")
    plain = export_onnx(nn.Sequential(nn.Conv2d(1, 8, 3)), torch.zeros(1, 1, 8, 8))
    assert prove(plain) is None
    model = onnx.load_from_string(to_fp16(plain))
    first, *rest = nodes(model.SerializeToString())
    del model.graph.node[:]
    model.graph.node.extend([*rest, first])
    with pytest.raises(CandidateError, match="export: ONNX refuses"):
        prove(model.SerializeToString())
