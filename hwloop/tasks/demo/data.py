"""Reading Fashion-MNIST, and the cut that keeps the search images unseen by the network."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwloop.tasks.cut import Bytes

MEAN, STD = 0.2860, 0.3530
IDX_HEADER_BYTES = {"images": 16, "labels": 8}


def read_idx(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Read one part ("train" or "t10k"): images (N, 28, 28) and labels (N,), both uint8."""
    arrays = []
    for kind, dims in (("images", "idx3"), ("labels", "idx1")):
        with gzip.open(folder / f"{part}-{kind}-{dims}-ubyte.gz", "rb") as file:
            arrays.append(np.frombuffer(file.read()[IDX_HEADER_BYTES[kind] :], dtype=np.uint8))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def normalised(images: Bytes) -> Tensor:
    """Bytes (N, 28, 28) to the network's input: float32 (N, 1, 28, 28), mean 0, deviation 1."""
    scaled = torch.from_numpy(images.astype(np.float32) / 255.0)
    return ((scaled - MEAN) / STD).unsqueeze(1)
