"""Smaller images in front of a network: at which sizes it computes, and what its layers cost there.

The image is shrunk within the network, so what deploys takes the same input as the dense one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx
import torch
from torch import Tensor, nn

from hwloop.compress import methods
from hwloop.compress.calls import FAILURES, sharing_copy
from hwloop.compress.describe import describe, graph_configs
from hwloop.compress.export import export_onnx
from hwloop.compress.methods.method import Method
from hwloop.compress.rules import SpaceRules
from hwloop.compress.shrinking import OfOneSize, shrunk, sides
from hwloop.errors import CandidateError, UsageError
from hwloop.records import Group, Layer, LayerConfig, Network

INPUT = "(input)"
"""Of the group that stands for the network's input, and the layer that shrinks it: no path."""


_ONNX_FAILURES = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


def described(
    module: nn.Module, example: Tensor, graph: bytes, *, name: str, rules: SpaceRules
) -> Network:
    """:func:`hwloop.compress.describe.describe`, with the sizes that the rules allow."""
    network = describe(module, example, graph, name=name)
    known = [m for m in methods.METHODS if m.kind in rules.kinds and resizes(m)]
    shares = [method.size(action) for method in known for action in method.actions()]
    return with_sizes(network, module, example, shares) if shares else network


def resizes(method: Method) -> bool:
    """Whether its actions are about the input's size."""
    return any(method.size(action) < 1 for action in method.actions())


def with_sizes(
    network: Network, module: nn.Module, example: Tensor, shares: Sequence[float]
) -> Network:
    """The network with a first group that decides the size of its image.

    As it was where no size is possible: what is given is no image, what comes out has its size, or
    the network computes with one size alone.

    Args:
        module: the dense network; it is not changed.
    """
    found = dict(_at_sizes(network, module, example, shares)) if example.ndim == 4 else {}
    if not found:
        return network
    layers = tuple(
        replace(
            layer,
            out_group=None if layer.out_group is None else layer.out_group + 1,
            in_groups=tuple((group + 1, times) for group, times in layer.in_groups),
            branch=None if layer.branch is None else layer.branch + 1,
            sized=tuple(configs[number] for configs in found.values()),
        )
        for number, layer in enumerate(network.layers)
    )
    group = Group(
        name=INPUT,
        layers=(INPUT,),
        channels=1,
        prunable=False,
        block="",
        fixed_by="its channels are the input's",
        sizes=tuple(found),
    )
    height, width = example.shape[2:]
    first = Layer(
        name=INPUT,
        config=_resize(example, (height, width)),
        out_group=None,
        in_groups=(),
        sized=tuple(_resize(example, sides(example.shape, share)) for share in found),
    )
    return replace(network, layers=(first, *layers), groups=(group, *network.groups))


def _at_sizes(
    network: Network, module: nn.Module, example: Tensor, shares: Sequence[float]
) -> Iterator[tuple[float, list[LayerConfig]]]:
    """What the layers are at each size that is smaller and possible."""
    dense = [layer.config for layer in network.layers]
    if any(config.op == "resize" for config in dense):
        return  # it computes with an image of one size whatever it is given
    with torch.no_grad():
        written = module(example).shape
    tried = {tuple(example.shape[2:])}
    for share in shares:
        size = sides(example.shape, share)
        if size in tried:
            continue
        tried.add(size)
        configs = _configs_at(module, example, size, written)
        if [_kind(config) for config in configs] == [_kind(config) for config in dense]:
            yield share, configs


def _configs_at(
    module: nn.Module, example: Tensor, size: tuple[int, ...], written: Sequence[int]
) -> list[LayerConfig]:
    """None of them where the network does not compute at this size what it does at its own."""
    image = shrunk(example, size)
    try:
        module = sharing_copy(module)
        if isinstance(module, OfOneSize):
            module.take_sides(size)
        with torch.no_grad():
            if module(image).shape != written:
                return []
        return graph_configs(export_onnx(module, image))
    except (*FAILURES, *_ONNX_FAILURES, CandidateError, UsageError):
        return []


def _kind(config: LayerConfig) -> tuple[object, ...]:
    """What of a layer is the same at every size: all but its image."""
    channels = config.in_shape[-1] if config.op == "linear" else config.in_shape[1]
    return config.op, channels, config.out_channels, config.groups, config.tail


def _resize(example: Tensor, size: tuple[int, int]) -> LayerConfig:
    shape = tuple(example.shape)
    return LayerConfig(op="resize", in_shape=shape, out_channels=shape[1], kernel=size)
