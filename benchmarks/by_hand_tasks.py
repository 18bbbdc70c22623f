"""The data of by_hand.py: the demo's images at two sizes, and made ones whose blob is located."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.task import ClassificationTask, Task
from hwloop.tasks.load import load_task
from hwloop.tasks.splits import TensorSplit

SPLITS = ("train", "search", "test")
BLOBS = {"train": 8000, "search": 4000, "test": 4000}
BLOB_SIDE = 32


class InMemory(Task):
    """A task whose splits are made at once."""

    _splits: dict[str, TensorSplit]

    def example(self) -> Tensor:
        return self.search().batch([0])[0]

    def train(self) -> TensorSplit:
        return self._splits["train"]

    def search(self) -> TensorSplit:
        return self._splits["search"]

    def test(self) -> TensorSplit:
        return self._splits["test"]


class Fashion(InMemory, ClassificationTask):
    """The demo's images (28 pixels) at another size: padded to 32, or interpolated.

    Args:
        side: height and width in pixels.
    """

    def __init__(self, side: int) -> None:
        self.name = f"fashion-{side}"
        demo = load_task("demo")
        self._splits = {name: _resized(getattr(demo, name)(), side) for name in SPLITS}


def _resized(split: TensorSplit, side: int) -> TensorSplit:
    inputs, targets = split.batch(range(len(split)))
    margin = (side - inputs.shape[-1]) // 2
    if margin <= 2:
        value = float(inputs.min())
        return TensorSplit(nn.functional.pad(inputs, (margin,) * 4, value=value), targets)
    return TensorSplit(nn.functional.interpolate(inputs, size=(side, side)), targets)


class Blobs(InMemory):
    """Where a blob lies in noise, and how large it is: three numbers in [0, 1], scored by RMSE."""

    name = "blobs"
    metric_name = "RMSE"
    higher_is_better = False

    def __init__(self) -> None:
        self._splits = {name: _blobs(BLOBS[name], seed) for seed, name in enumerate(SPLITS)}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets)

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return math.sqrt(float(((outputs - targets) ** 2).mean()))


def _blobs(count: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 3, generator=generator)
    x, y, size = (column[:, None, None] for column in targets.unbind(1))
    line = (torch.arange(BLOB_SIDE) + 0.5) / BLOB_SIDE
    distance = ((line[None, None, :] - x) ** 2 + (line[None, :, None] - y) ** 2).sqrt()
    blob = torch.sigmoid((0.05 + 0.2 * size - distance) * 40)
    noise = torch.randn(count, BLOB_SIDE, BLOB_SIDE, generator=generator)
    return TensorSplit((blob + 0.7 * noise)[:, None], targets)
