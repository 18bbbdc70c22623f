"""The networks of by_hand.py: the demo, and five that are trained here on its images or made ones.

Each is trained once and kept, some minutes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from by_hand_tasks import Blobs, Fashion
from common import cpu_profile
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from hwloop.compress.bfloat16 import multiplies_bfloat16, outputs_of
from hwloop.task import ClassificationTask, Task, load_model
from hwloop.tasks.explicit import explicit
from hwloop.tasks.load import load_task

BATCH = 128
PEAK_LR = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network, its task, and the terms of its case.

    Attributes:
        steps: of a full distillation, hwloop's and everybody's.
        shipped: a task of hwloop's own, which is asked for by its name.
        target: profile, by name or path.
    """

    network: nn.Module
    task: Task
    max_drop: float = 0.01
    steps: int = 600
    shipped: str | None = None
    target: str = "cpu"


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
    """A MobileNetV2-type network for 32 pixels, which its first layer halves."""
    plan = ((32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 80, 2), (80, 80, 1), (80, 128, 2))
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1, bias=False),
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
        layers += _convolution(c_in, width)
        c_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def resnet() -> nn.Module:
    """torchvision's ResNet-18 for images of one channel."""
    network: nn.Module = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


def vit() -> nn.Module:
    """torchvision's vision transformer, small, for patches of 4x4 pixels of one channel."""
    network: nn.Module = VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=384,
        num_classes=10,
    )
    network.conv_proj = nn.Conv2d(1, 96, 4, stride=4)
    nn.init.normal_(network.get_submodule("heads.head").get_parameter("weight"), std=0.02)
    return network


class Regressor(nn.Module):
    """Depthwise, grouped, gated and shared layers, then where the blob is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, 48, stride=2))
        self.mobile = Inverted(48, 64, 2)
        self.grouped = nn.Sequential(*_convolution(64, 64, groups=4))
        self.down, self.up = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 64, 1)
        self.shared = nn.Sequential(*_convolution(64, 64))
        self.hidden, self.last = nn.Linear(64 * 16, 96), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.mobile(self.stem(x)))
        gate = torch.relu(self.down(x.mean((2, 3), keepdim=True)))
        x = x * torch.sigmoid(self.up(gate))
        x = self.shared(self.shared(x))
        x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        out: Tensor = self.last(torch.relu(self.hidden(x)))
        return out


def _convolution(c_in: int, c_out: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(c_in, c_out, 3, stride, 1, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]


def _trained(
    make: Callable[[], nn.Module],
    task: Task,
    folder: Path,
    *,
    epochs: int = 8,
    lr: float = PEAK_LR,
    adam: bool = False,
) -> Trained:
    """The network with the weights of an earlier training, or trained now."""
    torch.manual_seed(0)
    network = make()
    path = folder / f"{make.__name__}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        return Trained(network=explicit(network.eval()), task=task)
    split = task.train()
    steps = len(split) // BATCH
    parameters = list(network.parameters())
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    for _ in range(epochs):
        network.train()
        order = torch.randperm(len(split)).tolist()
        for step in range(steps):
            inputs, targets = split.batch(order[step * BATCH : (step + 1) * BATCH])
            if isinstance(task, ClassificationTask):
                flipped = torch.rand(len(inputs)) < 0.5
                inputs = torch.where(flipped[:, None, None, None], inputs.flip(3), inputs)
            outputs = outputs_of(network, inputs, bfloat16=multiplies_bfloat16())
            loss = task.loss(outputs, targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
    network.eval()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return Trained(network=explicit(network), task=task)


def _demo(folder: Path) -> Trained:
    task = load_task("demo")
    return Trained(network=load_model(task, None), task=task, shipped="demo")


def _resnet(folder: Path) -> Trained:
    trained = _trained(resnet, Fashion(64), folder, epochs=4)
    return replace(trained, steps=200)  # of over a second each on two cores


def _vit(folder: Path) -> Trained:
    return _trained(vit, Fashion(32), folder, epochs=20, lr=1e-3, adam=True)


def _float_only(known: Callable[[Path], Trained], folder: Path) -> Trained:
    target = cpu_profile(folder / "cpu-float.toml", "without INT8", precisions=["base"])
    return replace(known(folder), target=target)


def _vgg(folder: Path) -> Trained:
    return _trained(vgg, Fashion(32), folder)


NETWORKS: dict[str, Callable[[Path], Trained]] = {
    "demo": _demo,
    "mobile": lambda folder: _trained(mobile, Fashion(32), folder),
    "vgg": _vgg,
    "resnet": _resnet,
    "vit": _vit,
    "regressor": lambda folder: _trained(Regressor, Blobs(), folder, epochs=15, lr=0.02),
    "demo-float": lambda folder: _float_only(_demo, folder),
    "vgg-float": lambda folder: _float_only(_vgg, folder),
}
