"""Channels by plain indices: taken away for several groups at once, and moved about."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwloop.compress.slices import Side, Slice, cut, numbered_by, reorder
from hwloop.errors import CandidateError
from hwloop.tasks.attention import Attention


def all_of(path: str, side: Side, first: int, count: int) -> Slice:
    """A group's channels, side by side from one index on."""
    return Slice(path=path, side=side, places={i: (first + i,) for i in range(count)})


def test_two_groups_that_meet_are_cut_by_the_indices_of_the_dense_network() -> None:
    torch.manual_seed(0)
    left, right, both = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 5, 1)
    module = nn.ModuleDict({"left": left, "norm": nn.BatchNorm2d(10), "right": right, "both": both})
    weight = both.weight.clone()
    cut(
        module,
        [
            ([all_of("left", Side.OUTPUTS, 0, 4), all_of("both", Side.INPUTS, 0, 4)], [1, 2]),
            (
                [
                    all_of("right", Side.OUTPUTS, 0, 6),
                    all_of("both", Side.INPUTS, 4, 6),
                    all_of("norm", Side.OUTPUTS, 4, 6),
                ],
                [0, 5],
            ),
        ],
    )
    assert (left.out_channels, right.out_channels, both.in_channels) == (2, 4, 6)
    assert torch.equal(both.weight, weight[:, [0, 3, 5, 6, 7, 8]])
    norm = module["norm"]
    assert (norm.num_features, len(norm.weight), len(norm.running_var)) == (8, 8, 8)


def test_what_is_not_there_any_more_is_passed_over() -> None:
    module = nn.ModuleDict({"stays": nn.Linear(4, 4)})
    gone = all_of("gone", Side.OUTPUTS, 0, 4)
    cut(module, [([gone, all_of("stays", Side.INPUTS, 0, 4)], [0])])
    assert module["stays"].in_features == 3


def test_part_of_what_goes_together_is_never_cut() -> None:
    module = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(8, 8, 1, groups=4),
            "attention": Attention(nn.MultiheadAttention(8, 2, batch_first=True)),
        }
    )
    for path, side in (("grouped", Side.OUTPUTS), ("attention", Side.HEADS)):
        with pytest.raises(CandidateError, match="part of a"):
            cut(module, [([all_of(path, side, 0, 8)], [0])])
    with pytest.raises(CandidateError, match="no channel"):
        cut(module, [([all_of("attention.projection", Side.INPUTS, 0, 8)], range(8))])


def test_a_group_can_be_numbered_by_any_layer_that_it_writes() -> None:
    first = all_of("first", Side.OUTPUTS, 0, 3)
    turned = Slice(path="turned", side=Side.OUTPUTS, places={0: (2,), 1: (0,), 2: (1,)})
    by_first = numbered_by([first, turned], "first", 3)
    assert by_first == (first, turned)
    by_turned = numbered_by([first, turned], "turned", 3)
    assert by_turned[0].places == {2: (0,), 0: (1,), 1: (2,)}
    assert by_turned[1].places == {2: (2,), 0: (0,), 1: (1,)}


def test_a_number_that_is_for_all_channels_stays_one() -> None:
    module = nn.ModuleDict({"act": nn.PReLU(), "acts": nn.PReLU(6), "norm": nn.GroupNorm(3, 6)})
    cut(module, [([all_of(name, Side.OUTPUTS, 0, 6) for name in module], [2, 3])])
    assert (module["act"].weight.numel(), module["acts"].num_parameters) == (1, 4)
    assert (module["norm"].num_groups, module["norm"].num_channels) == (2, 4)


def test_channels_in_another_order_are_the_same_network() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    before = module(x)
    sides = (("0", Side.OUTPUTS), ("1", Side.OUTPUTS), ("2", Side.INPUTS))
    reorder(module, [all_of(path, side, 0, 5) for path, side in sides], [3, 1, 4, 0, 2])
    assert torch.allclose(module(x), before, atol=1e-6)
    reorder(module, [all_of("0", Side.OUTPUTS, 0, 5)], [1, 0, 2, 3, 4])
    assert not torch.allclose(module(x), before, atol=1e-3)
