"""Residual blocks: which modules are one, and what a network is without them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision
from tiny import TinyNet
from torch import Tensor, nn

from hwloop.compress import space
from hwloop.compress.apply import compress, quantized
from hwloop.compress.branches import leave_out, residual_blocks, with_branches
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.methods import METHODS
from hwloop.compress.rows import network_configs, settled
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Candidate, Group, Network
from hwloop.runtimes.known import writing

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


class LooksInto(Stem):
    """Its code needs a layer of the block."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.relu(self.stem(x))) * self.body.first.out_channels)


class OtherName(Stem):
    """Its code has the block from a list that is no part of the network."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.bodies = [self.body]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bodies[0](torch.relu(self.stem(x))))


class InPlace(Stem):
    """Behind the block it writes into what the block was given."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.sigmoid(self.stem(x)))
        return self.last(x.mul_(2.0))


class Shared(Stem):
    """A layer of the block is used outside, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body.first(self.body(torch.relu(self.stem(x)))))


@pytest.mark.parametrize("kind", [LooksInto, OtherName, InPlace, Shared])
def test_a_block_that_the_network_does_not_work_without_stays(kind: type[Stem]) -> None:
    assert residual_blocks(kind(Body(torch.add)).eval(), torch.randn(1, 3, 8, 8)) == ()


def test_a_network_that_is_one_block_keeps_it() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body(torch.add)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    assert residual_blocks(Around().eval(), torch.randn(1, 8, 8, 8)) == ()


def test_a_block_that_zeros_are_no_weights_for_stays() -> None:
    def inverted(x: Tensor, f: Tensor) -> Tensor:
        if float(f.abs().max()) == 0:
            raise ValueError("singular")
        return x + f

    assert blocks_of(inverted) == ()


class Residual(nn.Module):
    """On features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


def test_without_a_stem_nothing_holds_a_block() -> None:
    """The sums have the width of the network's input, which no layer decides."""
    torch.manual_seed(0)
    dense = nn.Sequential(Residual(), Residual(), nn.Linear(16, 4)).eval()
    example = torch.randn(1, 16)
    assert residual_blocks(dense, example) == ("0", "1")
    network = describe(dense, example, export_onnx(dense, example), name="features")
    assert [group.branch for group in network.groups if group.branch] == ["0", "1"]
    assert {group.name for group in network.groups if group.prunable} == {"0.fc1", "1.fc1"}


def test_a_block_with_the_first_layer_of_a_group_that_goes_on_stays() -> None:
    def group(*layers: str) -> Group:
        return Group(name=layers[0], layers=layers, channels=16, prunable=True, block="")

    groups = (group("a.1", "b.2"), group("a.2"), group("b.1"))
    found = with_branches(groups, ("a", "b"))
    assert [item.branch for item in found] == ["", "", "b"]


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


@functools.cache
def described() -> tuple[nn.Module, Tensor, Network]:
    """Not to be changed: there is one of it."""
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
    assert settled(network, ignored.actions) == dropped


def test_a_block_whose_branch_is_nothing_can_be_left_out_without_loss() -> None:
    dense, example, _ = described()
    dense = copy.deepcopy(dense)
    nn.init.zeros_(dense.get_submodule("layer3.2.bn3").get_parameter("weight"))
    nn.init.zeros_(dense.get_submodule("layer3.2.bn3").get_parameter("bias"))
    module = copy.deepcopy(dense)
    leave_out(module, "layer3.2")
    with torch.no_grad():
        assert torch.equal(module(example), dense(example))


def test_int8_within_blocks_that_are_left_out_alone_quantizes_nothing() -> None:
    dense, example, network = described()
    holder = next(i for i, group in enumerate(network.groups) if group.branch == "layer1.1")
    other = next(i for i, group in enumerate(network.groups) if group.name == "layer1.1.conv2")
    actions = [KEEP] * len(network.groups)
    actions[holder], actions[other] = DROP, Action(precision="int8")
    candidate = Candidate(actions=tuple(actions))
    module = compress(dense, example, network, candidate=candidate, rules=RULES)
    graph = export_onnx(module, example)
    found = quantized(
        module,
        example,
        graph,
        network=network,
        candidate=candidate,
        calibration=example.numpy(),
        runtime=writing("ort-x86", "avx2"),
    )
    assert found == graph


def test_blocks_go_before_widths() -> None:
    assert [method.kind for method in METHODS] == [
        "keep",
        "resize",
        "drop",
        "prune",
        "lowrank",
        "sparse",
    ]


def test_a_block_is_left_out_once_and_not_in_each_precision() -> None:
    _, _, network = described()
    drop = next(method for method in METHODS if method.kind == "drop")
    group = next(group for group in network.groups if group.branch)
    assert drop.legal(DROP, group, (), RULES)
    assert not drop.legal(Action(kind="drop", precision="int8"), group, (), RULES)


def test_half_of_the_blocks_are_left_out_from_the_last_on_and_the_rest_is_int8() -> None:
    _, _, network = described()
    found = space.shallow(network, Action(precision="int8"), RULES, every=2)
    blocks = [group.branch for group in network.groups if group.branch]
    gone = [
        group.branch
        for group, action in zip(network.groups, found.actions, strict=True)
        if action == DROP
    ]
    assert gone == blocks[::-1][::2][::-1]
    assert any(action.precision == "int8" for action in found.actions)


@pytest.mark.parametrize("changes", [{"kinds": ("keep", "prune")}, {"precisions": ("base",)}])
def test_where_blocks_or_int8_are_not_possible_half_of_the_blocks_is_the_dense_network(
    changes: dict[str, tuple[str, ...]],
) -> None:
    _, _, network = described()
    rules = replace(RULES, **changes)
    found = space.shallow(network, Action(precision="int8"), rules, every=2)
    assert found == space.dense_candidate(network)
