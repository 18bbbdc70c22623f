"""INT8: the layers that were chosen run in int8, and no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import optimized_ops, quantize

from hwloop.compress import space
from hwloop.compress.apply import quantized
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.rules import SpaceRules
from hwloop.device import state
from hwloop.records import Action, Candidate, Network
from hwloop.run.build import CALIBRATION_INPUTS
from hwloop.runtimes.known import writing
from hwloop.task import load_model
from hwloop.tasks.load import load_task

INT8 = Action(precision="int8")


@pytest.fixture(scope="module")
def demo() -> tuple[torch.nn.Module, torch.Tensor, bytes, Network, np.ndarray]:
    task = load_task("demo")
    module, example = load_model(task, None), task.example()
    graph = export_onnx(module, example)
    inputs = task.train().batch(range(CALIBRATION_INPUTS))[0].numpy()
    return module, example, graph, describe(module, example, graph, name="demo"), inputs


def int8_graph(demo: tuple, chosen: set[str]) -> bytes:
    module, example, graph, network, inputs = demo
    actions = tuple(INT8 if g.name in chosen else Action() for g in network.groups)
    return quantized(
        module,
        example,
        graph,
        network=network,
        candidate=Candidate(actions=actions),
        calibration=inputs,
        runtime=writing("ort-x86", state.isa()),
    )


def test_without_int8_groups_the_graph_is_unchanged(demo: tuple) -> None:
    assert int8_graph(demo, set()) == demo[2]


def test_the_whole_network_runs_in_int8(demo: tuple, tmp_path: Path) -> None:
    everything = {group.name for group in demo[3].groups}
    ops = Counter(node.op_type for node in optimized_ops(int8_graph(demo, everything), tmp_path))
    assert ops["QLinearConv"] == 21
    assert ops["QLinearAdd"] == 9
    assert ops["Conv"] == ops["FusedConv"] == ops["Relu"] == 0


@pytest.mark.parametrize("island", ["stage2.1.conv1", "stage3.2.conv1"])
def test_a_float_layer_between_int8_layers_stays_float(
    demo: tuple, tmp_path: Path, island: str
) -> None:
    chosen = {group.name for group in demo[3].groups} - {island}
    nodes = optimized_ops(int8_graph(demo, chosen), tmp_path)
    ops = Counter(node.op_type for node in nodes)
    assert ops["QLinearConv"] == 20
    assert ops["Conv"] + ops["FusedConv"] == 1


def test_a_max_pool_between_a_float_and_an_int8_layer_stays_float(tmp_path: Path) -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.MaxPool2d(3, 2), torch.nn.Conv2d(16, 8, 1)
    )
    graph = export_onnx(module, torch.zeros(1, 3, 15, 15))
    last = [node.name for node in onnx.load_from_string(graph).graph.node][-1]
    inputs = np.random.default_rng(0).standard_normal((4, 3, 15, 15)).astype(np.float32)
    int8 = quantize(graph, [last], calibration=inputs, recipe="ort-x86", isa=state.isa())
    ops = [node.op_type for node in optimized_ops(int8, tmp_path)]
    assert ops.index("MaxPool") < ops.index("QuantizeLinear") < ops.index("QLinearConv")
    run = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"]).run
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs[:1])).numpy()
    (found,) = run(None, {"input": inputs[:1]})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_clip_behind_a_convolution_costs_no_operator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU6(), torch.nn.Conv2d(16, 8, 1), torch.nn.ReLU6()
    )
    graph = export_onnx(module, torch.zeros(1, 3, 9, 9))
    layers = [n.name for n in onnx.load_from_string(graph).graph.node if n.op_type == "Conv"]
    inputs = np.random.default_rng(0).standard_normal((4, 3, 9, 9)).astype(np.float32)
    int8 = quantize(graph, layers, calibration=inputs, recipe="ort-x86", isa=state.isa())
    ops = Counter(node.op_type for node in optimized_ops(int8, tmp_path))
    assert ops["QLinearConv"] == 2
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1
    assert ops["Clip"] == 0


@pytest.mark.parametrize("rectifier", [torch.nn.ReLU, torch.nn.ReLU6])
def test_an_int8_linear_layer_stays_int8_whose_rectified_floats_are_read(
    tmp_path: Path, rectifier: type
) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear
    module = torch.nn.Sequential(
        *(linear(16, 64), rectifier()), *(linear(64, 64), rectifier()), linear(64, 8)
    )
    graph = export_onnx(module, torch.zeros(1, 16))
    first, second, _ = [
        node.name for node in onnx.load_from_string(graph).graph.node if node.op_type == "Gemm"
    ]
    inputs = 4 * np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    int8 = quantize(graph, [first, second], calibration=inputs, recipe="ort-x86", isa=state.isa())
    ops = Counter(node.op_type for node in optimized_ops(int8, tmp_path))
    assert ops["QGemm"] == 2
    assert ops["Gemm"] + ops["FusedGemm"] == 1
    assert ops["DequantizeLinear"] == 0
    assert ops["Max"] == 1  # the other one is part of what the first layer is rounded to
    run = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"]).run
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs[:1])).numpy()
    (found,) = run(None, {"input": inputs[:1]})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_int8_costs_the_demo_less_than_two_points(demo: tuple) -> None:
    task = load_task("demo")
    inputs, targets = task.search().batch(range(1000))
    everything = {group.name for group in demo[3].groups}
    scores = []
    for graph in (demo[2], int8_graph(demo, everything)):
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        outputs = [session.run(None, {"input": x[None]})[0] for x in inputs.numpy()]
        scores.append(task.metric(np.concatenate(outputs), targets.numpy()))
    assert scores[0] > 0.9
    assert scores[0] - scores[1] < 0.02


def test_masks_and_menu_agree_on_int8(demo: tuple) -> None:
    rules = SpaceRules(recipe="ort-x86")
    masks = space.masks(demo[3], rules)
    assert all(mask[space.menu(rules).index(INT8)] for mask in masks)
