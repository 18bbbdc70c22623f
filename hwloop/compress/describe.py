"""What the search may know about a network: its layers, and the groups that change together.

The layers are read from the exported dense graph, because that is what the runtime executes; which
layers are coupled is looked for in the network itself (compress/coupling.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from torch import Tensor, nn

from hwloop.compress.branches import holder, residual_blocks, with_branches
from hwloop.compress.calls import weighted_calls
from hwloop.compress.coupled import Coupling
from hwloop.compress.coupling import couplings
from hwloop.compress.graph_reader import POOLS, GraphReader
from hwloop.compress.slices import Side
from hwloop.errors import UsageError
from hwloop.records import Group, Layer, LayerConfig, Network


def describe(module: nn.Module, example: Tensor, graph: bytes, *, name: str) -> Network:
    """The network's layers and decision groups in forward order.

    Args:
        module: the dense network, in eval mode.
        example: an input of the deployed shape.
        graph: the same network exported by :func:`hwloop.compress.export.export_onnx`.

    Raises:
        UsageError: the network cannot be traced, or has weighted operators outside modules.
    """
    reader = GraphReader(onnx.load_from_string(graph))
    nodes = reader.weighted
    calls = weighted_calls(module, example, count=len(nodes))
    if len(calls) != len(nodes):
        raise UsageError(
            f"{name}: {len(nodes)} convolutions and linear layers in the exported graph, "
            f"{len(calls)} in its modules",
            "use nn.Conv2d and nn.Linear modules instead of torch.nn.functional calls and cells",
        )
    for path, node in zip(calls, nodes, strict=True):
        if min(reader.shapes.get(node.input[0], (0,)), default=1) < 1:
            raise UsageError(
                f"{name}: the size of what {path} reads is not known from the exported graph",
                "reshape to numbers there: x.reshape(1, 49, 64) and not sizes that are computed",
            )
    fixed = {calls[index] for index in reader.output_weighted()}
    coupled = couplings(module, example, layers=set(calls), fixed=fixed)
    groups, group_of = _groups(calls, coupled)
    groups = with_branches(groups, residual_blocks(module, example))
    layers = _layers(reader, calls, group_of, groups, _inputs_by_place(coupled, group_of))
    shape = tuple(example.shape)
    return Network(name=name, input_shape=shape, layers=layers, groups=groups)


def weighted_nodes(graph: bytes) -> list[str]:
    """Names of the graph's weighted nodes, in the order of :func:`weighted_calls`."""
    return [node.name for node in GraphReader(onnx.load_from_string(graph)).weighted]


def graph_configs(graph: bytes) -> list[LayerConfig]:
    """The rows of an exported FP32 graph.

    The arithmetic of ``space`` must agree with them: a method's contract asks for nothing else.
    """
    reader = GraphReader(onnx.load_from_string(graph))
    return [reader.config(node) for node in reader.rows]


def _groups(
    calls: Sequence[str], coupled: Iterable[Coupling]
) -> tuple[tuple[Group, ...], dict[str, int]]:
    order = {path: index for index, path in reversed(list(enumerate(calls)))}
    members = [item for item in coupled if any(path in order for path in item.layers)]
    members.sort(key=lambda item: min(order[path] for path in item.layers if path in order))
    groups = []
    group_of: dict[str, int] = {}
    for index, item in enumerate(members):
        layers = tuple(sorted((p for p in item.layers if p in order), key=order.__getitem__))
        group_of.update(dict.fromkeys(layers, index))
        groups.append(
            Group(
                name=layers[0],
                layers=layers,
                channels=item.channels,
                prunable=item.prunable,
                bundle=item.bundle,
                fixed_by=item.fixed_by,
                block=layers[0].rpartition(".")[0],
            )
        )
    return tuple(groups), group_of


def _inputs_by_place(
    coupled: Iterable[Coupling], group_of: Mapping[str, int]
) -> dict[str, dict[int, int]]:
    """Layer → group that can change → inputs of the layer for each of its channels."""
    found: dict[str, dict[int, int]] = {}
    for item in coupled:
        group = next((group_of[path] for path in item.layers if path in group_of), None)
        if group is None or not item.prunable:
            continue
        for each in item.slices:
            if each.side is Side.INPUTS:
                places = sum(map(len, each.places.values()))
                of_layer = found.setdefault(each.path, {})
                of_layer[group] = of_layer.get(group, 0) + places // item.channels
    return found


def _layers(
    reader: GraphReader,
    calls: Sequence[str],
    group_of: dict[str, int],
    groups: tuple[Group, ...],
    by_place: Mapping[str, Mapping[int, int]],
) -> tuple[Layer, ...]:
    """Every row of the dense network, with the groups that it is given channels of.

    Args:
        by_place: layer → group that it reads → inputs for each channel: where they lie in its
            weights is known, whatever the graph says of the reshapes between.
    """
    path_of = dict(zip((node.name for node in reader.weighted), calls, strict=True))
    layers = []
    for node in reader.rows:
        path = path_of.get(node.name) or _scope_of(node.name)
        inputs: dict[int, int] = {}
        read = reader.read_by(node)
        for index, per_channel in reader.sources(read):
            group = group_of[calls[index]]
            own = per_channel * reader.width(index) / groups[group].channels
            if own.denominator == 1:  # else part of a split that cannot change
                inputs[group] = inputs.get(group, 0) + int(own)
        config = reader.config(node)
        if node.name in path_of and config.groups == 1:
            inputs.update(by_place.get(path, {}))
        out_group = group_of.get(path)
        # A pool has no path of its own: it goes with all that reads it.
        pools = node.op_type in POOLS
        goes_with = [calls[i] for i in reader.readers(node.output[0])] if pools else [path]
        layers.append(
            Layer(
                name=path,
                config=config,
                out_group=out_group,
                in_groups=tuple(sorted(inputs.items())),
                branch=holder(goes_with, groups),
                is_float=reader.is_float(node),
                reads_float=reader.chains.is_float(read),
            )
        )
    return tuple(layers)


def _scope_of(name: str) -> str:
    """Where in the network an operator is, by the exporter's name for it: ``/stage/stage.0/Add``.

    Parts of a sequential repeat its name.
    """
    found: list[str] = []
    for part in name.strip("/").split("/"):
        if found and part.startswith(f"{found[-1]}."):
            found[-1] = part
        else:
            found.append(part)
    return ".".join(found)
