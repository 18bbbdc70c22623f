"""The random inputs of checks and trials are such as a network takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwloop.compress.describe import describe
from hwloop.compress.export import check_exported, export_onnx
from hwloop.compress.noise import noise_like

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("example", [IMAGE, torch.zeros(1, 4), torch.full((2, 5), 3.0)])
def test_it_is_the_same_each_time_and_never_all_alike(example: Tensor) -> None:
    found = noise_like(example, times=4)
    assert found.shape == (4 * len(example), *example.shape[1:])
    assert torch.equal(found, noise_like(example, times=4))
    assert found.unique().numel() == found.numel()


def test_what_is_never_negative_stays_so_and_numbers_of_words_stay_those() -> None:
    assert (noise_like(IMAGE) < 0).any()
    assert (noise_like(IMAGE.abs(), times=9) >= 0).all()
    words = torch.tensor([[3.0, 999.0, 0.0, 17.0]])
    found = noise_like(words, times=9)
    assert set(found.unique().tolist()) == set(words.unique().tolist())


class Words(nn.Module):
    """Numbers of words, as floats, and what is looked up for each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide = nn.Embedding(1000, 32), nn.Linear(32, 64)
        self.narrow, self.last = nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.relu(self.wide(self.table(x.long())))
        return self.last(torch.relu(self.narrow(found)).mean(1))


class Loudness(nn.Module):
    """The logarithm of a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU())
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.log(x + 1e-6)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "example", "free"),
    [
        (Words, torch.tensor([[3.0, 999.0, 0.0, 17.0, 500.0, 1.0]]), {"wide", "narrow"}),
        (Loudness, torch.rand(1, 1, 12, 12) * 40, {"body.0", "body.2"}),
    ],
)
def test_networks_whose_inputs_mean_something_are_taken(
    network: type[nn.Module], example: Tensor, free: set[str]
) -> None:
    dense = network().eval()
    graph = export_onnx(dense, example)
    check_exported(dense, example, graph, name="it")
    groups = describe(dense, example, graph, name="it").groups
    assert free <= {group.name for group in groups if group.prunable}
