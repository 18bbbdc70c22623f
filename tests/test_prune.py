"""Structured pruning: which channels go, what is coupled, what is refused."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import Tensor, nn
from wirings import answers_as_if_nobody_read_what_went

from hwloop.compress.apply import compress
from hwloop.compress.coupling import UNFIT, couplings
from hwloop.compress.cut import cut, ranking
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import uniform
from hwloop.compress.tracing import tracing_input
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


class Gate(nn.Module):
    """Halves of one layer that are multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(x)
        return self.last(x[:, :16] * torch.sigmoid(x[:, 16:]))


class Branches(nn.Module):
    """Two branches, concatenated twice, then pooled, flattened and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.left, self.right = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.mixed = nn.Conv2d(40, 32, 1)
        self.hidden, self.last = nn.Linear(72 * 4, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.cat([self.mixed(torch.relu(x)), x], 1)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.last(torch.relu(self.hidden(x)))


class Sized(nn.Module):
    """On a large image forward does something else: a second layer joins the first."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        return self.last(y + self.right(x) if x.shape[-1] > 40 else y)


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
    with pytest.raises(CandidateError, match="'query' cannot be cut"):
        cut(dense, EXAMPLE, {"query": 16, "up": 32}, dense=Heads().eval())


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
    cut(module, EXAMPLE, {"0": 4}, dense=module)
    assert module[0].weight.shape == (4, 3, 1, 1)
    assert module[1].weight.shape == (2, 4, 1, 1)
    assert torch.equal(module[0].weight, kept)


def test_a_coupled_group_is_cut_everywhere() -> None:
    module = Residual().eval()
    cut(module, EXAMPLE, {"stem": 8}, dense=Residual().eval())
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


def test_a_dependency_that_torch_pruning_miscounts_is_seen_by_marks() -> None:
    dense = Flattened().eval()
    found = couplings(dense, EXAMPLE, layers=("left", "right", "last"), fixed=("last",))
    assert {item.layers for item in found if item.prunable} == {("left",), ("right",)}
    answers_as_if_nobody_read_what_went(dense, EXAMPLE, found)


def test_layers_that_no_longer_fit_fail_the_candidate() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    module[0].register_forward_hook(lambda layer, inputs, output: output[:, :3])
    with pytest.raises(CandidateError, match="compress: the pruned layers do not fit"):
        cut(module, EXAMPLE, {}, dense=module)


def test_a_network_that_torch_pruning_miscounts_can_change_in_its_parts() -> None:
    module = torchvision.models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256]).eval()
    # torch-pruning divides by zero in a reshape.
    paths = ("conv1.0", "stage2.1.branch2.0", "stage2.1.branch2.5")
    found = couplings(module, torch.zeros(1, 3, 32, 32), layers=paths, fixed=())
    by_layer = {layer: item for item in found for layer in item.layers}
    assert by_layer["stage2.1.branch2.0"].prunable
    assert by_layer["stage2.1.branch2.5"].fixed_by == UNFIT
    assert by_layer["conv1.0"].prunable  # by marks


def test_a_network_that_does_not_run_is_the_users_error() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), Branching())
    with pytest.raises(UsageError, match="cannot be run"):
        couplings(module, EXAMPLE, layers=("0",), fixed=())


@pytest.mark.parametrize("network", [Residual, Branches])
@pytest.mark.parametrize("size", [8, 48])
def test_a_cut_network_answers_as_if_nobody_read_what_went(
    network: type[nn.Module], size: int
) -> None:
    torch.manual_seed(0)
    dense, example = network().eval(), torch.randn(1, 3, size, size)
    weighted = (nn.Conv2d, nn.Linear)
    layers = [path for path, child in dense.named_modules() if isinstance(child, weighted)]
    found = couplings(dense, example, layers=layers, fixed=("head", "last"))
    answers_as_if_nobody_read_what_went(dense, example, found)


def test_an_image_is_traced_at_the_smallest_size_that_tells_the_same() -> None:
    image = torch.zeros(1, 3, 160, 160)
    assert tracing_input(Residual().eval(), image).shape == (1, 3, 32, 32)
    assert tracing_input(Sized().eval(), image).shape == (1, 3, 64, 64)
    module = Sized().eval()
    found = couplings(module, image, layers=("left", "right", "last"), fixed=("last",))
    assert found[0].layers == ("left", "right")
    flat = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 48 * 48, 4)).eval()
    example = torch.zeros(1, 3, 48, 48)
    assert tracing_input(flat, example) is example


def test_halves_of_a_number_of_channels_that_forward_knows_keep_their_width() -> None:
    module = Gate().eval()
    found = couplings(module, EXAMPLE, layers=("both", "last"), fixed=("last",))
    assert not any(item.prunable for item in found)
    with pytest.raises(CandidateError, match="'both' cannot be cut"):
        cut(copy.deepcopy(module), EXAMPLE, {"both": 16}, dense=module)


def test_the_ranking_is_kept_as_long_as_the_weights_are() -> None:
    dense = Residual().eval()
    first = ranking(dense, EXAMPLE, ["stem"])["stem"]
    with torch.no_grad():
        for layer in (dense.stem, dense.depthwise, dense.point):
            layer.weight[first[-1]] += 10.0
    assert ranking(dense, EXAMPLE, ["stem"])["stem"][0] == first[-1]
    reference = weakref.ref(dense)
    del dense, layer
    gc.collect()
    assert reference() is None
