"""CIFAR-10 in its binary version: 42,000 training, 8,000 search and 10,000 test images."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwloop.errors import EnvironmentProblem, UsageError
from hwloop.tasks.cut import CLASSES, SEED, Bytes, search_cut
from hwloop.tasks.download import cache_folder, fetch
from hwloop.tasks.protocol import ClassificationTask
from hwloop.tasks.splits import TensorSplit

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
SIZE_BYTES = 170_052_171
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
FILES = TRAIN_FILES + TEST_FILES
RECORD_BYTES = 1 + 3 * 32 * 32
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)


class Cifar10Task(ClassificationTask):
    """Images (N, 3, 32, 32) of ten classes, normalised by the training set's mean and deviation.

    Args:
        data: folder with the six .bin files, or the one that holds cifar-10-batches-bin; by
            default they are downloaded (170 MB) into the cache.
    """

    name = "cifar10"

    def __init__(self, data: Path | str | None = None) -> None:
        folder = _downloaded() if data is None else _find(Path(data))
        images, labels = _read(folder, TRAIN_FILES)
        search, rest = search_cut(labels, np.random.default_rng(SEED), where=folder)
        self._train = _split(images[rest], labels[rest], names=[f"train {i}" for i in rest])
        self._search = _split(images[search], labels[search], names=[f"train {i}" for i in search])
        images, labels = _read(folder, TEST_FILES)
        self._test = _split(images, labels, names=[f"test {i}" for i in range(len(labels))])

    def example(self) -> Tensor:
        return self._search.batch([0])[0]

    def train(self) -> TensorSplit:
        return self._train

    def search(self) -> TensorSplit:
        return self._search

    def test(self) -> TensorSplit:
        return self._test


def _split(images: Bytes, labels: Bytes, *, names: list[str]) -> TensorSplit:
    """Named by position: the set is known to repeat a few images, and its cut is by position."""
    targets = torch.from_numpy(labels.astype(np.int64))
    return TensorSplit(torch.from_numpy(images), targets, transform=_normalised, names=names)


def _normalised(images: Tensor) -> Tensor:
    return (images.float() / 255.0 - MEAN) / STD


def _find(data: Path) -> Path:
    for folder in (data, data / "cifar-10-batches-bin"):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise UsageError(
        f"{data} does not hold {', '.join(FILES)}",
        f"give the folder of the binary version ({URL}), or leave --data out to download it",
    )


def _read(folder: Path, names: tuple[str, ...]) -> tuple[Bytes, Bytes]:
    """Records of one label byte and 3,072 pixel bytes, channel by channel."""
    parts = []
    for name in names:
        content = np.fromfile(folder / name, dtype=np.uint8)
        if len(content) == 0 or len(content) % RECORD_BYTES:
            raise UsageError(
                f"{folder / name} is {len(content)} bytes long, not a multiple of {RECORD_BYTES}",
                f"it is damaged: download {URL} anew",
            )
        parts.append(content.reshape(-1, RECORD_BYTES))
    records = np.concatenate(parts)
    if records[:, 0].max() >= CLASSES:
        raise UsageError(
            f"{folder} has a label {records[:, 0].max()}, but CIFAR-10 has the labels 0 to 9",
            f"download {URL} anew",
        )
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].copy()


def _downloaded() -> Path:
    folder = cache_folder("cifar10")
    if not all((folder / name).is_file() for name in FILES):
        archive = folder / "cifar-10-binary.tar.gz"
        if not archive.is_file():
            fetch(URL, archive, md5=MD5, size_bytes=SIZE_BYTES)
        extract(archive, folder)
        archive.unlink()
    return folder


def extract(archive: Path, folder: Path) -> None:
    """Take the six files out of the archive, by base name: its paths and links are not followed.

    Raises:
        EnvironmentProblem: the archive is damaged or lacks one of them.
    """
    missing = set(FILES)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                content = tar.extractfile(member) if member.isreg() and name in missing else None
                if content is None:
                    continue
                partial = folder / f".{name}.partial"
                partial.write_bytes(content.read())
                os.replace(partial, folder / name)
                missing.discard(name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise EnvironmentProblem(
            f"cannot unpack {archive}: {error}", f"delete {archive} and repeat the command"
        ) from error
    if missing:
        raise EnvironmentProblem(
            f"{archive} lacks {', '.join(sorted(missing))}", f"delete {archive} and repeat"
        )
