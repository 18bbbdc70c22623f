"""The pairs of different networks that the studies of disturbance compare."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import nn

from hwloop.compress.export import export_onnx
from hwloop.compress.subject import subject
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.records import Action
from hwloop.run.table_check import unrecovered
from hwloop.task import load_model
from hwloop.tasks.load import load_task

BY_MEMORY = ("ResNet-18, smaller input", "perceptron")
"""Their weights are used once or a few times each, and fill the cache that all cores, and all the
guests of the machine, share: what others do is in every sample. Fewer repeats, figures apart."""


def conv(width: int, blocks: int) -> nn.Module:
    """Plain 3x3 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, *_head(width))


def separable(width: int, blocks: int) -> nn.Module:
    """Depthwise and 1x1 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, *_head(width))


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def dense_layers(width: int, count: int) -> nn.Module:
    """A multilayer perceptron: every weight is used once, so memory sets the pace."""
    layers: list[nn.Module] = [nn.Linear(256, width), nn.GELU()]
    for _ in range(count):
        layers += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*layers)


def write_pairs(folder: Path) -> dict[str, list[Path]]:
    """The reference and the faster network of each pair, as files."""
    torch.manual_seed(0)
    resnet, squeeze = torchvision.models.resnet18(), torchvision.models.squeezenet1_1()
    photo, thumb = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 192, 192)
    small, large = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 96, 96)
    flat, tiny = torch.zeros(1, 256), torch.zeros(1, 3, 48, 48)
    graphs = {
        "demo, widths halved": _demo_graphs(),
        "9 of 10 convolutions": [_graph(conv(32, 10), small), _graph(conv(32, 9), small)],
        "half as wide": [_graph(conv(64, 8), small), _graph(conv(32, 7), small)],
        "depthwise": [_graph(separable(64, 10), tiny), _graph(separable(48, 9), tiny)],
        "SqueezeNet, smaller input": [_graph(squeeze, photo), _graph(squeeze, thumb)],
        BY_MEMORY[0]: [_graph(resnet, large), _graph(resnet, small)],
        BY_MEMORY[1]: [_graph(dense_layers(1024, 4), flat), _graph(dense_layers(768, 4), flat)],
    }
    files = {}
    for number, (name, pair) in enumerate(graphs.items()):
        files[name] = [folder / f"{number}{side}.onnx" for side in "ab"]
        for path, graph in zip(files[name], pair, strict=True):
            path.write_bytes(graph)
    return files


def _graph(network: nn.Module, example: torch.Tensor) -> bytes:
    return export_onnx(network.eval(), example)


def _demo_graphs() -> list[bytes]:
    task = load_task("demo")
    found = subject(
        task, load_model(task, None), rules_for(load_profile("cpu"), ""), isa="", name="demo"
    )
    half = found.uniform(Action(kind="prune", amount=0.5))
    return [found.graph, unrecovered(found, half).data]
