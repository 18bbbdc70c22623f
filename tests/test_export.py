"""Exported graphs: checked, self-contained, and failures that name the layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwloop.errors import CandidateError
from hwloop.export import check_outputs, export_onnx, row_onnx
from hwloop.records import LayerConfig


class Awkward(nn.Module):
    """A layer that the exporter cannot translate."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[0, 0]).real


class Failing(nn.Module):
    """A layer whose own forward fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such luck")


def test_equal_biases_become_initializers_of_their_own() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    for child in module:
        nn.init.zeros_(child.bias)
    graph = onnx.load_from_string(export_onnx(module, torch.zeros(1, 1, 8, 8))).graph
    assert not [node for node in graph.node if node.op_type == "Identity"]
    names = {weight.name for weight in graph.initializer}
    assert all(node.input[2] in names for node in graph.node if node.op_type == "Conv")


def test_the_layer_that_cannot_be_exported_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), Awkward())
    with pytest.raises(CandidateError, match=r"export: layer '1'"):
        export_onnx(module, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("layers", "path"),
    [
        ([nn.Conv2d(1, 2, 1), nn.Sequential(nn.AdaptiveAvgPool2d(3)), nn.ReLU()], "1.0"),
        ([nn.Conv2d(1, 2, 1), Failing(), nn.ReLU()], "1"),
    ],
)
def test_the_layer_that_is_named_is_not_the_last_one_that_ran(
    layers: list[nn.Module], path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(*layers)
    with pytest.raises(CandidateError, match=f"layer '{path}'") as caught:
        export_onnx(module, torch.zeros(1, 1, 4, 4))
    assert "\n" not in str(caught.value)
    # The exporter prints the whole graph when it fails; standard output belongs to the command.
    assert capfd.readouterr() == ("", "")


def test_a_failed_export_leaves_nothing_behind() -> None:
    before = torch._C._jit_onnx_log
    module = nn.Sequential(Awkward())
    with pytest.raises(CandidateError):
        export_onnx(module, torch.zeros(1, 1, 4, 4))
    assert torch._C._jit_onnx_log is before
    assert not module._forward_pre_hooks
    assert not module._forward_hooks


def test_other_outputs_fail_the_check() -> None:
    module, example = nn.Linear(4, 3), torch.zeros(1, 4)
    with torch.no_grad():
        right = lambda inputs: module(torch.from_numpy(inputs)).detach().numpy()  # noqa: E731
        assert check_outputs(module, example, right) < 1e-6
        with pytest.raises(CandidateError, match="differ"):
            check_outputs(module, example, lambda inputs: right(inputs) * 1.01)
        with pytest.raises(CandidateError, match="finite"):
            check_outputs(module, example, lambda inputs: right(inputs) * np.nan)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (LayerConfig(op="linear", in_shape=(1, 16), out_channels=10, tail=("bias",)), (1, 10)),
        (LayerConfig(op="globalavgpool", in_shape=(1, 8, 7, 7), out_channels=8), (1, 8, 1, 1)),
        (
            LayerConfig(
                op="maxpool", in_shape=(1, 8, 8, 8), out_channels=8, kernel=(2, 2), stride=(2, 2)
            ),
            (1, 8, 4, 4),
        ),
        (
            LayerConfig(
                op="conv",
                in_shape=(1, 8, 9, 9),
                out_channels=8,
                kernel=(3, 3),
                stride=(2, 2),
                padding=(1, 1),
                groups=8,
                tail=("bias", "clip:0:6"),
            ),
            (1, 8, 5, 5),
        ),
        (
            LayerConfig(
                op="avgpool", in_shape=(1, 8, 8, 8), out_channels=8, kernel=(2, 2), stride=(2, 2)
            ),
            (1, 8, 4, 4),
        ),
        (
            LayerConfig(
                op="conv",
                in_shape=(2, 8, 6, 6),
                out_channels=16,
                groups=2,
                tail=("bias", "add", "relu"),
            ),
            (2, 16, 6, 6),
        ),
        *(
            (
                LayerConfig(op="conv", in_shape=(1, 8, 5, 5), out_channels=4, tail=("bias", word)),
                (1, 4, 5, 5),
            )
            for word in ("sigmoid", "hardswish", "tanh")
        ),
        (
            LayerConfig(op="elementwise", in_shape=(1, 8, 4, 4), out_channels=8, tail=("add",)),
            (1, 8, 4, 4),
        ),
    ],
)
def test_every_row_runs(config: LayerConfig, shape: tuple[int, ...], precision: str) -> None:
    values = {**vars(config), "precision": precision}
    graph = row_onnx(LayerConfig(**values))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    feeds = {t.name: np.ones(t.shape, kinds[t.type]) for t in session.get_inputs()}
    (output,) = session.run(None, feeds)
    assert output.shape == shape
    assert output.dtype == (np.float32 if precision == "fp32" else np.uint8)


def test_the_tail_of_a_row_is_computed() -> None:
    plain = LayerConfig(op="conv", in_shape=(1, 8, 5, 5), out_channels=4)
    inputs = np.random.default_rng(0).standard_normal((1, 8, 5, 5)).astype(np.float32)

    def outputs(*tail: str) -> np.ndarray:
        graph = row_onnx(replace(plain, tail=tail))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        feeds = {t.name: inputs[:, :4] * 0 + 2 for t in session.get_inputs()} | {"input": inputs}
        return session.run(None, feeds)[0]

    bare = outputs()
    assert np.allclose(outputs("relu"), np.maximum(bare, 0), atol=1e-6)
    assert np.allclose(outputs("clip:0:6"), np.clip(bare, 0, 6), atol=1e-6)
    assert np.allclose(outputs("add"), bare + 2, atol=1e-6)
    assert not np.allclose(outputs("bias"), bare)


@pytest.mark.parametrize("op", ["quantize", "dequantize", "empty"])
def test_rows_without_weights_run(op: str) -> None:
    graph = row_onnx(LayerConfig(op=op, in_shape=(1, 8, 4, 4), out_channels=8))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    kind = np.uint8 if op == "dequantize" else np.float32
    (output,) = session.run(None, {"input": np.ones((1, 8, 4, 4), kind)})
    assert output.shape == (1, 8, 4, 4)
