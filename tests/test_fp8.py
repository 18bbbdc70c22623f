"""FP8, for linear layers over tokens on TensorRT: where it may be, what it costs and writes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from graphs import needs_builder
from tiny import Said, TinyTask, inside
from torch import Tensor, nn

import hwloop
from hwloop.compress import space
from hwloop.compress.describe import describe, weighted_nodes
from hwloop.compress.export import export_onnx
from hwloop.compress.reachable import row_plan
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.errors import UsageError
from hwloop.measure.profile_file import load_profile
from hwloop.records import Action, Candidate, Network
from hwloop.run.table_check import random_candidate, unrecovered_graph
from hwloop.runtimes.known import writing
from hwloop.runtimes.proof import prove
from hwloop.runtimes.rowkinds import kind_of
from hwloop.tasks.explicit import explicit

Capsys = pytest.CaptureFixture[str]

RULES = SpaceRules(
    base_precision="fp16", precisions=("base", "int8", "fp8"), recipe="tensorrt", align=16
)
WITHOUT = replace(RULES, precisions=("base", "int8"))
FP8 = Action(precision="fp8")
PROFILE = """
description = "a roofline with FP8"
runtime = "{runtime}"

[space]
align = 16
base_precision = "{base}"
precisions = ["base", "int8", "fp8"]
recipe = "{recipe}"
"""

SHEET = """
[datasheet]
tmacs_per_s = { fp32 = 0.0001, fp16 = 0.001, int8 = 0.0001, fp8 = 3.0 }
gbytes_per_s = 100.0
source = "nobody"
"""


def transformer(channels: int, pixels: int, *, layers: int, features: int) -> nn.Module:
    torch.manual_seed(0)
    made = torchvision.models.VisionTransformer(
        *(pixels, pixels // 4, layers, 2, features, 2 * features), num_classes=4
    )
    made.conv_proj = nn.Conv2d(channels, features, pixels // 4, stride=pixels // 4)
    nn.init.normal_(made.heads.head.weight)
    return explicit(made.eval())


class Tokens(TinyTask):
    """The images of the tests for a small transformer, untrained: for latency alone."""

    def model(self) -> nn.Module:
        return transformer(1, 8, layers=1, features=32)


@functools.cache
def described() -> tuple[nn.Module, Tensor, Network]:
    dense, example = transformer(3, 32, layers=2, features=32), torch.randn(1, 3, 32, 32)
    return dense, example, describe(dense, example, export_onnx(dense, example), name="tokens")


def candidates(count: int, seed: int) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [random_candidate(described()[2], RULES, rng) for _ in range(count)]


def graph_of(candidate: Candidate) -> bytes:
    dense, example, network = described()
    calibration = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    return unrecovered_graph(
        dense, example, network, candidate=candidate, calibration=calibration, rules=RULES
    )


def test_linear_layers_over_tokens_may_be_fp8_and_nothing_else() -> None:
    network = described()[2]
    actions = space.menu(RULES)
    can = {
        group.name
        for group, mask in zip(network.groups, space.masks(network, RULES), strict=True)
        if mask[actions.index(FP8)]
    }
    rows = {layer.name: layer.config for layer in network.layers}
    over_tokens = {name for name, row in rows.items() if row.op == "linear" and row.in_shape[0] > 1}
    assert can
    assert all(set(group.layers) <= over_tokens for group in network.groups if group.name in can)


def test_a_target_without_it_has_the_menu_and_the_masks_that_it_had() -> None:
    network, menu = described()[2], space.menu(WITHOUT)
    assert {action.precision for action in menu} == {"base", "int8"}
    assert space.menu(RULES)[: len(menu)] == menu
    both = zip(space.masks(network, RULES), space.masks(network, WITHOUT), strict=True)
    assert all(mask[: len(menu)] == old for mask, old in both)


def test_between_layers_there_is_fp16_so_that_no_change_of_precision_is_paid() -> None:
    network = described()[2]
    candidate = space.uniform(network, FP8, RULES)
    rows = network_configs(network, candidate, RULES)
    fp8 = [row for row in rows if row.precision == "fp8"]
    assert {row.op for row in fp8} == {"linear"}
    assert {(row.precision_in, row.precision_out) for row in fp8} == {("fp16", "fp16")}
    assert {row.precision for row in rows} == {"fp16", "fp8"}
    assert not [row for row in rows if row.op in ("quantize", "dequantize")]


def test_every_row_of_a_candidate_was_foreseen() -> None:
    network = described()[2]
    plan = row_plan(network, RULES)
    rows = {row for each in candidates(20, 1) for row in network_configs(network, each, RULES)}
    assert any(row.precision == "fp8" for row in rows)
    assert {part for row in rows for part, _ in plan.parts(row)} <= set(plan.measured)


def test_each_layer_alone_hardly_changes_the_outputs() -> None:
    """Three bits of mantissa: a few percent, on a network of random weights."""
    dense, example, _ = described()
    graph = export_onnx(dense, example)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    expected = dense(torch.from_numpy(images)).detach().numpy()
    for node in weighted_nodes(graph)[1:-1]:  # all but the patches and the classifier
        small = writing("tensorrt").quantized(graph, [], fp8=[node], calibration=images)
        session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
        found = np.concatenate([session.run(None, {"input": x})[0] for x in images[:, None]])
        assert 0 < np.linalg.norm(found - expected) < 0.08 * np.linalg.norm(expected), node


def test_the_largest_weight_is_not_cut_off() -> None:
    dense, example, _ = described()
    graph = export_onnx(dense, example)
    nodes = weighted_nodes(graph)[1:-1]
    images = np.zeros((1, 3, 32, 32), np.float32)
    small = onnx.load_from_string(
        writing("tensorrt").quantized(graph, [], fp8=nodes, calibration=images)
    )
    constants = {item.name: item for item in small.graph.initializer}
    scales = {name: item for name, item in constants.items() if name.endswith("_fp8_scale")}
    of_weights = {name.removesuffix("_fp8_scale") for name in scales} & set(constants)
    assert len(of_weights) == len(nodes)
    for name in of_weights:
        largest = np.abs(onnx.numpy_helper.to_array(constants[name])).max()
        scale = float(onnx.numpy_helper.to_array(scales[f"{name}_fp8_scale"]))
        assert largest <= 448 * scale < 1.01 * largest


@needs_builder
@pytest.mark.parametrize("which", ["everywhere", "mixed"])
def test_nvidias_builder_takes_it(which: str) -> None:
    network = described()[2]
    everywhere = space.uniform(network, FP8, RULES)
    mixed = next(
        each
        for each in candidates(20, 2)
        if {"int8", "fp8"} <= {action.precision for action in each.actions}
    )
    found = prove(
        graph_of(everywhere if which == "everywhere" else mixed),
        precisions=["fp16", "fp8"] if which == "everywhere" else ["fp16", "fp8", "int8"],
    )
    assert found is not None
    assert found.engine_bytes > 0


@needs_builder
def test_so_are_its_rows() -> None:
    network = described()[2]
    rows = [row for row in row_plan(network, RULES).measured if row.precision == "fp8"]
    kinds = {kind_of(row): row for row in rows}
    assert all(kind.startswith("FP8 linear") for kind in kinds)
    for row in kinds.values():
        assert prove(writing("tensorrt").row_graph(row), precisions=["fp16", "fp8"]) is not None


def test_a_gpu_without_such_kernels_keeps_its_int8() -> None:
    network = described()[2]
    rows = row_plan(network, RULES).measured
    kinds = {kind_of(row) for row in rows if row.precision == "fp8"}
    refused = replace(RULES, refused_kinds=tuple(sorted(kinds)))
    legal = space.masks(network, refused)
    left = {
        action.precision
        for mask in legal
        for action, ok in zip(space.menu(refused), mask, strict=True)
        if ok
    }
    assert left == {"base", "int8"}
    assert space.quantized_masked(network, refused)
    assert not space.quantized_masked(network, RULES)


@pytest.mark.parametrize(
    ("runtime", "base", "recipe", "words"),
    [
        ("onnxruntime", "fp32", "ort-x86", "only the recipe tensorrt writes it"),
        ("tensorrt", "fp32", "tensorrt", 'needs space.base_precision = "fp16"'),
    ],
)
def test_a_profile_that_cannot_mean_it_is_refused(
    runtime: str, base: str, recipe: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(PROFILE.format(runtime=runtime, base=base, recipe=recipe))
    with pytest.raises(UsageError, match=words):
        load_profile(str(path))


def test_a_datasheet_must_know_how_fast_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    plain = PROFILE.format(runtime="tensorrt", base="fp16", recipe="tensorrt") + SHEET
    path.write_text(plain.replace(", fp8 = 3.0", ""))
    with pytest.raises(UsageError, match="tmacs_per_s needs fp8"):
        load_profile(str(path))
    path.write_text(plain)
    assert load_profile(str(path)).datasheet is not None


def test_it_is_searched_and_shipped_where_it_is_fastest(tmp_path: Path, capsys: Capsys) -> None:
    path = tmp_path / "some.toml"
    alone = 'kinds = ["keep"]\n'
    plain = PROFILE.format(runtime="tensorrt", base="fp16", recipe="tensorrt")
    path.write_text(plain + alone + SHEET)
    said: Said = inside(
        capsys,
        *("optimize", "--task", f"{__file__}:Tokens", "--target", path, "--simulate"),
        *("--agent", "planner", "--evaluations", "1", "--loop-steps", "1", "--final-steps", "2"),
        *("--finalists", "1", "--max-drop", "none", "--min-speedup", "1.05"),
        *("--run", tmp_path / "run"),
    )
    assert said.code == 0, said.err
    shipped = onnx.load(tmp_path / "run" / "best" / "model.onnx")
    types = {item.data_type for item in shipped.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types
    comparisons = json.loads((tmp_path / "run" / "report.json").read_text())["comparisons"]
    assert comparisons["whole-network FP8"]["speedup"] > 1.05
    assert isinstance(hwloop.load(tmp_path / "run", task=Tokens), torch.nn.Module)
