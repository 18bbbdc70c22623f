"""Shipped tasks read their data sets and keep the splits apart; users' own tasks are loaded."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hwloop.errors import EnvironmentProblem, UsageError
from hwloop.task import Split, Task, load_model, validate_task
from hwloop.tasks import TASKS, cifar10, download, fashion_mnist
from hwloop.tasks.demo.data import MEAN, STD
from hwloop.tasks.load import load_task

TINY_TRAIN, TINY_TEST = 200, 20


def everything(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.batch(range(len(split)))


def sizes(task: Task) -> list[int]:
    return [len(task.train()), len(task.search()), len(task.test())]


def small_network(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TestLoading:
    @pytest.mark.parametrize(("wrong", "right"), [("dmo", "demo"), ("fashion_mnist", "fashion-mn")])
    def test_unknown_name_shows_the_closest(self, wrong: str, right: str) -> None:
        with pytest.raises(UsageError, match=f"no task '{wrong}'") as caught:
            load_task(wrong)
        assert right in caught.value.hint

    def test_every_shipped_name_loads_or_asks_for_data(self, tmp_path: Path) -> None:
        for name in set(TASKS) - {"demo"}:
            with pytest.raises(UsageError, match=str(tmp_path)):
                load_task(name, data=tmp_path)

    @pytest.mark.parametrize("attribute", ["Mine", "make", "ready", "Mine('x')"])
    def test_own_task_is_a_class_a_function_or_an_object(
        self, tmp_path: Path, attribute: str
    ) -> None:
        path = tmp_path / "mine.py"
        path.write_text(
            "from hwloop.task import ClassificationTask\n"
            "class Mine(ClassificationTask):\n"
            "    def __init__(self, folder='y'): self.folder = folder\n"
            "def make(): return Mine('z')\n"
            "ready = Mine()\n"
        )
        assert type(load_task(f"{path}:{attribute}")).__name__ == "Mine"

    def test_what_is_no_task_is_refused(self) -> None:
        with pytest.raises(UsageError, match="is a float, not a Task"):
            load_task("math:pi")

    def test_data_goes_into_the_call_of_an_own_task(self) -> None:
        with pytest.raises(UsageError) as caught:
            load_task("mine.py:Mine()", data=Path("/data"))
        assert 'mine.py:Mine("/data")' in caught.value.hint


class TestDemo:
    def test_bundled_network_scores_as_it_was_trained(self) -> None:
        task = load_task("demo")
        inputs, targets = task.test().batch(range(0, 10_000, 4))
        with torch.no_grad():
            outputs = load_model(task)(inputs)
        assert task.metric(outputs.numpy(), targets.numpy()) >= 0.92
        assert task.loss(outputs, targets).item() < 0.3

    def test_task_is_valid_and_its_splits_disjoint(self) -> None:
        task = load_task("demo")
        validate_task(task, load_model(task))
        assert sizes(task) == [12_000, 8_000, 10_000]
        splits = [task.train(), task.search(), task.test()]
        assert len(frozenset().union(*(split.digests() for split in splits))) == 30_000


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(bytes(header) + values.astype(np.uint8).tobytes())


class TestFashionMnist:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for part, count in (("train", TINY_TRAIN), ("t10k", TINY_TEST)):
            images = rng.integers(0, 256, (count, 28, 28))
            write_idx(tmp_path, part, images, np.arange(count) % 10)
        return tmp_path

    def test_search_images_are_cut_from_training_by_class(self, folder: Path) -> None:
        task = load_task("fashion-mnist", data=folder)
        assert sizes(task) == [170, 30, 20]
        inputs, targets = everything(task.search())
        assert np.bincount(targets.numpy()).tolist() == [3] * 10
        assert inputs.shape == (30, 1, 28, 28)
        assert inputs.min().item() == pytest.approx(-MEAN / STD, abs=0.02)
        validate_task(task, load_model(task))

    def test_layout_of_torchvision_is_found(self, folder: Path, tmp_path: Path) -> None:
        raw = tmp_path / "other" / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for path in folder.glob("*.gz"):
            path.rename(raw / path.name)
        assert sizes(load_task("fashion-mnist", data=tmp_path / "other")) == [170, 30, 20]

    @pytest.mark.parametrize("content", [b"not gzip", gzip.compress(bytes(100), mtime=0)])
    def test_damaged_file_is_explained(self, folder: Path, content: bytes) -> None:
        (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UsageError, match="cannot read the train files"):
            load_task("fashion-mnist", data=folder)

    def test_search_images_of_the_full_set_are_the_bundled_ones(self) -> None:
        if not fashion_mnist.DEBIAN_FOLDER.is_dir():
            pytest.skip("needs the full data: apt-get install dataset-fashion-mnist")
        full = load_task("fashion-mnist")
        assert sizes(full) == [52_000, 8_000, 10_000]
        assert full.search().digests() == load_task("demo").search().digests()

    def test_without_data_the_files_are_downloaded_once(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
        monkeypatch.setattr(fashion_mnist, "URL", f"{folder.as_uri()}/")
        md5 = {path.name: md5_of(path) for path in folder.glob("*.gz")}
        monkeypatch.setattr(fashion_mnist, "MD5", md5)
        assert sizes(load_task("fashion-mnist")) == [170, 30, 20]
        monkeypatch.setattr(fashion_mnist, "URL", "file:///gone/")
        assert sizes(load_task("fashion-mnist")) == [170, 30, 20]


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_cifar(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name in cifar10.FILES:
        count = TINY_TEST if name in cifar10.TEST_FILES else TINY_TRAIN // 5
        records = rng.integers(0, 256, (count, cifar10.RECORD_BYTES), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(folder / name)


def archive_of(folder: Path, path: Path, *, prefix: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in cifar10.FILES:
            tar.add(folder / name, f"{prefix}/{name}")
        hostile = tarfile.TarInfo("../../escaped.bin")
        hostile.size = 3
        tar.addfile(hostile, io.BytesIO(b"bad"))
    return path


class TestCifar10:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_cifar(tmp_path / "cifar-10-batches-bin")
        return tmp_path / "cifar-10-batches-bin"

    def test_records_become_labelled_images(self, folder: Path) -> None:
        task = load_task("cifar10", data=folder.parent)
        assert sizes(task) == [170, 30, 20]
        inputs, targets = everything(task.test())
        record = np.fromfile(folder / "test_batch.bin", dtype=np.uint8)[: cifar10.RECORD_BYTES]
        expected = torch.from_numpy(record[1:].reshape(3, 32, 32).copy()) / 255
        torch.testing.assert_close(inputs[0] * cifar10.STD + cifar10.MEAN, expected)
        assert targets[:3].tolist() == [0, 1, 2]
        validate_task(task, small_network(3))

    def test_a_network_must_be_named(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="the task cifar10 brings no model"):
            load_model(load_task("cifar10", data=folder))

    def test_cut_off_file_is_named(self, folder: Path) -> None:
        (folder / "data_batch_2.bin").write_bytes(bytes(100))
        with pytest.raises(UsageError, match=r"data_batch_2\.bin is 100 bytes long"):
            load_task("cifar10", data=folder)

    def test_label_out_of_range_is_shown(self, folder: Path) -> None:
        (folder / "data_batch_2.bin").write_bytes(bytes([11]) * cifar10.RECORD_BYTES)
        with pytest.raises(UsageError, match="has a label 11"):
            load_task("cifar10", data=folder)

    def test_missing_class_is_explained(self, folder: Path) -> None:
        for name in cifar10.TRAIN_FILES:
            (folder / name).write_bytes(bytes(cifar10.RECORD_BYTES) * 40)
        with pytest.raises(UsageError, match="only 0 of one class"):
            load_task("cifar10", data=folder)

    def test_archive_is_downloaded_checked_and_unpacked_in_place(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = archive_of(folder, tmp_path / "c.tar.gz", prefix="../cifar-10-batches-bin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(cifar10, "URL", archive.as_uri())
        monkeypatch.setattr(cifar10, "MD5", md5_of(archive))
        assert sizes(load_task("cifar10")) == [170, 30, 20]
        assert not list(tmp_path.rglob("escaped.bin"))
        cached = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
        assert cached == set(cifar10.FILES)

    def test_damaged_archive_says_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar.gz").write_bytes(b"no archive")
        with pytest.raises(EnvironmentProblem, match="cannot unpack") as caught:
            cifar10.extract(tmp_path / "a.tar.gz", tmp_path)
        assert "delete" in caught.value.hint


class TestDownload:
    def test_wrong_checksum_leaves_nothing_behind(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "cache" / "target"
        source.write_bytes(b"replaced")
        target.parent.mkdir()
        with pytest.raises(EnvironmentProblem, match="expected 000"):
            download.fetch(source.as_uri(), target, md5="000", size_bytes=8)
        assert not list(target.parent.iterdir())

    def test_unreachable_address_says_how_to_do_without(self, tmp_path: Path) -> None:
        missing = (tmp_path / "missing").as_uri()
        with pytest.raises(EnvironmentProblem, match="cannot download") as caught:
            download.fetch(missing, tmp_path / "target", md5="000", size_bytes=8)
        assert "--data" in caught.value.hint
        assert not list(tmp_path.iterdir())


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for part, count in (("train", 20), ("val", 3)):
            for name in ("cat", "dog"):
                (tmp_path / part / name).mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / part / name / f"{index}.png")
        return tmp_path

    def test_search_images_are_cut_from_each_class(self, folder: Path) -> None:
        task = load_task("images", data=folder)
        assert sizes(task) == [34, 6, 6]
        inputs, targets = everything(task.search())
        assert inputs.shape == (6, 3, 224, 224)
        assert targets.tolist() == [0, 0, 0, 1, 1, 1]
        assert everything(task.test())[1].tolist() == [0, 0, 0, 1, 1, 1]

    def test_other_sizes_by_spec(self, folder: Path) -> None:
        spec = f'hwloop.tasks.images:ImageFolderTask("{folder}", image_size=32)'
        task = load_task(spec)
        assert task.example().shape == (1, 3, 32, 32)
        validate_task(task, small_network(3))

    def test_same_cut_every_time(self, folder: Path) -> None:
        first, second = (load_task("images", data=folder) for _ in range(2))
        assert first.search().digests() == second.search().digests()

    def test_folder_is_needed(self) -> None:
        with pytest.raises(UsageError) as caught:
            load_task("images")
        assert "--data" in caught.value.hint

    def test_classes_must_agree(self, folder: Path) -> None:
        (folder / "val" / "cat").rename(folder / "val" / "cow")
        with pytest.raises(UsageError, match="differ in the classes cat, cow"):
            load_task("images", data=folder)

    def test_class_without_images_is_named(self, folder: Path) -> None:
        (folder / "train" / "ant").mkdir()
        with pytest.raises(UsageError, match=r"train/ant holds too few images \(0\)"):
            load_task("images", data=folder)
