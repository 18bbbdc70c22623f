"""The task of the stored run: every value is made of integers, so that each machine has the same.

It names nothing of hwloop but ``hwloop.task``, as a user's own task does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwloop.task import ClassificationTask, TensorSplit

CLASSES = 4
CHANNELS = 16


def numbers(count: int, seed: int) -> Tensor:
    """Exact multiples of 1/256 in [-1, 1): a linear congruential generator."""
    found, state = [], seed
    for _ in range(count):
        state = (1103515245 * state + 12345) % (1 << 31)
        found.append((state >> 12) % 512 - 256)
    return torch.tensor(found, dtype=torch.float32) / 256


class GoldenNet(nn.Module):
    """Images (N, 1, 8, 8) in, logits (N, 4) out: a residual block, a free layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.middle = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * CHANNELS)
        self.back = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(4)
        self.fc = nn.Linear(CHANNELS * 4, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(x + self.back(self.relu(self.norm(self.middle(x)))))
        return torch.flatten(self.pool(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x))
        return out


class GoldenTask(ClassificationTask):
    """Four patterns under a little noise; the weights are made, not trained."""

    name = "golden"

    def model(self) -> nn.Module:
        net = GoldenNet()
        with torch.no_grad():
            for seed, value in enumerate(net.parameters()):
                scale = 1 / 4 if value.dim() > 1 else 1 / 16
                value.copy_(numbers(value.numel(), seed + 1).reshape(value.shape) * scale)
            # Each class is known by how its pattern differs from the others; rounded, because the
            # last bits of a convolution are the machine's own.
            found = net.eval().features(patterns())
            centre = found.mean(dim=0)
            weight = torch.round(64 * (found - centre)) / 64
            net.fc.weight.copy_(weight)
            net.fc.bias.copy_(torch.round(-64 * (weight @ (found.mean(dim=0)))) / 64)
        return net

    def example(self) -> Tensor:
        return self.search().batch([0])[0]

    def train(self) -> TensorSplit:
        return split(256, 101)

    def search(self) -> TensorSplit:
        return split(256, 102)

    def test(self) -> TensorSplit:
        return split(256, 103)


def patterns() -> Tensor:
    return numbers(CLASSES * 64, 7).reshape(CLASSES, 1, 8, 8)


def split(count: int, seed: int) -> TensorSplit:
    labels = torch.arange(count) % CLASSES
    noise = numbers(count * 64, seed).reshape(count, 1, 8, 8)
    return TensorSplit(patterns()[labels] + noise, labels)
