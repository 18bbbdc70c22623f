"""2:4: the pattern is there, stays there, and costs as little as the inputs allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import needs_builder, row_onnx
from onnx import numpy_helper
from torch import nn

from hwloop.compress.apply import compress, quantized
from hwloop.compress.export import export_onnx
from hwloop.compress.methods.method import Work
from hwloop.compress.methods.sparse import Sparse, thinned
from hwloop.compress.moments import input_moments
from hwloop.compress.recover import Recovery
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import described
from hwloop.compress.space import uniform
from hwloop.compress.training import Schedule
from hwloop.records import Action, Group, LayerConfig
from hwloop.runtimes.known import writing
from hwloop.runtimes.proof import prove
from hwloop.task import ClassificationTask
from hwloop.tasks.splits import TensorSplit

SPARSE = Action(kind="sparse", amount=0.5)
RULES = SpaceRules(recipe="tensorrt", kinds=("keep", "sparse"), base_precision="fp32")
CONV = LayerConfig(
    op="conv", in_shape=(1, 128, 14, 14), out_channels=128, kernel=(3, 3), padding=(1, 1)
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 160, 3, padding=1, bias=False),
        nn.BatchNorm2d(160),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, 4),
    ).eval()


def small(dense: nn.Module, example: torch.Tensor) -> nn.Module:
    network = described(dense, example, export_onnx(dense, example), name="net", rules=RULES)
    candidate = uniform(network, SPARSE, RULES)
    assert [action.kind for action in candidate.actions] == ["keep", "sparse", "keep"]
    return compress(dense, example, network, candidate=candidate, rules=RULES)


def weights_of(graph: bytes) -> list[np.ndarray]:
    return [numpy_helper.to_array(w) for w in onnx.load_from_string(graph).graph.initializer]


def is_sparse(weight: Any) -> bool:
    """At most two of every four consecutive input channels, for each output and tap."""
    values = np.moveaxis(np.asarray(weight), 1, -1)
    fours = values.reshape(*values.shape[:-1], -1, 4)
    return bool((np.count_nonzero(fours, axis=-1) <= 2).all())


def test_what_goes_is_what_the_others_can_make_up_for() -> None:
    torch.manual_seed(0)
    layer, mixing = nn.Conv2d(128, 128, 1, bias=False), torch.randn(128, 40)
    batch = torch.einsum("ij,njhw->nihw", mixing, torch.randn(32, 40, 8, 8))
    network = nn.Sequential(layer)
    with torch.no_grad():
        expected = network(batch)
    moments = input_moments(network, [batch])
    by_size = layer.weight.detach()[:, :, 0, 0].clone()
    fours = by_size.reshape(128, -1, 4)
    fours.scatter_(2, fours.abs().topk(2, largest=False).indices, 0.0)
    group = Group(name="0", layers=("0",), channels=128, prunable=True, block="")
    work = Work(module=network, dense=network, example=batch, rules=RULES, moments=moments)
    Sparse().apply(work, {group: SPARSE})
    assert is_sparse(layer.weight.detach())
    with torch.no_grad():
        error = (network(batch) - expected).norm()
        plain = (torch.einsum("oi,nihw->nohw", by_size, batch) - expected).norm()
    assert error < 0.5 * plain


def test_independent_inputs_lose_their_least_weights() -> None:
    rows = torch.tensor([[4.0, 1.0, -3.0, 2.0, 1.0, -6.0, 5.0, 2.0]], dtype=torch.float64)
    expected = [[4.0, 0.0, -3.0, 0.0, 0.0, -6.0, 5.0, 0.0]]
    assert thinned(rows, torch.eye(8, dtype=torch.float64)).tolist() == expected
    assert thinned(rows, None).tolist() == expected


def test_zeros_stay_through_distillation_folding_and_int8() -> None:
    class Task(ClassificationTask):
        name = "noise"

        def train(self) -> TensorSplit:
            torch.manual_seed(1)
            return TensorSplit(torch.randn(64, 16, 6, 6), torch.arange(64) % 4)

    dense, example = net(), torch.randn(1, 16, 6, 6)
    module = small(dense, example)
    before = module[3].weight.detach().clone()
    Recovery(Task(), dense, seed=0).recover(module, Schedule(steps=3, batch_size=16))
    assert not torch.equal(before, module[3].weight)
    graph = export_onnx(module, example)
    weights = weights_of(graph)
    (wide,) = [value for value in weights if value.shape == (160, 128, 3, 3)]
    assert is_sparse(wide)
    (dense_one,) = [value for value in weights if value.shape == (128, 16, 3, 3)]
    assert not is_sparse(dense_one)
    network = described(dense, example, export_onnx(dense, example), name="net", rules=RULES)
    both = uniform(network, Action(kind="sparse", amount=0.5, precision="int8"), RULES)
    int8 = quantized(
        module,
        example,
        graph,
        network=network,
        candidate=both,
        calibration=np.random.default_rng(0).standard_normal((8, 16, 6, 6)).astype(np.float32),
        runtime=writing("tensorrt"),
    )
    found = [value for value in weights_of(int8) if value.shape == (160, 128, 3, 3)]
    assert found
    assert all(map(is_sparse, found))


@needs_builder
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nvidias_builder_takes_a_sparse_row(precision: str) -> None:
    ends = dict.fromkeys(("precision_in", "precision", "precision_out"), precision)
    graph = row_onnx(replace(CONV, sparsity="2:4", **ends), "tensorrt")
    assert prove(graph, precisions=(precision,)) is not None
    assert is_sparse(next(value for value in weights_of(graph) if value.ndim == 4))


def test_half_of_the_work_is_skipped() -> None:
    assert replace(CONV, sparsity="2:4").macs == CONV.macs // 2
