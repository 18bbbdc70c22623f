"""Tasks are checked before a search: each mistake of a user has its own sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hwloop.errors import UsageError
from hwloop.task import (
    ClassificationTask,
    FolderSplit,
    Task,
    TensorSplit,
    load_model,
    validate_task,
)


def random_split(seed: int, count: int = 12) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorSplit(inputs, torch.arange(count) % 4)


class Shapes(ClassificationTask):
    name = "shapes"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def example(self) -> Tensor:
        return torch.zeros(1, 3, 8, 8)

    def train(self) -> Any:
        return random_split(1)

    def search(self) -> Any:
        return random_split(2)

    def test(self) -> Any:
        return random_split(3)


def refused(task: Task, model: nn.Module | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        validate_task(task, model or load_model(Shapes()))
    assert caught.value.hint
    return str(caught.value)


def shapes_with(**methods: Any) -> Task:
    task: Task = type("Changed", (Shapes,), methods)()
    return task


class TestTensorSplit:
    def test_batch_takes_lists_and_arrays(self) -> None:
        split = random_split(0)
        inputs, targets = split.batch([3, 1])
        assert inputs.shape == (2, 3, 8, 8)
        assert targets.tolist() == [3, 1]
        assert torch.equal(split.batch(np.array([3, 1]))[0], inputs)

    def test_transform_is_applied_to_each_batch(self) -> None:
        split = TensorSplit(
            torch.tensor([[51]], dtype=torch.uint8), torch.tensor([0]), transform=lambda x: x / 255
        )
        assert split.batch([0])[0].item() == pytest.approx(0.2)

    def test_equal_samples_have_equal_digests(self) -> None:
        first, other = random_split(0), random_split(1)
        assert first.digests() == random_split(0).digests()
        assert len(first.digests()) == 12
        assert not first.digests() & other.digests()

    def test_names_replace_the_contents_as_identity(self) -> None:
        split = TensorSplit(torch.zeros(2, 1), torch.zeros(2), names=["a", "b"])
        assert split.digests() == {"a", "b"}

    def test_counts_must_agree(self) -> None:
        with pytest.raises(UsageError, match="3 inputs and 2 targets"):
            TensorSplit(torch.zeros(3, 1), torch.zeros(2))
        with pytest.raises(UsageError, match="2 inputs and 1 names"):
            TensorSplit(torch.zeros(2, 1), torch.zeros(2), names=["a"])


class TestFolderSplit:
    def split(self, paths: list[Path], mean: tuple[float, ...] = (0.5, 0.5, 0.5)) -> FolderSplit:
        labels = list(range(len(paths)))
        return FolderSplit(paths, labels, image_size=14, mean=mean, std=(0.5,) * len(mean))

    def test_images_of_any_size_become_normalised_squares(self, tmp_path: Path) -> None:
        paths = [tmp_path / "wide.png", tmp_path / "high.jpg", tmp_path / "tiny.png"]
        for path, size in zip(paths, [(60, 20), (17, 40), (3, 3)], strict=True):
            Image.new("RGB", size, (255, 0, 0)).save(path)
        inputs, targets = self.split(paths).batch([0, 1, 2])
        assert inputs.shape == (3, 3, 14, 14)
        assert inputs[0, 0].min() == 1.0
        assert inputs[0, 1].max() == -1.0
        assert targets.tolist() == [0, 1, 2]

    def test_one_mean_means_grey(self, tmp_path: Path) -> None:
        Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "a.png")
        split = self.split([tmp_path / "a.png"], mean=(0.5,))
        assert split.batch([0])[0].shape == (1, 1, 14, 14)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
    def test_broken_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.png cannot be read"):
            self.split([path]).batch([0])

    def test_counts_must_agree(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="1 images and 2 labels"):
            FolderSplit([tmp_path], [0, 1], image_size=14, mean=(0.5,), std=(0.5,))


class TestScores:
    def test_accuracy_is_a_fraction(self) -> None:
        outputs = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        assert Shapes().metric(outputs, np.array([1, 0, 0, 1])) == 0.75

    def test_drop_is_positive_when_worse(self) -> None:
        task = Shapes()
        assert task.drop(0.9, 0.8) == pytest.approx(0.1)
        task.higher_is_better = False
        assert task.drop(0.9, 0.8) == pytest.approx(-0.1)


class TestLoadModel:
    @pytest.fixture
    def user_file(self, tmp_path: Path) -> Path:
        path = tmp_path / "nets.py"
        path.write_text(
            "from torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self, size=2): super().__init__(size, size)\n"
            "def build(): return Net(5)\n"
            "ready = Net(3)\n"
            "number = 4\n"
        )
        return path

    def test_own_network_of_the_task_is_put_in_eval_mode(self) -> None:
        assert not load_model(Shapes()).training

    @pytest.mark.parametrize(
        ("what", "size"), [("Net", 2), ("Net(size=7)", 7), ("build", 5), ("ready", 3)]
    )
    def test_spec_names_class_function_or_network(
        self, user_file: Path, what: str, size: int
    ) -> None:
        model = load_model(Shapes(), f"{user_file}:{what}")
        assert model(torch.zeros(1, size)).shape == (1, size)

    def test_ready_network_stays_untouched(self, user_file: Path) -> None:
        first, second = (load_model(Shapes(), f"{user_file}:ready") for _ in range(2))
        assert first is not second

    def test_anything_else_is_refused(self, user_file: Path) -> None:
        with pytest.raises(UsageError, match=r"is a int, not a torch\.nn\.Module"):
            load_model(Shapes(), f"{user_file}:number")

    def test_task_without_a_network_asks_for_one(self) -> None:
        with pytest.raises(UsageError, match="brings no model"):
            load_model(shapes_with(model=Task.model))


class TestValidation:
    def test_correct_task_passes_and_leaves_the_network_in_eval_mode(self) -> None:
        model = Shapes().model().train()
        validate_task(Shapes(), model)
        assert not model.training

    @pytest.mark.parametrize("name", ["example", "train", "search", "test", "loss", "metric"])
    def test_missing_method_is_named(self, name: str) -> None:
        assert f"has no {name}()" in refused(shapes_with(**{name: getattr(Task, name)}))

    @pytest.mark.parametrize("name", ["train", "search", "test"])
    def test_empty_split_is_named(self, name: str) -> None:
        task = shapes_with(**{name: lambda self: random_split(9, count=0)})
        assert f"the {name} split of the task shapes is empty" in refused(task)

    def test_overlapping_splits_are_counted_and_named(self) -> None:
        task = shapes_with(test=lambda self: random_split(1, count=5))
        assert "5 samples are in both the train split and the test split" in refused(task)

    def test_split_without_the_protocol(self) -> None:
        message = refused(shapes_with(train=lambda self: [1, 2, 3]))
        assert "train split" in message
        assert "list without batch()" in message

    def test_batch_with_too_few_targets(self) -> None:
        class Short(TensorSplit):
            def batch(self, indices: Any) -> tuple[Tensor, Tensor]:
                inputs, targets = super().batch(indices)
                return inputs, targets[:-1]

        short = Short(torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64))
        assert "5 inputs and 4 targets" in refused(shapes_with(search=lambda self: short))

    @pytest.mark.parametrize(
        ("example", "expected"),
        [
            (torch.zeros(3, 8, 8), "has shape (3, 8, 8), not (1, ...)"),
            (torch.zeros(2, 3, 8, 8), "has shape (2, 3, 8, 8), not (1, ...)"),
            (torch.zeros(1, 3, 9, 9), "(1, 3, 9, 9), but the train split"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8, not a float tensor"),
            ("zeros", "str, not a float tensor"),
        ],
    )
    def test_wrong_example_shows_its_shape(self, example: Any, expected: str) -> None:
        assert expected in refused(shapes_with(example=lambda self: example))

    def test_network_that_wants_another_shape(self) -> None:
        message = refused(Shapes(), nn.Conv2d(1, 4, 3))
        assert "given an input (1, 3, 8, 8), raised RuntimeError" in message

    def test_nan_in_the_weights_names_the_parameter(self) -> None:
        model = Shapes().model()
        with torch.no_grad():
            model.get_parameter("0.weight")[0, 0, 0, 0] = float("nan")
        assert "0.weight holds NaN" in refused(Shapes(), model)

    def test_infinite_statistics_name_the_buffer(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3), Shapes().model())
        model.get_buffer("0.running_var").fill_(float("inf"))
        assert "0.running_var holds NaN or infinite" in refused(Shapes(), model)

    def test_output_that_is_not_finite(self) -> None:
        class Overflows(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x.flatten(1)[:, :4] + 1) / 0

        assert "output for an input (1, 3, 8, 8) holds NaN" in refused(Shapes(), Overflows())

    def test_output_that_is_no_single_tensor(self) -> None:
        class Pair(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x, x

        assert "returned a tuple, not one tensor" in refused(Shapes(), Pair())

    def test_network_that_loses_samples(self) -> None:
        class Averages(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, :4].mean(0, keepdim=True)

        assert "returned (1, 4) for an input (12, 3, 8, 8)" in refused(Shapes(), Averages())

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.9", None, True, np.ones(2)])
    def test_metric_that_is_no_number(self, value: Any) -> None:
        message = refused(shapes_with(metric=lambda self, outputs, targets: value))
        assert "metric() of the task shapes returned" in message

    def test_metric_that_takes_arrays_for_tensors(self) -> None:
        def wrong(self: Any, outputs: Any, targets: Any) -> float:
            return float((outputs.argmax(1) == targets).float().mean())

        with pytest.raises(UsageError) as found:
            validate_task(shapes_with(metric=wrong), load_model(Shapes()))
        assert "metric() is given NumPy arrays, unlike loss()" in found.value.hint

    def test_metric_may_return_a_numpy_number(self) -> None:
        model = load_model(Shapes())
        validate_task(shapes_with(metric=lambda self, o, t: np.float32(0.5)), model)

    def test_metric_sees_numpy_arrays_only(self) -> None:
        seen: list[type] = []

        def metric(self: Task, outputs: Any, targets: Any) -> float:
            seen.extend([type(outputs), type(targets)])
            return 0.5

        validate_task(shapes_with(metric=metric), load_model(Shapes()))
        assert seen == [np.ndarray, np.ndarray]

    def test_raising_metric_is_located(self) -> None:
        def metric(self: Task, outputs: Any, targets: Any) -> float:
            raise KeyError("iou")

        message = refused(shapes_with(metric=metric))
        assert "KeyError" in message
        assert f"{__file__}:{metric.__code__.co_firstlineno + 1}" in message

    @pytest.mark.parametrize("value", [0.5, torch.ones(3), torch.tensor(float("nan"))])
    def test_loss_that_is_no_finite_scalar(self, value: Any) -> None:
        message = refused(shapes_with(loss=lambda self, outputs, targets: value))
        assert "loss() of the task shapes returned" in message

    def test_a_train_split_without_labels_needs_no_loss(self) -> None:
        without = shapes_with(label_share=0.0, loss=Task.loss)
        validate_task(without, load_model(Shapes()))
        assert "has no loss()" in refused(shapes_with(loss=Task.loss))

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "half", None])
    def test_a_share_of_the_labels_that_is_none(self, value: Any) -> None:
        message = refused(shapes_with(label_share=value))
        assert f"the label_share of the task shapes is {value!r}" in message
