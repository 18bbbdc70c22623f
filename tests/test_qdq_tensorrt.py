"""The TensorRT recipe: Q and DQ where the builder fuses them, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from graphs import needs_builder, nodes, quantize, weights
from torch import Tensor, nn

from hwloop.compress.export import export_onnx, host_run
from hwloop.errors import CandidateError
from hwloop.runtimes.fp16 import to_fp16
from hwloop.runtimes.proof import prove
from hwloop.task import load_model
from hwloop.tasks.load import load_task

SIZE = (1, 16, 8, 8)


class Residual(nn.Module):
    """A stem, a block with a skip, and what reads its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        return self.last(x)


class Branches(nn.Module):
    """Two convolutions, concatenated, pooled, and read by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(16, 16, 1)
        self.right = nn.Conv2d(16, 16, 1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(32, 16, 1)
        self.side = nn.Conv2d(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.left(x)), 9 * torch.relu(self.right(x))
        both = self.pool(torch.cat([left, right], dim=1))
        return self.last(both).mean() + self.side(left)


def inputs(count: int = 4, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *size[1:])).astype(np.float32)


def int8(module: nn.Module, *layers: str, size: tuple[int, ...] = SIZE) -> bytes:
    """The exported module with the named layers quantized."""
    torch.manual_seed(0)
    graph = export_onnx(module.eval(), torch.zeros(size))
    wanted = [
        node.name
        for node in nodes(graph, "Conv", "ConvTranspose", "Gemm", "MatMul")
        if node.name.split("/")[1] in layers
    ]
    assert len(wanted) == len(layers)
    data = inputs(size=size)
    return quantize(graph, wanted, calibration=data, recipe="tensorrt", isa="")


def reads_int8(graph: bytes, op: str) -> dict[str, list[bool]]:
    """For each node of an operator, by its module: whether each input comes from a DQ node."""
    ends = {node.output[0] for node in nodes(graph, "DequantizeLinear")}
    return {
        node.name.split("/")[-2] or "network": [name in ends for name in node.input]
        for node in nodes(graph, op)
    }


def pairs_of(graph: bytes) -> list[onnx.NodeProto]:
    return nodes(graph, "QuantizeLinear")


def test_only_the_chosen_layers_read_int8() -> None:
    found = reads_int8(int8(Residual(), "first"), "Conv")
    assert found == {
        "stem": [False, False, False],
        "first": [True, True, False],
        "second": [False, False, False],
        "last": [False, False, False],
    }


def test_every_pair_is_symmetric_with_a_scale_that_fp16_has() -> None:
    graph = int8(Residual(), "stem", "first", "second", "last")
    constants = weights(graph)
    pairs = nodes(graph, "QuantizeLinear", "DequantizeLinear")
    assert len(pairs) == 2 * (4 + 4)
    for node in pairs:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        assert (scale.astype(np.float16).astype(np.float32) == scale).all()


def test_no_output_is_quantized() -> None:
    graph = int8(Residual(), "stem", "first", "second", "last")
    producers = {output: node for node in nodes(graph) for output in node.output}
    assert producers["output"].op_type == "Conv"
    # One pair for each tensor that int8 layers read, however many they are.
    assert len(pairs_of(graph)) == len({node.input[0] for node in pairs_of(graph)})


@pytest.mark.parametrize(
    ("layers", "skip"),
    [
        (("first", "second", "last"), True),
        (("second", "last"), True),
        (("first", "second"), False),  # the sum leaves in FP16, so the skip must be FP16
        (("first", "last"), False),  # the addition belongs to a float convolution
    ],
)
def test_of_an_addition_the_skip_alone_is_quantized(layers: tuple[str, ...], skip: bool) -> None:
    graph = int8(Residual(), *layers)
    (add,) = nodes(graph, "Add")
    branch = next(n.output[0] for n in nodes(graph, "Conv") if "/second/" in n.name)
    ends = {node.output[0] for node in nodes(graph, "DequantizeLinear")}
    assert [name in ends for name in add.input if name != branch] == [skip]
    assert branch in add.input


def test_tensors_that_are_passed_on_share_one_scale() -> None:
    graph = int8(Branches(), "left", "right", "last", "side")
    constants = weights(graph)
    scales = {
        node.input[0]: float(constants[node.input[1]])
        for node in pairs_of(graph)
        if node.input[0] not in constants and node.input[0] != "input"
    }
    # The small left branch is read by itself, and passed on through concatenation and pool.
    assert len(scales) == 3
    assert len(set(scales.values())) == 1


def test_a_pool_is_int8_when_its_source_is() -> None:
    def graph(*layers: str) -> bytes:
        pool = nn.AdaptiveAvgPool2d(1)
        return int8(
            nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), pool, nn.Conv2d(16, 8, 1)), *layers
        )

    op = "GlobalAveragePool"
    assert list(reads_int8(graph("0"), op).values()) == [[True]]
    assert list(reads_int8(graph("3"), op).values()) == [[False]]


def test_fp16_changes_no_quantized_weight() -> None:
    module = nn.Sequential(nn.Conv2d(16, 64, 3))
    with torch.no_grad():  # spans the numbers that FP16 has as subnormals, too
        module[0].weight *= torch.logspace(-6, 2, 64).reshape(-1, 1, 1, 1)
    graph = int8(module, "0")
    original = module[0].weight.detach().numpy()
    steps = []
    for made in (graph, to_fp16(graph)):
        (node,) = [node for node in pairs_of(made) if "weight" in node.input[0]]
        values, scale = (weights(made)[name] for name in node.input[:2])
        wide = values.astype(np.float64) / scale.astype(np.float64).reshape(-1, 1, 1, 1)
        steps.append(np.rint(wide))
        assert np.abs(steps[-1]).max() <= 127
    assert np.array_equal(*steps)
    # Scales are rounded up, so that the largest weight is within half a step as well.
    (node,) = [node for node in pairs_of(graph) if "weight" in node.input[0]]
    values, scale = (weights(graph)[name] for name in node.input[:2])
    assert (np.abs(values - original) <= 0.5001 * scale.reshape(-1, 1, 1, 1)).all()


def test_a_dead_channel_has_a_scale_above_zero() -> None:
    module = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        module[0].weight[3] = 0
        module[0].bias.fill_(-100)  # and all of its outputs are zero
    graph = to_fp16(int8(module, "0", "2"))
    assert all((weights(graph)[node.input[1]] > 0).all() for node in pairs_of(graph))
    prove(graph, precisions=["int8", "fp16"])


@pytest.mark.parametrize(
    ("module", "size", "axis"),
    [
        (nn.Sequential(nn.ConvTranspose2d(16, 32, 2, stride=2)), SIZE, 1),
        (nn.Sequential(nn.Linear(16, 32)), (1, 6, 16), 1),
        (nn.Sequential(nn.Linear(16, 32)), (6, 16), 0),
    ],
)
def test_weights_are_quantized_per_output_channel(
    module: nn.Module, size: tuple[int, ...], axis: int
) -> None:
    graph = export_onnx(module.eval(), torch.zeros(size))
    wanted = [node.name for node in nodes(graph, "ConvTranspose", "Gemm", "MatMul")]
    data = inputs(count=9, size=size)
    made = quantize(graph, wanted, calibration=data, recipe="tensorrt", isa="")
    (node,) = [n for n in pairs_of(made) if n.input[0] in weights(made)]
    assert [item.i for item in node.attribute if item.name == "axis"] == [axis]
    assert weights(made)[node.input[1]].shape == (32,)
    prove(to_fp16(made), precisions=["int8"])


def test_a_range_that_is_not_finite_fails_the_candidate() -> None:
    module = nn.Sequential(nn.Conv2d(16, 8, 1))
    with torch.no_grad():
        module[0].weight[0, 0] = torch.inf
    with pytest.raises(CandidateError, match=r"compress: INT8: the range of tensor '0.weight'"):
        int8(module, "0")


def test_int8_costs_the_demo_less_than_two_points() -> None:
    task = load_task("demo")
    module, example = load_model(task, None), task.example()
    plain = export_onnx(module, example)
    data = task.train().batch(range(64))[0].numpy()
    names = [node.name for node in nodes(plain, "Conv", "Gemm")]
    made = to_fp16(quantize(plain, names, calibration=data, recipe="tensorrt", isa=""))
    images, targets = task.search().batch(range(500))
    scores = [task.metric(host_run(g)(images.numpy()), targets.numpy()) for g in (plain, made)]
    assert scores[0] > 0.9
    assert abs(scores[0] - scores[1]) < 0.02


@needs_builder
def test_onnx_runtime_and_the_builder_both_take_the_result() -> None:
    plain = export_onnx(Residual().eval(), torch.zeros(SIZE))
    graph = to_fp16(int8(Residual(), "stem", "first", "second", "last"))
    assert host_run(graph)(inputs()).shape == host_run(plain)(inputs()).shape
    assert prove(graph, precisions=["int8", "fp16"]) is not None
