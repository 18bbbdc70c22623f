"""What the search may know about a network: its layers, and the groups that change together.

The layers are read from the exported dense graph, because that is what the runtime executes; which
layers are coupled comes from torch-pruning's dependency graph (compress/coupling.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import onnx
from torch import Tensor, nn

from hwloop.compress.branches import holder, residual_blocks, with_branches
from hwloop.compress.calls import weighted_calls
from hwloop.compress.coupling import Coupling, couplings
from hwloop.errors import UsageError
from hwloop.records import Group, Layer, LayerConfig, Network
from hwloop.runtimes.graph import ACTIVATIONS, GraphIndex

WEIGHTED = {"Conv": "conv", "Gemm": "linear", "MatMul": "linear"}
POOLS = {"MaxPool": "maxpool", "AveragePool": "avgpool", "GlobalAveragePool": "globalavgpool"}


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
    calls = weighted_calls(module, example)
    nodes = reader.weighted
    if len(calls) != len(nodes):
        raise UsageError(
            f"{name}: {len(nodes)} convolutions and linear layers in the exported graph, "
            f"{len(calls)} in its modules",
            "use nn.Conv2d and nn.Linear modules instead of torch.nn.functional calls",
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
    layers = _layers(reader, calls, group_of, groups)
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


class GraphReader:
    """Reads layers, shapes and fused tails from an exported FP32 graph."""

    def __init__(self, model: Any) -> None:
        self.shapes = _shapes(model.graph)
        if not all(min(shape, default=1) > 0 for shape in self.shapes.values()):
            # Sizes that the graph computes, as `x.flatten(2)` does, are only found by following
            # the numbers as well; the file itself stays as it was exported.
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
            self.shapes = _shapes(model.graph)
        graph = model.graph
        self.graph = graph
        self.constants = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        self.index = GraphIndex(graph)
        self.weighted = [node for node in graph.node if self._is_weighted(node)]
        self.rows = [
            node for node in graph.node if self._is_weighted(node) or node.op_type in POOLS
        ]

    def config(self, node: Any) -> LayerConfig:
        """The dense FP32 configuration of a weighted or pooling node with its fused tail."""
        shape = self.shapes[node.input[0]]
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type in ("Gemm", "MatMul"):
            dims = self.constants[node.input[1]]
            out = dims[0] if attributes.get("transB") else dims[-1]
            # A linear layer over tokens is one over as many rows.
            rows = 1
            for size in shape[:-1]:
                rows *= size
            tail = self._tail(node)
            return LayerConfig(op="linear", in_shape=(rows, shape[-1]), out_channels=out, tail=tail)
        if node.op_type == "GlobalAveragePool":
            return LayerConfig(op="globalavgpool", in_shape=shape, out_channels=shape[1])
        kernel = tuple(attributes["kernel_shape"])
        pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
        window = LayerConfig(
            op=WEIGHTED.get(node.op_type) or POOLS[node.op_type],
            in_shape=shape,
            out_channels=shape[1],
            kernel=kernel,
            stride=tuple(attributes.get("strides", (1, 1))),
            padding=pads[: len(kernel)],
        )
        if node.op_type in POOLS:
            return window
        return replace(
            window,
            out_channels=self.constants[node.input[1]][0],
            groups=int(attributes.get("group", 1)),
            tail=self._tail(node),
        )

    def sources(self, tensor: str, per_channel: int = 1) -> list[tuple[int, int]]:
        """(index of the weighted node, inputs per channel) for all that feed a tensor."""
        node = self.index.producers.get(tensor)
        if node is None:
            return []
        if self._is_weighted(node):
            return [(self.weighted.index(node), per_channel)]
        dynamic = [name for name in node.input if name and name not in self.constants]
        if node.op_type in ("Flatten", "Reshape"):
            before = self.shapes.get(dynamic[0], ())
            if len(before) == 4 and len(self.shapes.get(tensor, ())) == 2:
                per_channel *= before[2] * before[3]
        branches = dynamic if node.op_type == "Concat" else dynamic[:1]
        return [item for name in branches for item in self.sources(name, per_channel)]

    def readers(self, tensor: str) -> set[int]:
        """Weighted nodes that a tensor reaches with no other one between."""
        found: set[int] = set()
        reached, waiting = {tensor}, [tensor]
        while waiting:
            for user in self.index.users.get(waiting.pop(), ()):
                if self._is_weighted(user):
                    found.add(self.weighted.index(user))
                    continue
                waiting += [name for name in user.output if name not in reached]
                reached.update(user.output)
        return found

    def output_weighted(self) -> set[int]:
        """Weighted nodes whose channels reach an output of the network: their width is fixed."""
        found: set[int] = set()
        for output in self.graph.output:
            found.update(self._reaching(output.name, set()))
        return found

    def _reaching(self, tensor: str, seen: set[str]) -> set[int]:
        node = self.index.producers.get(tensor)
        if node is None or tensor in seen:
            return set()
        seen.add(tensor)
        if self._is_weighted(node):
            return {self.weighted.index(node)}
        dynamic = [name for name in node.input if name and name not in self.constants]
        return {index for name in dynamic for index in self._reaching(name, seen)}

    def _tail(self, node: Any) -> tuple[str, ...]:
        """What ONNX Runtime fuses behind a weighted node: bias, one residual add, activation."""
        tail = ["bias"] if len(node.input) > 2 and node.input[2] else []
        output = node.output[0]
        if node.op_type == "Conv":
            add = self._only_consumer(output, "Add")
            if add is not None and self._closes(add, output):
                tail.append("add")
                output = add.output[0]
        for op, word in ACTIVATIONS.items():
            activation = self._only_consumer(output, op)
            if activation is not None:
                tail.append(word)
        clip = self._only_consumer(output, "Clip")
        if clip is not None:
            tail.append("clip:0:6")
        return tuple(tail)

    def _closes(self, add: Any, tensor: str) -> bool:
        """True when ``tensor`` is the last computed operand: its producer takes the add in."""
        other = next((name for name in add.input if name != tensor), None)
        if other is None or other in self.constants:
            return False
        if self.shapes.get(other) != self.shapes.get(tensor):
            return False
        producer = self.index.producers.get(other)
        if producer is None or producer.op_type != "Conv":
            return True
        if len(self.index.users.get(other, ())) > 1:
            return True
        own = self.index.producers[tensor]
        return bool(self.index.order[own.name] > self.index.order[producer.name])

    def _only_consumer(self, tensor: str, op: str) -> Any:
        user = self.index.only_user(tensor)
        return user if user is not None and user.op_type == op else None

    def _is_weighted(self, node: Any) -> bool:
        return node.op_type in WEIGHTED and node.input[1] in self.constants


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
                block=layers[0].rpartition(".")[0],
            )
        )
    return tuple(groups), group_of


def _layers(
    reader: GraphReader,
    calls: Sequence[str],
    group_of: dict[str, int],
    groups: tuple[Group, ...],
) -> tuple[Layer, ...]:
    path_of = dict(zip((node.name for node in reader.weighted), calls, strict=True))
    layers = []
    for node in reader.rows:
        path = path_of.get(node.name, node.name.strip("/"))
        inputs: dict[int, int] = {}
        for index, per_channel in reader.sources(node.input[0]):
            group = group_of[calls[index]]
            dense = reader.constants[reader.weighted[index].input[1]]
            out = dense[0] if reader.weighted[index].op_type != "MatMul" else dense[-1]
            inputs[group] = inputs.get(group, 0) + per_channel * out // groups[group].channels
        out_group = group_of.get(path)
        weighted = path in group_of
        # A pool has no path of its own: it goes with all that reads it.
        goes_with = [path] if weighted else [calls[i] for i in reader.readers(node.output[0])]
        layers.append(
            Layer(
                name=path,
                config=reader.config(node),
                out_group=out_group,
                in_groups=tuple(sorted(inputs.items())),
                branch=holder(goes_with, groups),
            )
        )
    return tuple(layers)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Of every value that the graph says something about; 0 where a size is not known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: _dims(value) for value in values}


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
