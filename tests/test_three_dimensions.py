"""Three dimensions: a pool across channels is passed over, a convolution refused by its name."""

from __future__ import annotations

import pytest
import torch
from method_contract import one_by_one
from torch import Tensor, nn

from hwloop.compress import space
from hwloop.compress.apply import compress
from hwloop.compress.describe import describe
from hwloop.compress.export import check_outputs, export_onnx
from hwloop.compress.rules import SpaceRules
from hwloop.errors import UsageError
from hwloop.records import Action, Network

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
RULES = SpaceRules(recipe="ort-x86", align=8)


def described(dense: nn.Module) -> Network:
    return describe(dense, EXAMPLE, export_onnx(dense, EXAMPLE), name="it")


def test_a_norm_across_channels_pools_them_and_stops_nobody() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.Conv2d(32, 8, 1)]
    dense = nn.Sequential(*layers).eval()
    network = described(dense)
    assert "avgpool" not in {layer.config.op for layer in network.layers}
    half = space.uniform(network, Action(kind="prune", amount=0.5), RULES)
    small = compress(dense, EXAMPLE, network, candidate=half, rules=RULES)
    assert small.get_submodule("0").get_parameter("weight").shape[0] == 16
    check_outputs(small, EXAMPLE, one_by_one(export_onnx(small, EXAMPLE)))


def test_a_convolution_in_three_dimensions_is_refused_by_its_name() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv3d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.deep(x[:, None]).flatten(1)
            return found

    with pytest.raises(UsageError, match="deep/Conv is a convolution in three dimensions"):
        described(Deep().eval())
