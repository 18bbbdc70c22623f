"""The bundled demo: a trained ResNet-20 and a subset of Fashion-MNIST; nothing is downloaded."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hwloop.tasks.cut import Bytes
from hwloop.tasks.demo.data import normalised
from hwloop.tasks.demo.network import ResNet20
from hwloop.tasks.protocol import ClassificationTask
from hwloop.tasks.splits import TensorSplit

FOLDER = Path(__file__).parent


class DemoTask(ClassificationTask):
    """12,000 training, 8,000 search and 10,000 test images (N, 1, 28, 28) of ten classes."""

    name = "demo"

    def model(self) -> ResNet20:
        return trained_network()

    def example(self) -> Tensor:
        return self.search().batch([0])[0]

    def train(self) -> TensorSplit:
        return _bundled("train")

    def search(self) -> TensorSplit:
        return _bundled("search")

    def test(self) -> TensorSplit:
        return _bundled("test")


def trained_network() -> ResNet20:
    """The bundled network with its bundled weights, in eval mode."""
    network = ResNet20()
    network.load_state_dict(load_file(FOLDER / "weights.safetensors"))
    return network.eval()


def byte_split(images: Bytes, labels: Bytes) -> TensorSplit:
    """Images (N, 28, 28) stay bytes in memory; each batch is normalised as in training."""
    return TensorSplit(
        torch.tensor(images),  # a copy: what was read from a file is read-only
        torch.from_numpy(labels.astype(np.int64)),
        transform=lambda batch: normalised(batch.numpy()),
    )


@functools.cache
def _bundled(part: str) -> TensorSplit:
    with np.load(FOLDER / "data.npz", allow_pickle=False) as arrays:
        return byte_split(arrays[f"{part}_images"], arrays[f"{part}_labels"])
