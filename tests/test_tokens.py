"""Products of tokens with weights become products of matrices, and the graph answers as before."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hwloop.compress.describe import weighted_nodes
from hwloop.compress.export import export_onnx
from hwloop.device import state
from hwloop.runtimes.graph_shapes import with_shapes
from hwloop.runtimes.known import writing
from hwloop.runtimes.tokens import tokens_as_rows

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 5, 16)).astype(np.float32)


class Chain(nn.Module):
    """Layers over tokens with nothing between them, and one that reads what another has read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32, bias=False), nn.Linear(32, 24)
        self.beside, self.last = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.first(x)) + self.beside(x)))


def built(*nodes: Any, **weights: np.ndarray[Any, Any]) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "it",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5, 8))],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def rewritten(model: Any, nodes: set[str]) -> Counter[str]:
    """What there is afterwards; it answers as before."""
    (before,) = run(model)
    tokens_as_rows(model.graph, nodes, with_shapes(model)[1])
    onnx.checker.check_model(model)
    (after,) = run(model)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in model.graph.node)


def run(model: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": X})


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape)


@pytest.mark.parametrize("order", [("p", "b"), ("b", "p")])
def test_a_bias_goes_with_its_product_on_either_side(order: tuple[str, str]) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["p"], name="one")
    add = helper.make_node("Add", list(order), ["y"], name="add")
    model = built(product, add, w=weight(16, 8), b=weight(8))
    assert rewritten(model, {"one"}) == {"Reshape": 2, "Gemm": 1}
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["one"]


def test_what_is_read_by_others_as_well_keeps_its_addition() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["p"], name="one")
    add = helper.make_node("Add", ["p", "b"], ["s"], name="add")
    both = helper.make_node("Mul", ["p", "s"], ["y"], name="both")
    model = built(product, add, both, w=weight(16, 8), b=weight(8))
    assert rewritten(model, {"one"}) == {"Reshape": 2, "Gemm": 1, "Add": 1, "Mul": 1}


def two_readers() -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="one"),
        helper.make_node("MatMul", ["x", "v"], ["q"], name="other"),
        helper.make_node("Add", ["p", "q"], ["y"], name="sum"),
    ]
    return built(*nodes, w=weight(16, 8), v=weight(16, 8))


def test_only_named_products_change() -> None:
    assert rewritten(two_readers(), {"one"})["MatMul"] == 1


def test_the_same_tokens_are_one_matrix_for_all_that_read_them() -> None:
    assert rewritten(two_readers(), {"one", "other"}) == {"Reshape": 3, "Gemm": 2, "Add": 1}


def test_layers_in_a_row_are_int8_kernels_in_a_row() -> None:
    torch.manual_seed(0)
    network, example = Chain().eval(), torch.randn(1, 5, 16)
    graph = export_onnx(network, example)
    calibration = RNG.standard_normal((8, 5, 16)).astype(np.float32)
    runtime = writing("ort-x86", state.isa())
    small = runtime.quantized(graph, weighted_nodes(graph), calibration=calibration)
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": X})
    expected = network(torch.from_numpy(X)).detach().numpy()
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    kinds = Counter(node.op_type for node in onnx.load_from_string(small).graph.node)
    assert (kinds["Gemm"], kinds["MatMul"]) == (4, 0)
