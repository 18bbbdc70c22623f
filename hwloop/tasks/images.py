"""A folder of images in ImageNet's layout: train/CLASS/* and val/CLASS/*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from hwloop.errors import UsageError
from hwloop.tasks.cut import LARGEST_SHARE, SEED
from hwloop.tasks.protocol import ClassificationTask
from hwloop.tasks.splits import FolderSplit

SEARCH_COUNT = 5_000
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


class ImageFolderTask(ClassificationTask):
    """Images (N, 3, S, S), decoded when needed; classes are the folder names in sorted order.

    The test split is val/; about 5,000 images of train/, equally spread over the classes, become
    the search split. For other sizes or statistics, name the task by a SPEC:
    ``hwloop.tasks.images:ImageFolderTask("data", image_size=160)``.

    Args:
        data: folder that holds train/ and val/.
        image_size: height and width of the inputs in pixels.
        mean, std: per channel, for values in [0, 1]; ImageNet's by default.
    """

    name = "images"

    def __init__(
        self,
        data: Path | str | None = None,
        *,
        image_size: int = 224,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        if data is None:
            raise UsageError(
                "the task images needs a folder with train/ and val/", "add --data FOLDER"
            )
        train, val = _classes(Path(data) / "train"), _classes(Path(data) / "val")
        if list(train) != list(val):
            different = sorted(set(train) ^ set(val))
            raise UsageError(
                f"{data}/train and {data}/val differ in the classes {', '.join(different[:5])}",
                "give both folders the same class folders",
            )
        rng = np.random.default_rng(SEED)
        parts: dict[str, tuple[list[Path], list[int]]] = {"train": ([], []), "search": ([], [])}
        per_class = -(-SEARCH_COUNT // len(train))
        for label, paths in enumerate(train.values()):
            count = max(1, min(per_class, len(paths) // LARGEST_SHARE))  # one in any case
            chosen = set(rng.choice(len(paths), count, replace=False).tolist())
            for index, path in enumerate(paths):
                part = "search" if index in chosen else "train"
                parts[part][0].append(path)
                parts[part][1].append(label)
        parts["test"] = (
            [path for paths in val.values() for path in paths],
            [label for label, paths in enumerate(val.values()) for _ in paths],
        )
        self._splits = {
            part: FolderSplit(paths, labels, image_size=image_size, mean=mean, std=std)
            for part, (paths, labels) in parts.items()
        }

    def example(self) -> Tensor:
        return self._splits["search"].batch([0])[0]

    def train(self) -> FolderSplit:
        return self._splits["train"]

    def search(self) -> FolderSplit:
        return self._splits["search"]

    def test(self) -> FolderSplit:
        return self._splits["test"]


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Sorted class name to sorted image files; UsageError where there is nothing to read."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}",
            "give with --data the folder that holds train/ and val/, each with a folder per class",
        )
    classes = {
        child.name: sorted(path for path in child.iterdir() if path.suffix.lower() in SUFFIXES)
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    if not classes:
        raise UsageError(f"{folder} holds no class folders", f"sort it into {folder}/CLASS/*.jpg")
    for name, paths in classes.items():
        if len(paths) < (2 if folder.name == "train" else 1):
            raise UsageError(
                f"{folder / name} holds too few images ({len(paths)}): train/ needs two of each "
                "class, val/ one",
                f"add images ({', '.join(sorted(SUFFIXES))}) or remove the class",
            )
    return classes
