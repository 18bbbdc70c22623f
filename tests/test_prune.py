"""Structured pruning: which channels go, what is coupled, what is refused."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hwloop.compress.apply import compress
from hwloop.compress.export import export_onnx
from hwloop.compress.model import describe
from hwloop.compress.prune import couplings, prune
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import uniform
from hwloop.errors import CandidateError, UsageError
from hwloop.records import Action

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """Two layers that are added, a depthwise one between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + self.point(torch.relu(self.depthwise(x))))


class Flattened(nn.Module):
    """Two branches, concatenated, then flattened: what torch-pruning gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 24, 1)
        self.last = nn.Linear(40 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.flatten(torch.cat([self.left(x), self.right(x)], 1), 1))


class Heads(nn.Module):
    """Tokens of an image, attention with heads whose size forward computes, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        batch, tokens, width = x.shape

        def heads(part: Tensor) -> Tensor:
            return part.reshape(batch, tokens, 4, width // 4).transpose(1, 2)

        weights = (heads(self.query(x)) @ heads(self.key(x)).transpose(-1, -2)).softmax(-1)
        mixed = (weights @ heads(self.value(x))).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean(1))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no forward without data")


def test_what_an_attention_reshapes_keeps_its_width_and_the_mlp_can_change() -> None:
    dense = Heads().eval()
    network = describe(dense, EXAMPLE, export_onnx(dense, EXAMPLE), name="heads")
    assert {group.name for group in network.groups if group.prunable} == {"up"}
    # Sixteen tokens; the file as exported does not say so, because flatten computes it.
    by_name = {layer.name: layer.config for layer in network.layers}
    assert by_name["query"].in_shape == (16, 32)
    assert by_name["up"].in_shape == (16, 32)
    assert by_name["head"].in_shape == (1, 32)


def test_a_pruned_network_that_cannot_be_traced_is_the_candidates_failure() -> None:
    dense = Heads().eval()
    with pytest.raises(CandidateError, match="do not fit"):
        prune(dense, EXAMPLE, {"query": 16, "up": 32}, scores=Heads().eval())


def test_layers_that_are_added_or_depthwise_are_coupled() -> None:
    found = couplings(
        Residual().eval(),
        EXAMPLE,
        layers=("stem", "depthwise", "point", "head"),
        fixed=("head",),
    )
    by_layer = {layer: item for item in found for layer in item.layers}
    assert by_layer["stem"] is by_layer["point"] is by_layer["depthwise"]
    assert by_layer["stem"].prunable
    assert not by_layer["head"].prunable


def test_the_channels_with_the_smallest_weights_go() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    strong = [1, 2, 5, 6]
    with torch.no_grad():
        module[0].weight.fill_(0.01)
        module[0].weight[strong] = 1.0
        module[1].weight.fill_(0.5)
    kept = module[0].weight[strong].clone()
    prune(module, EXAMPLE, {"0": 4}, scores=module)
    assert module[0].weight.shape == (4, 3, 1, 1)
    assert module[1].weight.shape == (2, 4, 1, 1)
    assert torch.equal(module[0].weight, kept)


def test_a_coupled_group_is_cut_everywhere() -> None:
    module = Residual().eval()
    prune(module, EXAMPLE, {"stem": 8}, scores=Residual().eval())
    assert module.depthwise.groups == module.depthwise.out_channels == 8
    assert module.point.weight.shape == (8, 8, 1, 1)
    assert module(EXAMPLE).shape == (1, 4, 8, 8)


def test_the_dense_network_keeps_its_weights_and_flags() -> None:
    torch.manual_seed(0)
    dense = Residual().eval()
    dense.point.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    flags = [parameter.requires_grad for parameter in dense.parameters()]
    network = describe(dense, EXAMPLE, export_onnx(dense, EXAMPLE), name="residual")
    half, rules = Action(kind="prune", amount=0.5), SpaceRules(recipe="ort-x86")
    chosen = uniform(network, half, rules)
    small = compress(dense, EXAMPLE, network, candidate=chosen, rules=rules)
    assert small.stem.out_channels == 8
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    assert [parameter.requires_grad for parameter in dense.parameters()] == flags
    # What stays is taken over, not made anew.
    rows = {tuple(row.flatten().tolist()) for row in dense.stem.weight}
    assert all(tuple(row.flatten().tolist()) in rows for row in small.stem.weight)


def test_a_dependency_that_does_not_add_up_is_left_alone() -> None:
    found = couplings(
        Flattened().eval(), EXAMPLE, layers=("left", "right", "last"), fixed=("last",)
    )
    assert not any(item.prunable for item in found)


def test_layers_that_no_longer_fit_fail_the_candidate() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    module[0].register_forward_hook(lambda layer, inputs, output: output[:, :3])
    with pytest.raises(CandidateError, match="compress: the pruned layers do not fit"):
        prune(module, EXAMPLE, {}, scores=module)


def test_a_network_that_torch_pruning_miscounts_is_the_users_error() -> None:
    module = torchvision.models.shufflenet_v2_x0_5().eval()  # it divides by zero in a reshape
    with pytest.raises(UsageError, match="cannot be traced: ZeroDivisionError"):
        couplings(module, torch.zeros(1, 3, 32, 32), layers=("conv1.0",), fixed=())


def test_a_network_that_cannot_be_traced_is_the_users_error() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), Branching())
    with pytest.raises(UsageError, match="cannot be traced"):
        couplings(module, EXAMPLE, layers=("0",), fixed=())
