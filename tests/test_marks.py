"""Channels followed by marking them: who reads what, and that the network is left as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import vision_transformer
from wirings import WIRINGS, Bottlenecks

from hwloop.compress import marks
from hwloop.compress.coupled import Coupling
from hwloop.compress.coupling import couplings
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.marks import marked
from hwloop.compress.slices import Side
from hwloop.tasks.explicit import explicit

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Turned(nn.Module):
    """Channels that are read in the opposite order, and some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.last(torch.cat([x.flip(1), x[:, :3]], 1))


class Mixed(nn.Module):
    """A product over channels that no layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.first(x), 1))


class Paired(nn.Module):
    """Channels of which two each are multiplied: one of each half, or neighbours."""

    def __init__(self, together: str) -> None:
        super().__init__()
        self.together = together
        self.first, self.last = nn.Conv2d(3, 256, 1), nn.Conv2d(128, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        halves = x.chunk(2, 1) if self.together == "halves" else (x[:, ::2], x[:, 1::2])
        return self.last(halves[0] * halves[1])


class Passing(nn.Module):
    """Between two layers, some that treat channels alone or in bundles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=32)
        self.grouped, self.narrow = nn.Conv2d(32, 32, 1, groups=8), nn.Conv2d(32, 8, 1)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.grouped(self.depthwise(self.first(x))))
        return self.last(x.mean((2, 3)))


class PassingBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.depthwise, self.last = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(torch.cat([self.first(x), self.second(x)], 1)))


def places(item: Coupling, path: str, side: Side) -> dict[int, list[int]]:
    found = next(each for each in item.slices if (each.path, each.side) == (path, side))
    return {channel: list(own) for channel, own in found.places.items()}


def test_each_channel_is_found_wherever_it_is_read() -> None:
    (item,) = marked(Turned().eval(), EXAMPLE, ["first"])
    assert (item.layers, item.channels, item.bundle) == (("first",), 6, 1)
    assert places(item, "norm", Side.OUTPUTS) == {channel: [channel] for channel in range(6)}
    read = {channel: [5 - channel] for channel in range(6)}
    assert places(item, "last", Side.INPUTS) == read | {0: [5, 6], 1: [4, 7], 2: [3, 8]}


def test_channels_that_are_mixed_are_one() -> None:
    (item,) = marked(Mixed().eval(), EXAMPLE, ["first"])
    assert item.channels == 1


def test_what_only_goes_together_is_one_channel_of_each_part() -> None:
    torch.manual_seed(0)
    found = marked(Bottlenecks().eval(), EXAMPLE, ["both", "inner.2", "more.2", "out"])
    item = next(each for each in found if "both" in each.layers)
    assert item.layers == ("both", "inner.2", "more.2")
    assert item.channels == 32
    assert item.in_parts(1) is None  # the second half has more layers than the first
    half = item.in_parts(2)
    assert half is not None
    assert places(half, "both", Side.OUTPUTS) == {i: [i, i + 16] for i in range(16)}
    assert places(half, "inner.2", Side.OUTPUTS) == {i: [i] for i in range(16)}
    assert places(half, "out", Side.INPUTS) == {i: [i, i + 16, i + 32, i + 48] for i in range(16)}
    assert item.in_parts(5) is None


@pytest.mark.parametrize("name", ["group norm", "grouped", "heads", "chunk", "windows"])
def test_the_network_is_left_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    network = explicit(WIRINGS[name][0]().eval())
    before = network(EXAMPLE)
    paths = [path for path, child in network.named_modules() if isinstance(child, nn.Conv2d)]
    assert marked(network, EXAMPLE, paths)
    assert not any("forward" in vars(child) for child in network.modules())
    assert torch.equal(network(EXAMPLE), before)


def test_it_ends_after_so_many_runs_and_a_wide_layer_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(marks, "MOST_RUNS", 9)
    network = nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    assert [item.layers for item in marked(network, EXAMPLE, ["0", "1"])] == [("1",)]


@pytest.mark.parametrize("together", ["halves", "neighbours"])
def test_what_is_read_together_takes_no_more_runs(
    together: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MOST_RUNS", 100)
    torch.manual_seed(0)
    (item,) = marked(Paired(together).eval(), EXAMPLE, ["first"])
    assert item.channels == 128
    step = 1 if together == "neighbours" else 128
    first = places(item, "first", Side.OUTPUTS)[1]
    assert first[1] - first[0] == step


def test_what_channels_pass_on_their_way_is_cut_with_them() -> None:
    torch.manual_seed(0)
    dense = Passing().eval()
    (item,) = marked(dense, EXAMPLE, ["first"])
    assert item.layers == ("first", "depthwise", "grouped")
    assert (item.channels, item.bundle) == (32, 4)
    found = couplings(dense, EXAMPLE, layers=[*item.layers, "narrow", "last"], fixed=("last",))
    by_layer = {layer: group for group in found for layer in group.layers}
    assert by_layer["depthwise"] is by_layer["grouped"] is by_layer["first"]


def test_what_channels_of_others_pass_as_well_is_left_alone() -> None:
    assert marked(PassingBoth().eval(), EXAMPLE, ["first"]) == []


def test_the_tokens_of_a_vit_can_be_of_any_width() -> None:
    torch.manual_seed(0)
    dense = vision_transformer.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96
    ).eval()
    expected = dense(EXAMPLE)
    network = describe(explicit(dense), EXAMPLE, export_onnx(dense, EXAMPLE), name="vit")
    torch.testing.assert_close(dense(EXAMPLE), expected)
    assert {group.name for group in network.groups if not group.prunable} == {"heads.head"}


def test_a_vit_with_another_stem_and_a_copy_of_it_work() -> None:
    stem = [vision_transformer.ConvStemConfig(out_channels=8, kernel_size=3, stride=4)]
    dense = vision_transformer.VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        conv_stem_configs=stem,
    )
    expected = dense.eval()(EXAMPLE)
    found = copy.deepcopy(explicit(dense))
    torch.testing.assert_close(found(EXAMPLE), expected)
    assert pickle.dumps(found)  # as a whole, which people still do


def test_what_merges_patches_can_be_of_any_width() -> None:
    torch.manual_seed(0)
    swin = explicit(torchvision.models.SwinTransformer([2, 2], 48, [1, 1], [1, 2], [4, 4]).eval())
    layers = [path for path, child in swin.named_modules() if isinstance(child, nn.Linear)]
    found = couplings(swin, torch.zeros(1, 3, 32, 32), layers=layers, fixed=("head",))
    stream = next(item for item in found if "features.1.0.mlp.3" in item.layers)
    assert (stream.prunable, stream.channels) == (True, 48)
