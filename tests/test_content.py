"""A split is known again by what it holds, in its order; a large one by a part, and it says so."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hwloop.run import digests
from hwloop.tasks import splits
from hwloop.tasks.splits import FolderSplit, TensorSplit, content_of

INPUTS = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(300) % 3


class Own:
    """A split of the user's, with nothing but the protocol."""

    def __init__(self, inputs: Tensor = INPUTS, *, noise: float = 0.0) -> None:
        self.inputs = inputs
        self.noise = noise

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        found = self.inputs[chosen]
        return found + self.noise * torch.randn(found.shape), TARGETS[chosen]

    def digests(self) -> frozenset[str]:
        return frozenset(map(str, range(len(self))))


class Shifted(TensorSplit):
    """Inherits what TensorSplit knows of its content, and gives something else."""

    shift = 0.0

    def batch(self, indices: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices)
        return inputs + self.shift * (inputs > 2.5), targets


def one_changed(at: int) -> Tensor:
    changed = INPUTS.clone()
    changed[at, 0, 0, 0] += 1e-3
    return changed


@pytest.mark.parametrize("kind", [TensorSplit, None])
@pytest.mark.parametrize("at", [0, 137, 299])
def test_every_value_of_a_small_split_counts(kind: Any, at: int) -> None:
    def of(inputs: Tensor) -> splits.Content:
        return content_of(Own(inputs) if kind is None else TensorSplit(inputs, TARGETS))

    assert of(INPUTS) == of(INPUTS.clone())
    assert of(INPUTS).read == of(INPUTS).of == 300
    assert of(one_changed(at)).digest != of(INPUTS).digest


def test_the_names_the_type_and_the_transform_count() -> None:
    plain = content_of(TensorSplit(INPUTS, TARGETS))
    names = [str(number) for number in range(300)]
    for other in (
        TensorSplit(INPUTS, TARGETS, names=names),
        TensorSplit(INPUTS, TARGETS.int()),
        TensorSplit(INPUTS, TARGETS, transform=lambda batch: batch),
    ):
        assert content_of(other).digest != plain.digest


def test_a_subclass_that_reads_otherwise_is_read_through_its_own_batch() -> None:
    before = content_of(Shifted(INPUTS, TARGETS)).digest
    changed = Shifted(INPUTS, TARGETS)
    changed.shift = 1.0
    assert (INPUTS > 2.5).sum() > 0
    assert content_of(changed).digest != before


def test_a_large_split_is_sampled_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_SAMPLES", 200)
    monkeypatch.setattr(splits, "SAMPLED", 100)
    found = content_of(Own())
    assert (found.read, found.of) == (100, 300)
    assert content_of(Own(one_changed(299))).digest != found.digest
    content = {"digest": "x", "read": 300, "of": 300, "repeatable": True}
    said = digests.doubts({"train": content, "search": vars(found), "test": content})
    assert said == ["the search split is known by a sampled digest: 100 of 300 samples"]


def test_random_augmentation_is_known_by_targets_and_identities() -> None:
    found = content_of(Own(noise=0.1))
    assert found == content_of(Own(noise=0.1))
    assert not found.repeatable
    content = {"digest": "x", "read": 300, "of": 300, "repeatable": True}
    said = digests.doubts({"train": vars(found), "search": content, "test": content})
    assert "gives other values each time" in said[0]


def test_augmentation_that_is_drawn_once_for_a_batch_is_noticed_for_sure() -> None:
    def flipped(batch: Tensor) -> Tensor:
        return batch.flip(-1) if random.random() < 0.5 else batch

    state = random.getstate()
    found = {content_of(TensorSplit(INPUTS, TARGETS, transform=flipped)) for _ in range(10)}
    assert len(found) == 1
    assert not found.pop().repeatable
    assert random.getstate() == state


def folder_split(folder: Path, labels: Sequence[int] = (0, 0, 1, 1), **changes: Any) -> FolderSplit:
    options: Any = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3, **changes}
    return FolderSplit(sorted(folder.glob("*/*.png")), labels, **options)


def test_images_count_by_bytes_names_labels_and_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    for number in range(4):
        path = folder / ("cat" if number < 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(path)
    before = content_of(folder_split(folder))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert content_of(folder_split(moved)) == before
    assert content_of(folder_split(folder, (0, 1, 1, 1))).digest != before.digest
    assert content_of(folder_split(folder, std=(0.3,) * 3)).digest != before.digest
    Image.new("RGB", (9, 9), (0, 1, 0)).save(folder / "dog" / "3.png")
    assert content_of(folder_split(folder)).digest != before.digest
    monkeypatch.setattr(splits, "MOST_FILES", 2)
    assert content_of(folder_split(folder)).read == 2
