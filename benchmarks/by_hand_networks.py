"""The networks of by_hand.py: the demo, and two that are trained on its bundled images.

Trained once and kept: 12,000 images of Fashion-MNIST, padded to 32 pixels, some minutes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwloop.task import ClassificationTask, Task, load_model
from hwloop.tasks.load import load_task
from hwloop.tasks.splits import TensorSplit

EPOCHS = 8
BATCH = 128
PEAK_LR = 0.1
SIDE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network, its task, and the goal of its case.

    Attributes:
        shipped: a task of hwloop's own, which is asked for by its name.
    """

    network: nn.Module
    task: Task
    max_drop: float = 0.01
    shipped: str | None = None


class Padded(ClassificationTask):
    """The demo's images at 32 pixels."""

    name = "fashion-32"

    def __init__(self) -> None:
        demo = load_task("demo")
        self._splits = {
            name: _padded(getattr(demo, name)()) for name in ("train", "search", "test")
        }

    def example(self) -> Tensor:
        return self.search().batch([0])[0]

    def train(self) -> TensorSplit:
        return self._splits["train"]

    def search(self) -> TensorSplit:
        return self._splits["search"]

    def test(self) -> TensorSplit:
        return self._splits["test"]


def _padded(split: TensorSplit) -> TensorSplit:
    inputs, targets = split.batch(range(len(split)))
    margin = (SIDE - inputs.shape[-1]) // 2
    value = float(inputs.min())
    return TensorSplit(nn.functional.pad(inputs, (margin,) * 4, value=value), targets)


class Inverted(nn.Module):
    """Expand, depthwise, project, as in MobileNetV2 (Sandler et al., 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int = 4) -> None:
        wide = c_in * expand
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(c_in, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.skips = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out if self.skips else out


def mobile() -> nn.Module:
    """A MobileNetV2-type network for 32 pixels."""
    plan = ((32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 80, 2), (80, 80, 1), (80, 128, 2))
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        *(Inverted(c_in, c_out, stride) for c_in, c_out, stride in plan),
        nn.Conv2d(128, 256, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def vgg() -> nn.Module:
    """A VGG-type network with wide late layers."""
    layers: list[nn.Module] = []
    c_in = 1
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0, 256, 256, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(c_in, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        c_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def _trained(make: Callable[[], nn.Module], folder: Path) -> Trained:
    """The network with the weights of an earlier training, or trained now."""
    torch.manual_seed(0)
    task, network = Padded(), make()
    path = folder / f"{make.__name__}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        return Trained(network=network.eval(), task=task)
    split = task.train()
    steps = len(split) // BATCH
    optimizer = torch.optim.SGD(
        network.parameters(), PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        network.train()
        order = torch.randperm(len(split)).tolist()
        for step in range(steps):
            inputs, targets = split.batch(order[step * BATCH : (step + 1) * BATCH])
            flipped = torch.rand(len(inputs)) < 0.5
            inputs = torch.where(flipped[:, None, None, None], inputs.flip(3), inputs)
            loss = nn.functional.cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
    network.eval()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return Trained(network=network, task=task)


def _demo(folder: Path) -> Trained:
    task = load_task("demo")
    return Trained(network=load_model(task, None), task=task, shipped="demo")


NETWORKS: dict[str, Callable[[Path], Trained]] = {
    "demo": _demo,
    "mobile": lambda folder: _trained(mobile, folder),
    "vgg": lambda folder: _trained(vgg, folder),
}
