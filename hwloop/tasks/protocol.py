"""The plug-in protocol: what a task says about a network's data, and how outputs are scored.

The metric sees numpy arrays only, so the same code scores PyTorch, ONNX Runtime and TensorRT.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.errors import UsageError
from hwloop.tasks.splits import Split

TaskModel: TypeAlias = nn.Module
SPLITS = ("train", "search", "test")
"""The methods of a task that return its data."""


class Task:
    """The plug-in protocol. Override every method; ``model`` only if no MODEL will be given.

    Attributes:
        name: short name for reports and messages.
        metric_name: what ``metric`` returns, e.g. ``accuracy``.
        higher_is_better: direction of the metric.
        label_share: weight of :meth:`loss` in recovery, in [0, 1]; the rest is distillation. With 0
            the train split needs no labels: ``loss`` is never called, whatever its targets are.
    """

    name: str = "task"
    metric_name: str = "metric"
    higher_is_better: bool = True
    label_share: float = 0.1

    def model(self) -> TaskModel:
        """The trained network: one float tensor (N, ...) in, one tensor (N, ...) out."""
        raise UsageError(
            f"the task {self.name} brings no model",
            "name one: hwloop optimize file.py:my_network --task ..., or give the task a model()",
        )

    def example(self) -> Tensor:
        """One input of the deployed shape, as a batch of 1."""
        raise NotImplementedError

    def train(self) -> Split:
        """What recovery (distillation, batch-norm statistics) may learn from."""
        raise NotImplementedError

    def search(self) -> Split:
        """What candidates are scored on during the search; in neither of the other splits."""
        raise NotImplementedError

    def test(self) -> Split:
        """What the final figures are scored on, once."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Differentiable loss of a batch, a scalar; not needed where ``label_share`` is 0."""
        raise NotImplementedError

    def distillation_loss(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """How far the compressed network's outputs are from the dense one's; a scalar.

        Mean squared error relative to the teacher's variance; override where a better one exists.
        """
        scale = teacher.var().clamp_min(1e-12)
        return nn.functional.mse_loss(outputs, teacher) / scale

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        """Score of all outputs (N, ...) against all targets (N, ...), in the metric's own unit."""
        raise NotImplementedError

    def drop(self, baseline: float, value: float) -> float:
        """How much worse ``value`` is than ``baseline``, in the metric's unit: positive = worse."""
        return baseline - value if self.higher_is_better else value - baseline


class ClassificationTask(Task):
    """Logits (N, classes) against integer targets (N,): cross-entropy, top-1 accuracy in [0, 1].

    Attributes:
        temperature: of distillation, above 0: the lower, the more it is about the likely classes.
    """

    metric_name = "accuracy"
    temperature: float = 2.0

    def distillation_loss(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """KL divergence at a temperature, times its square (Hinton et al., 2015, section 2)."""
        soft = nn.functional.log_softmax(outputs / self.temperature, dim=1)
        wanted = nn.functional.log_softmax(teacher / self.temperature, dim=1)
        divergence = nn.functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metric(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return float((outputs.argmax(axis=1) == targets).mean())
