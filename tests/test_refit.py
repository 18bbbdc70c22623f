"""Closed forms around a cut: what layers are given, which channels go, what makes up for them."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwloop.compress.apply import compress
from hwloop.compress.cut import cut, ranking
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.moments import MOST_FEATURES, Moments, input_moments
from hwloop.compress.recover import RECALIBRATED, Recovery
from hwloop.compress.refit import refit
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import uniform
from hwloop.records import Action
from hwloop.tasks.load import load_model, load_task


class Plain(nn.Module):
    """Two convolutions and a linear layer, without norms."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 8, 3)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


class Joined(nn.Module):
    """Two branches that one layer reads, and a map that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 1)
        self.both = nn.Conv2d(20, 6, 1)
        self.last = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(self.both(torch.tanh(x)).flatten(1))


def inputs(count: int = 64, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_moments_are_those_of_what_each_layer_is_given() -> None:
    module, x = Plain().eval(), inputs(8)
    found = input_moments(module, x.split(4))
    with torch.no_grad():
        given = torch.relu(module.first(x)).movedim(1, -1).reshape(-1, 12).double()
        pooled = torch.relu(module.second(torch.relu(module.first(x)))).mean((2, 3)).double()
    assert found.keys() == {"first", "second", "last"}
    for rows, moments in ((given, found["second"]), (pooled, found["last"])):
        assert torch.allclose(moments.mean, rows.mean(0))
        assert torch.allclose(moments.covariance, torch.cov(rows.T, correction=0))


def test_a_linear_layer_on_a_map_is_given_its_last_dimension() -> None:
    x = torch.randn(2, 5, 3, 5)  # as high as it has channels
    found = input_moments(nn.Linear(5, 2).eval(), [x])[""]
    assert torch.allclose(found.mean, x.reshape(-1, 5).double().mean(0))


def test_layers_too_wide_grouped_or_given_no_number_have_no_moments() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(MOST_FEATURES + 1, 2)).eval()
    assert not input_moments(wide, [torch.zeros(2, MOST_FEATURES + 1)])
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 4, 1)).eval()
    assert input_moments(grouped, [torch.randn(2, 4, 3, 3)]).keys() == {"1"}
    infinite = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    nn.init.constant_(infinite[0].bias, torch.inf)
    assert input_moments(infinite, [torch.randn(2, 4, 3, 3)]).keys() == {"0"}


def test_a_copy_of_a_channel_goes_first_and_nothing_is_lost_with_it() -> None:
    dense = Plain().eval()
    with torch.no_grad():
        for values in (dense.first.weight, dense.first.bias):
            values[7] = values[2]
    moments = input_moments(dense, inputs().split(32))
    order = ranking(dense, inputs(1), ["first"], moments)["first"]
    assert order[-1] in (2, 7)
    small = copy.deepcopy(dense)
    cut(small, inputs(1), {"first": 11}, dense=dense, moments=moments)
    with torch.no_grad():
        expected, found = dense(inputs(8)), small(inputs(8))
    merely = copy.deepcopy(dense)
    cut(merely, inputs(1), {"first": 11}, dense=dense)
    with torch.no_grad():
        otherwise = merely(inputs(8))
    assert float((found - expected).abs().max()) < 0.1 * float((otherwise - expected).abs().max())


def test_a_channel_that_says_nothing_goes_first_also_when_its_weights_are_large() -> None:
    dense = Plain().eval()
    with torch.no_grad():
        dense.first.bias[5] = -1000.0  # never above zero
        dense.second.weight[:, 5] *= 4
    moments = input_moments(dense, [inputs()])
    assert ranking(dense, inputs(1), ["first"], moments)["first"][-1] == 5
    assert ranking(dense, inputs(1), ["first"])["first"][0] == 5


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_no_weights_say_more_of_the_output_than_the_fitted_ones(normed: bool, biased: bool) -> None:
    mixing = torch.randn(10, 10, dtype=torch.float64)
    rows = torch.randn(4000, 10, dtype=torch.float64) @ mixing + 3.0
    moments = Moments(mean=rows.mean(0), covariance=torch.cov(rows.T, correction=0))
    layer = nn.Linear(10, 5, bias=biased)
    before = copy.deepcopy(layer)
    refit(layer, moments, [1, 4, 8], normed=normed)
    stays = [0, 2, 3, 5, 6, 7, 9]

    def error(weight: Tensor, bias: Tensor | None) -> float:
        lost = rows @ before.weight.double().T - rows[:, stays] @ weight.double()[:, stays].T
        if bias is not None:
            lost = lost + before.bias.double() - bias.double()
        if normed or biased:  # a norm, or the bias itself, makes up for a constant
            lost = lost - lost.mean(0) if normed and not biased else lost
        return float(lost.pow(2).mean().detach())

    design = rows[:, stays]
    if biased or normed:
        design = torch.cat([design, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    wanted = rows @ before.weight.double().T
    solution = torch.linalg.lstsq(design, wanted).solution
    best = float((wanted - design @ solution).pow(2).mean().detach())
    found = error(layer.weight, layer.bias)
    assert best <= found < 1.1 * best
    assert found < 0.7 * error(before.weight, before.bias)
    assert torch.equal(layer.weight[:, [1, 4, 8]], before.weight[:, [1, 4, 8]])


def test_a_layer_that_reads_two_groups_is_fitted_once_for_both() -> None:
    dense, x = Joined().eval(), inputs(64, side=4)
    moments = input_moments(dense, [x])
    small = copy.deepcopy(dense)
    cut(small, x[:1], {"left": 4, "right": 6}, dense=dense, moments=moments)
    orders = ranking(dense, x[:1], ["left", "right"], moments)
    gone = sorted([*orders["left"][4:], *(8 + channel for channel in orders["right"][6:])])
    expected = copy.deepcopy(dense.both)
    refit(expected, moments["both"], gone, normed=False)
    stays = [index for index in range(20) if index not in gone]
    assert torch.equal(small.both.weight, expected.weight[:, stays])
    assert torch.equal(small.both.bias, expected.bias)


def test_the_positions_of_a_flattened_channel_go_together() -> None:
    dense, x = Joined().eval(), inputs(64, side=4)
    moments = input_moments(dense, [x])
    assert moments["last"].mean.shape == (96,)
    losses = {}
    for kept in itertools.combinations(range(6), 5):
        small = copy.deepcopy(dense)
        gone = next(channel for channel in range(6) if channel not in kept)
        removed = range(gone * 16, gone * 16 + 16)
        refit(small.last, moments["last"], removed, normed=False)
        with torch.no_grad():
            small.last.weight[:, removed] = 0.0
            losses[gone] = float((small(x) - dense(x)).pow(2).mean())
    order = ranking(dense, x[:1], ["both"], moments)["both"]
    assert sorted(losses, key=losses.__getitem__).index(order[-1]) <= 1


def test_the_demo_at_half_its_widths_keeps_its_level_without_a_training_step() -> None:
    task = load_task("demo")
    dense = load_model(task, None)
    recovery = Recovery(task, dense, seed=0)
    example, rules = task.example(), SpaceRules(align=8, recipe="ort-x86")
    network = describe(dense, example, export_onnx(dense, example), name="demo")
    half = uniform(network, Action(kind="prune", amount=0.5), rules)
    moments = input_moments(dense, recovery.recalibration_inputs())
    images, labels = task.search().batch(range(1000))

    def accuracy(given: dict[str, Moments] | None) -> float:
        module = compress(dense, example, network, candidate=half, rules=rules, moments=given)
        recovery.recover(module, RECALIBRATED)
        with torch.no_grad():
            return float(np.mean((module(images).argmax(1) == labels).numpy()))

    assert accuracy(moments) > 0.82  # of 0.93; by the weights alone about 0.55
    assert accuracy(None) < 0.7
