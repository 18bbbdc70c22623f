"""The contract: the rows that arithmetic predicts are those of the exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from tiny import TinyNet
from torch import Tensor, nn

from hwloop.compress import space
from hwloop.compress.apply import compress
from hwloop.compress.export import check_outputs, export_onnx
from hwloop.compress.model import describe, graph_configs
from hwloop.compress.space import ACTIONS, SpaceRules
from hwloop.tasks.demo.network import ResNet20
from hwloop.tasks.score import Run


class Grouped(nn.Module):
    """Grouped convolutions, a concatenation and pools: what the others do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.left = nn.Conv2d(32, 16, 1)
        self.right = nn.Conv2d(32, 24, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        both = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], dim=1)
        return self.last(torch.flatten(self.mean(self.pool(both)), 1))


NETWORKS = {
    "demo": (ResNet20, (1, 1, 28, 28)),
    "resnet18": (torchvision.models.resnet18, (1, 3, 32, 32)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (1, 3, 32, 32)),
    "resnext50_32x4d": (torchvision.models.resnext50_32x4d, (1, 3, 64, 64)),
    "flattened": (TinyNet, (1, 1, 8, 8)),
    "grouped": (lambda: Grouped(), (1, 3, 16, 16)),
}


def one_by_one(graph: bytes) -> Run:
    """Run the graph on each input alone."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([session.run(None, {"input": part[None]})[0] for part in inputs])

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_random_candidates_are_those_of_their_exports(name: str) -> None:
    factory, shape = NETWORKS[name]
    torch.manual_seed(0)
    dense: nn.Module = factory().eval()
    example = torch.randn(shape)
    rules = SpaceRules()
    network = describe(dense, example, export_onnx(dense, example), name=name)
    assert any(group.prunable for group in network.groups)
    rng = np.random.default_rng(3)
    for _ in range(2):
        # Precision is not in a float graph, so the arithmetic is compared for widths.
        choices = tuple(
            int(
                rng.choice(
                    [i for i, ok in enumerate(mask) if ok and ACTIONS[i].precision == "base"]
                )
            )
            for mask in space.masks(network, rules)
        )
        candidate = space.candidate(choices)
        small = compress(dense, example, network, candidate=candidate, rules=rules)
        graph = export_onnx(small, example)
        assert graph_configs(graph) == list(space.network_configs(network, candidate, rules))
        run = one_by_one(graph)
        check_outputs(small, example, run)
    assert graph_configs(export_onnx(dense, example)) == [layer.config for layer in network.layers]


@pytest.mark.parametrize("name", ["demo", "resnet18", "mobilenet_v2"])
def test_the_additions_in_the_rows_are_those_that_onnx_runtime_fuses(
    name: str, tmp_path: Path
) -> None:
    factory, shape = NETWORKS[name]
    graph = export_onnx(factory().eval(), torch.randn(shape))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    convolutions = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    fused = sum(len(node.input) > 3 and bool(node.input[3]) for node in convolutions)
    configs = [config for config in graph_configs(graph) if config.op == "conv"]
    assert len(convolutions) == len(configs)
    assert fused == sum("add" in config.tail for config in configs) > 0
