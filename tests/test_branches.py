"""Residual blocks: which modules are one, and what a network is without them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from tiny import TinyNet
from torch import Tensor, nn

from hwloop.compress.apply import compress
from hwloop.compress.branches import leave_out, residual_blocks
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.methods import METHODS
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Candidate, Network

DROP = Action(kind="drop")
HALF = Action(kind="prune", amount=0.5)
RULES = SpaceRules(recipe="ort-x86", kinds=("keep", "drop", "prune"))


class Body(nn.Module):
    """What a test makes of two convolutions: ``combine(x, f(x))``."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor], *, c_out: int = 8) -> None:
        super().__init__()
        self.combine = combine
        self.first, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.second(torch.relu(self.first(x))))


class Stem(nn.Module):
    """A body between other layers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 1), body, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.relu(self.stem(x))))


def blocks_of(combine: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, ...]:
    torch.manual_seed(0)
    return residual_blocks(Stem(Body(combine)).eval(), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, f: x + f,
        lambda x, f: torch.relu(x + f),
        lambda x, f: x + torch.sigmoid(f) * f,
        lambda x, f: x.add_(f),
    ],
    ids=["plain", "rectified", "gated", "in place"],
)
def test_a_module_that_adds_to_its_input_can_be_left_out(
    combine: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert blocks_of(combine) == ("body",)


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, f: f,
        lambda x, f: x * torch.sigmoid(f),
        lambda x, f: torch.tanh(x + f),
        lambda x, f: x.flip(3) + f,
    ],
    ids=["no sum", "a product", "another activation", "a moved input"],
)
def test_a_module_that_does_more_cannot(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert blocks_of(combine) == ()


def test_a_block_that_is_used_twice_stays() -> None:
    class Twice(Stem):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(self.body(torch.relu(self.stem(x)))))

    assert residual_blocks(Twice(Body(torch.add)).eval(), torch.randn(1, 3, 8, 8)) == ()


def test_of_nested_blocks_the_inner_ones_are_found() -> None:
    stack = nn.Sequential(Body(torch.add), Body(torch.add))
    found = residual_blocks(Stem(stack).eval(), torch.randn(1, 3, 8, 8))
    assert found == ("body.0", "body.1")


def test_the_values_of_the_example_do_not_matter() -> None:
    """A stored network is described by an input of zeros."""
    torch.manual_seed(0)
    module = Stem(Body(torch.add)).eval()
    for example in (torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.ones(1, 3, 8, 8)):
        assert residual_blocks(module, example) == ("body",)


def test_looking_changes_nothing() -> None:
    torch.manual_seed(0)
    module, example = TinyNet().eval(), torch.randn(2, 1, 8, 8)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        outputs = module(example)
        assert residual_blocks(module, example) == ("block1", "block2")
        assert torch.equal(module(example), outputs)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("factory", "count"),
    [
        (torchvision.models.resnet18, 5),
        (torchvision.models.resnet50, 12),
        (torchvision.models.mobilenet_v2, 10),
        (torchvision.models.efficientnet_b0, 9),
        (torchvision.models.regnet_y_400mf, 12),
        (torchvision.models.vgg11, 0),
    ],
)
def test_blocks_of_known_networks(factory: Callable[[], nn.Module], count: int) -> None:
    """All of a stage but its first, which changes the shape, where it does."""
    assert len(residual_blocks(factory().eval(), torch.randn(1, 3, 64, 64))) == count


def described() -> tuple[nn.Module, Tensor, Network]:
    torch.manual_seed(0)
    dense, example = torchvision.models.resnet50().eval(), torch.randn(1, 3, 64, 64)
    return dense, example, describe(dense, example, export_onnx(dense, example), name="resnet50")


def test_one_group_decides_about_a_block_and_its_other_groups_are_ignored() -> None:
    dense, example, network = described()
    holder = next(i for i, group in enumerate(network.groups) if group.branch == "layer1.1")
    other = next(i for i, group in enumerate(network.groups) if group.name == "layer1.1.conv2")
    assert network.groups[holder].name == "layer1.1.conv1"
    actions = [KEEP] * len(network.groups)
    actions[holder] = DROP
    dropped = Candidate(actions=tuple(actions))
    actions[other] = HALF
    ignored = Candidate(actions=tuple(actions))
    rows = network_configs(network, dropped, RULES)
    assert rows == network_configs(network, ignored, RULES)
    assert len(rows) == len(network.layers) - 3
    for candidate in (dropped, ignored):
        module = compress(dense, example, network, candidate=candidate, rules=RULES)
        assert isinstance(module.get_submodule("layer1.1"), nn.Identity)
        assert module(example).shape == (1, 1000)


def test_a_block_whose_branch_is_nothing_can_be_left_out_without_loss() -> None:
    dense, example, network = described()
    nn.init.zeros_(dense.get_submodule("layer3.2.bn3").get_parameter("weight"))
    nn.init.zeros_(dense.get_submodule("layer3.2.bn3").get_parameter("bias"))
    module = copy.deepcopy(dense)
    leave_out(module, "layer3.2")
    with torch.no_grad():
        assert torch.equal(module(example), dense(example))
    assert network.groups


def test_blocks_go_before_widths() -> None:
    assert [method.kind for method in METHODS] == ["keep", "drop", "prune"]


def test_a_block_is_left_out_once_and_not_in_each_precision() -> None:
    _, _, network = described()
    drop = next(method for method in METHODS if method.kind == "drop")
    group = next(group for group in network.groups if group.branch)
    assert drop.legal(DROP, group, (), RULES)
    assert not drop.legal(Action(kind="drop", precision="int8"), group, (), RULES)
