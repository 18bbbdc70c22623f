"""Setting the search split aside where a data set comes with training and test data only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwloop.errors import UsageError

SEED = 20
"""Of every cut that is ours: the search images stay those that the bundled network has not seen."""

CLASSES = 10
SEARCH_COUNT = 8_000
LARGEST_SHARE = 6  # of a small data set or class, at most one in six

Bytes = NDArray[np.uint8]


def stratified(labels: Bytes, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sorted indices of ``count`` images with equally many of each class."""
    per_class = count // CLASSES
    chosen = [
        rng.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in range(CLASSES)
    ]
    return np.sort(np.concatenate(chosen))


def search_cut(
    labels: Bytes, rng: np.random.Generator, *, where: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (search, rest) of a data set of ten classes: 8,000 images, as many of each class.

    Args:
        labels: (N,), each below 10.
        where: the data's folder, for the message.

    Raises:
        UsageError: a class has too few images, as in a damaged or incomplete data set.
    """
    count = min(SEARCH_COUNT, len(labels) // LARGEST_SHARE)
    smallest = int(np.bincount(labels, minlength=CLASSES).min())
    if count < CLASSES or smallest <= count // CLASSES:
        raise UsageError(
            f"{where} has {len(labels)} training images and only {smallest} of one class",
            "give the complete data set, or leave --data out to download it",
        )
    search = stratified(labels, count, rng)
    return search, np.setdiff1d(np.arange(len(labels)), search)
