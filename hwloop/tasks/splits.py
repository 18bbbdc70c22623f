"""Splits: indexed batches of inputs and targets, from memory or from a folder of images."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwloop.errors import EnvironmentProblem, UsageError
from hwloop.tasks.sources import code_digest, tensor_bytes

Indices: TypeAlias = Sequence[int] | NDArray[np.int64]
# ImageNet evaluation: 224 pixels are cut from the middle of an image whose shorter side is 256.
RESIZE_OVER_CROP = 256 / 224
# How much of a data set is read to know it again; beyond, a part that is evenly spread over it.
PROBED = 64
DRAWS = 4
MOST_SAMPLES = 50_000
MOST_BYTES = 256 << 20
SAMPLED = 2_000
MOST_FILES = 2_000
HASHED_AT_ONCE = 4_096


class Split(Protocol):
    """One part of a task's data."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Inputs, float (N, ...), and targets, (N, ...), of the samples at ``indices``."""

    def digests(self) -> frozenset[str]:
        """An identity of each sample, equal for equal samples: splits must not share one."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a split holds, in its order.

    Attributes:
        digest: SHA-256, in hexadecimal.
        read: samples whose values are in it.
        of: samples of the split.
        repeatable: False where the same indices gave other values the second time.
    """

    digest: str
    read: int
    of: int
    repeatable: bool = True


def content_of(split: Split) -> Content:
    """The content of any split: its own ``content()``, or else what ``batch()`` gives.

    A split that draws random augmentations is known by its targets and identities alone.
    """
    probe = spread(len(split), PROBED)
    draws = _draws(split)
    first, repeatable = draws[0], len(set(draws)) == 1
    # Ours knows what our batch() reads; where a subclass reads something else, it does not.
    unchanged = type(split).batch in (TensorSplit.batch, FolderSplit.batch)
    if isinstance(split, (TensorSplit, FolderSplit)) and unchanged:
        own = split.content()
        parts = [own.digest, first] if repeatable else [own.digest]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        return replace(own, digest=digest, repeatable=repeatable)
    return _sampled(split, probe) if repeatable else _unrepeatable(split, probe)


def repeats(split: Split) -> bool:
    """Whether a sample is the same whenever it is read."""
    return len(set(_draws(split))) == 1


def _draws(split: Split) -> list[bytes]:
    """Digests of a few samples that are read again and again.

    Each time under another seed, so that it does not depend on luck whether a draw is noticed.
    """
    probe, digests = spread(len(split), PROBED), []
    for seed in range(DRAWS):
        with seeded(seed):
            digests.append(_batch_digest(split, probe))
    return digests


def _sampled(split: Split, probe: NDArray[np.int64]) -> Content:
    """All samples of a small split, some of a large one."""
    inputs, _ = split.batch(probe[:1])
    count = len(split)
    if count > MOST_SAMPLES or count * inputs[0].nbytes > MOST_BYTES:
        count = SAMPLED
    chosen = spread(len(split), count)
    read = hashlib.sha256(str(len(split)).encode())
    for start in range(0, len(chosen), PROBED):
        read.update(_batch_digest(split, chosen[start : start + PROBED]))
    return Content(digest=read.hexdigest(), read=len(chosen), of=len(split))


def _unrepeatable(split: Split, probe: NDArray[np.int64]) -> Content:
    known = hashlib.sha256(repr((len(split), sorted(split.digests()))).encode())
    known.update(tensor_bytes(split.batch(probe)[1]))
    return Content(digest=known.hexdigest(), read=len(probe), of=len(split), repeatable=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every usual source of chance starts from ``seed`` in the block, and goes on after it."""
    seed %= 2**32  # NumPy takes no larger one
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it notes a stack for each of the processors that are not there.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` indices, evenly over ``count``, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _batch_digest(split: Split, indices: NDArray[np.int64]) -> bytes:
    found = hashlib.sha256()
    for tensor in split.batch(indices):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor_bytes(tensor))
    return found.digest()


class TensorSplit:
    """Samples held in memory.

    Args:
        inputs: (N, ...); float, or anything else that ``transform`` makes float.
        targets: (N, ...).
        transform: applied to the inputs of each batch, e.g. to keep images as bytes in memory.
        names: identities of the samples where their origin is known; by default each sample is
            identified by a hash of its bytes.

    Raises:
        UsageError: inputs, targets and names differ in number.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise UsageError(
                f"a split has {len(inputs)} inputs and {len(targets)} targets",
                "give TensorSplit(inputs, targets) one target for each input",
            )
        if names is not None and len(names) != len(inputs):
            raise UsageError(
                f"a split has {len(inputs)} inputs and {len(names)} names",
                "give TensorSplit one name for each input, or leave names out",
            )
        self._inputs = inputs
        self._targets = targets
        self._transform = transform
        self._names = names

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        inputs = self._inputs[chosen]
        if self._transform is not None:
            inputs = self._transform(inputs)
        return inputs, self._targets[chosen]

    def content(self) -> Content:
        """Every byte of inputs, targets and names, and the transform as code."""
        found = hashlib.sha256(repr(self._names).encode())
        for tensor in (self._inputs, self._targets):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            for start in range(0, len(tensor), HASHED_AT_ONCE):
                found.update(tensor_bytes(tensor[start : start + HASHED_AT_ONCE]))
        found.update(code_digest(self._transform).encode())
        return Content(digest=found.hexdigest(), read=len(self), of=len(self))

    def digests(self) -> frozenset[str]:
        if self._names is not None:
            return frozenset(self._names)
        rows = self._inputs.detach().contiguous().numpy()
        return frozenset(hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows)


class FolderSplit:
    """Image files, decoded when a batch is asked for.

    The shorter side is resized to 256/224 of ``image_size``, the middle is cut out, and the
    channels are normalised. Two samples are the same when they are the same file.

    Args:
        paths: image files.
        labels: class index of each.
        image_size: height and width of the inputs, in pixels.
        mean, std: per channel, for values in [0, 1]; one channel means grey images.

    Raises:
        UsageError: paths and labels differ in number; later, a file that is not an image.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if len(paths) != len(labels):
            raise UsageError(
                f"a split has {len(paths)} images and {len(labels)} labels",
                "give FolderSplit one label for each path",
            )
        self._paths = tuple(paths)
        self._labels = torch.tensor(list(labels), dtype=torch.int64)
        self._image_size = image_size
        self._mean = torch.tensor(list(mean)).reshape(-1, 1, 1)
        self._std = torch.tensor(list(std)).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        chosen = [int(index) for index in indices]
        images = torch.stack([self._decode(self._paths[index]) for index in chosen])
        return images, self._labels[chosen]

    def content(self) -> Content:
        """Names, labels and preparation of all images; the bytes of all, or of every n-th file."""
        form = (self._image_size, self._mean.tolist(), self._std.tolist(), self._labels.tolist())
        names = [path.parts[-2:] for path in self._paths]  # a data set may be moved
        found = hashlib.sha256(repr((form, names)).encode())
        chosen = spread(len(self._paths), MOST_FILES)
        for index in chosen:
            path = self._paths[index]
            try:
                found.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}", "restore it") from error
        return Content(digest=found.hexdigest(), read=len(chosen), of=len(self._paths))

    def digests(self) -> frozenset[str]:
        return frozenset(str(path.resolve()) for path in self._paths)

    def _decode(self, path: Path) -> Tensor:
        image_module = _pillow()
        mode = "L" if len(self._mean) == 1 else "RGB"
        try:
            with image_module.open(path) as file:
                image = file.convert(mode)
        except (OSError, SyntaxError, image_module.DecompressionBombError) as error:
            raise UsageError(
                f"{path} cannot be read as an image: {error}", f"repair or delete {path}"
            ) from error
        scale = round(self._image_size * RESIZE_OVER_CROP) / min(image.size)
        width, height = (max(self._image_size, round(side * scale)) for side in image.size)
        left, top = (width - self._image_size) // 2, (height - self._image_size) // 2
        middle = (left, top, left + self._image_size, top + self._image_size)
        resized = image.resize((width, height), image_module.Resampling.BILINEAR).crop(middle)
        pixels = np.array(resized, dtype=np.float32).reshape(self._image_size, self._image_size, -1)
        return (torch.from_numpy(pixels / 255.0).permute(2, 0, 1) - self._mean) / self._std


def _pillow() -> Any:
    """Pillow is needed for image files only, so it is asked for when the first one is read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentProblem(
            "reading image files needs Pillow", "pip install pillow"
        ) from error
    return Image
