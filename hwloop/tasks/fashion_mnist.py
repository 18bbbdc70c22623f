"""All of Fashion-MNIST with the bundled network: 52,000 training, 8,000 search, 10,000 test."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from hwloop.errors import UsageError
from hwloop.tasks.cut import SEED, Bytes, search_cut
from hwloop.tasks.demo.data import read_idx
from hwloop.tasks.demo.network import ResNet20
from hwloop.tasks.demo.task import byte_split, trained_network
from hwloop.tasks.download import cache_folder, fetch
from hwloop.tasks.protocol import ClassificationTask
from hwloop.tasks.splits import TensorSplit

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SIZE_BYTES = {
    "train-images-idx3-ubyte.gz": 26_421_880,
    "train-labels-idx1-ubyte.gz": 29_515,
    "t10k-images-idx3-ubyte.gz": 4_422_102,
    "t10k-labels-idx1-ubyte.gz": 5_148,
}


class FashionMnistTask(ClassificationTask):
    """Images (N, 1, 28, 28) of ten classes.

    The search images are the ones that :mod:`hwloop.tasks.demo.train` set aside, so the bundled
    network has seen none of them.

    Args:
        data: folder with the four IDX files; by default Debian's, or else a download.
    """

    name = "fashion-mnist"

    def __init__(self, data: Path | str | None = None) -> None:
        folder = _find(None if data is None else Path(data))
        images, labels = _read(folder, "train")
        search, rest = search_cut(labels, np.random.default_rng(SEED), where=folder)
        self._train = byte_split(images[rest], labels[rest])
        self._search = byte_split(images[search], labels[search])
        self._test = byte_split(*_read(folder, "t10k"))

    def model(self) -> ResNet20:
        return trained_network()

    def example(self) -> Tensor:
        return self._search.batch([0])[0]

    def train(self) -> TensorSplit:
        return self._train

    def search(self) -> TensorSplit:
        return self._search

    def test(self) -> TensorSplit:
        return self._test


def _find(data: Path | None) -> Path:
    """The folder that holds the files: the user's, Debian's or, after a download, the cache."""
    if data is not None:
        for folder in (data, data / "FashionMNIST" / "raw"):  # the second is torchvision's layout
            if all((folder / name).is_file() for name in MD5):
                return folder
        raise UsageError(
            f"{data} does not hold {', '.join(MD5)}",
            "give the folder of the four files, or leave --data out to download them",
        )
    if all((DEBIAN_FOLDER / name).is_file() for name in MD5):
        return DEBIAN_FOLDER
    return _downloaded()


def _downloaded() -> Path:
    folder = cache_folder("fashion-mnist")
    for name, md5 in MD5.items():
        if not (folder / name).is_file():
            fetch(URL + name, folder / name, md5=md5, size_bytes=SIZE_BYTES[name])
    return folder


def _read(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    try:
        images, labels = read_idx(folder, part)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(
            f"cannot read the {part} files in {folder}: {error}",
            "download them anew, or leave --data out",
        ) from error
    return images, labels
