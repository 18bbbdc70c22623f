"""What holds for every compression method: a subclass names the method, and inherits the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from tiny import TinyNet, environment
from torch import Tensor, nn

from hwloop.compress import methods, space
from hwloop.compress.apply import compress
from hwloop.compress.describe import graph_configs
from hwloop.compress.export import check_outputs, export_onnx
from hwloop.compress.methods.method import Method
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import described
from hwloop.records import KEEP, Candidate
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


def small_resnext() -> nn.Module:
    """A bottleneck of eight groups in each stage."""
    kind = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(kind, [1, 1, 1, 1], groups=8, width_per_group=8)


def small_resnet() -> nn.Module:
    """A block in each stage."""
    kind = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(kind, [1, 1, 1, 1])


def small_mobilenet() -> nn.Module:
    """Inverted residuals with and without a change of width and of size."""
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1]]
    return torchvision.models.MobileNetV2(inverted_residual_setting=setting)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "demo": (ResNet20, (1, 1, 28, 28)),
    "resnet": (small_resnet, (1, 3, 32, 32)),
    "mobilenet": (small_mobilenet, (1, 3, 32, 32)),
    "resnext": (small_resnext, (1, 3, 32, 32)),
    "flattened": (TinyNet, (1, 1, 8, 8)),
    "grouped": (lambda: Grouped(), (1, 3, 16, 16)),
}


def one_by_one(graph: bytes) -> Run:
    """Run the graph on each input alone."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([session.run(None, {"input": part[None]})[0] for part in inputs])

    return run


class MethodContract:
    """Tests of one method; those that shipped ones are mixed with are in force as well.

    Attributes:
        legal_for: one of ``NETWORKS`` in which all of its actions are possible.
    """

    method: Method
    legal_for = "flattened"

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = methods.METHODS
        if self.method.kind not in [method.kind for method in known]:
            monkeypatch.setattr(methods, "METHODS", (*known, self.method))

    @property
    def rules(self) -> SpaceRules:
        kinds = dict.fromkeys(("keep", "prune", self.method.kind))
        return SpaceRules(recipe="ort-x86", kinds=tuple(kinds))

    def test_its_actions_are_values_of_its_kind_with_words_of_their_own(self) -> None:
        actions = self.method.actions()
        assert actions
        assert all(action.kind == self.method.kind for action in actions)
        assert all(action.precision == "base" for action in actions)
        assert all(0 < action.amount <= 1 for action in actions)
        words = {methods.describe(action) for action in actions}
        assert len(words) == len(actions) == len(set(actions))
        assert all(word.isprintable() for word in words)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_rows_of_random_candidates_are_those_of_their_exports(self, name: str) -> None:
        """Precision is not in a float graph, so what is compared is float."""
        factory, shape = NETWORKS[name]
        torch.manual_seed(0)
        dense = factory().eval()
        example, rules = torch.randn(shape), self.rules
        before = {key: value.clone() for key, value in dense.state_dict().items()}
        graph = export_onnx(dense, example)
        network = described(dense, example, graph, name=name, rules=rules)
        assert graph_configs(graph) == list(network_configs(network, dense_of(network), rules))
        rng = np.random.default_rng(3)
        for _ in range(2):
            candidate = self.mixed(space.random_candidate(network, rules, rng, int8_share=0.0))
            small = compress(dense, example, network, candidate=candidate, rules=rules)
            graph = export_onnx(small, example)
            rows = network_configs(network, candidate, rules)  # a reader sees no zeros
            assert graph_configs(graph) == [replace(row, sparsity="dense") for row in rows]
            check_outputs(small, example, one_by_one(graph))
        assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())

    def mixed(self, candidate: Candidate) -> Candidate:
        """The candidate with this method in it and, beside it, nothing but pruning."""
        kinds = (KEEP.kind, "prune", self.method.kind)
        return Candidate(actions=tuple(a if a.kind in kinds else KEEP for a in candidate.actions))

    def test_each_of_its_actions_makes_a_network_smaller_that_it_is_legal_for(self) -> None:
        torch.manual_seed(0)
        factory, shape = NETWORKS[self.legal_for]
        dense, example = factory().eval(), torch.randn(shape)
        rules = replace(self.rules, align=1)
        graph = export_onnx(dense, example)
        network = described(dense, example, graph, name=self.legal_for, rules=rules)
        whole = sum(row.macs for row in network_configs(network, dense_of(network), rules))
        for action in self.method.actions():
            candidate = space.uniform(network, action, rules)
            rows = network_configs(network, candidate, rules)
            if action != KEEP:
                assert candidate != dense_of(network)
                assert sum(row.macs for row in rows) < whole

    def test_importing_it_loads_no_framework(self) -> None:
        code = f"import {type(self.method).__module__}, sys; print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests'); {code}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=environment(),
        )
        assert done.stdout.strip() == "False"


dense_of = space.dense_candidate
