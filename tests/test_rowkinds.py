"""Kinds of rows: what a board takes or refuses as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
import torch
import torchvision
from graphs import needs_builder, row_onnx
from torch import nn

from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.reachable import reachable_configs
from hwloop.compress.rules import SpaceRules
from hwloop.records import LayerConfig
from hwloop.runtimes.proof import prove
from hwloop.runtimes.rowkinds import INT8_KINDS, kind_of
from hwloop.tasks.demo.network import ResNet20

KINDS = [kind for kind, _ in INT8_KINDS]


@pytest.mark.parametrize(("kind", "config"), INT8_KINDS, ids=KINDS)
def test_every_kind_is_a_graph_for_tensorrt_with_int8_in_it(kind: str, config: LayerConfig) -> None:
    graph = onnx.load_from_string(row_onnx(config, "tensorrt"))
    types = {
        value.type.tensor_type.elem_type for value in (*graph.graph.input, *graph.graph.output)
    }
    assert onnx.TensorProto.INT8 in types
    assert onnx.TensorProto.FLOAT not in types, "the base precision of TensorRT's targets is FP16"


def test_kinds_are_named_once_and_cover_every_operator_and_tail() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert {config.op for _, config in INT8_KINDS} == {
        *("conv", "linear", "maxpool", "avgpool", "globalavgpool"),
        *("quantize", "dequantize", "elementwise", "concat"),
    }
    tails = {word.partition(":")[0] for _, config in INT8_KINDS for word in config.tail}
    assert tails == {"bias", "add", "relu", "clip", "sigmoid", "hardswish", "tanh"}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "conv 3x3, add, relu"),
        ({"stride": (2, 2)}, "conv 3x3 strided, add, relu"),
        ({"groups": 32}, "depthwise conv 3x3, add, relu"),
        ({"groups": 4}, "grouped conv 3x3, add, relu"),
        ({"in_shape": (1, 3, 14, 14)}, "thin conv 3x3, add, relu"),
        ({"tail": ("bias", "clip:0:6")}, "conv 3x3, clip"),
        ({"sparsity": "2:4"}, "conv 3x3 2:4, add, relu"),
        ({"op": "elementwise"}, "add, relu"),
        ({"op": "linear", "in_shape": (8, 32), "tail": ()}, "linear"),
        ({"op": "avgpool", "tail": ()}, "average pool"),
        ({"op": "quantize", "tail": ()}, "quantize"),
    ],
)
def test_a_kind_says_what_the_kernels_have_in_common(changes: dict[str, object], kind: str) -> None:
    config = LayerConfig(
        op="conv",
        in_shape=(1, 32, 14, 14),
        out_channels=32,
        kernel=(3, 3),
        padding=(1, 1),
        tail=("bias", "add", "relu"),
    )
    assert kind_of(replace(config, **changes)) == kind


def test_widths_and_sizes_make_no_other_kind() -> None:
    for kind, config in INT8_KINDS:
        if config.groups == 1 and config.op == "conv" and config.in_shape[1] >= 16:
            wide = replace(config, in_shape=(1, 128, 28, 28), out_channels=256)
            assert kind_of(wide) == kind


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (ResNet20, (1, 1, 28, 28)),
        (torchvision.models.resnet18, (1, 3, 64, 64)),
        (torchvision.models.resnext50_32x4d, (1, 3, 64, 64)),
    ],
)
def test_no_int8_row_of_a_common_network_is_of_a_kind_that_is_left_out(
    factory: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    module, example = factory().eval(), torch.zeros(shape)
    network = describe(module, example, export_onnx(module, example), name="network")
    rules = SpaceRules(base_precision="fp16", recipe="tensorrt")
    rows = reachable_configs(network, rules)
    found = {kind_of(config) for config in rows if config.precision == "int8"}
    assert found
    assert found <= set(KINDS)


@needs_builder
@pytest.mark.parametrize(("kind", "config"), INT8_KINDS, ids=KINDS)
def test_nvidias_builder_takes_every_kind(kind: str, config: LayerConfig) -> None:
    assert prove(row_onnx(config, "tensorrt")) is not None
