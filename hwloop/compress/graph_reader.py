"""Reads layers, shapes and what is fused behind them from an exported FP32 graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from hwloop.compress.graph_chains import ALONE, NORMS, Chains
from hwloop.compress.graph_windows import as_image, rows_and_features, window
from hwloop.errors import UsageError
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import GraphIndex
from hwloop.runtimes.graph_shapes import attributes_of, with_shapes

WEIGHTED = {"Conv": "conv", "Gemm": "linear", "MatMul": "linear"}
OTHER_CHANNELS = ("ConvTranspose", "SpaceToDepth", "LSTM", "GRU", "RNN")
"""Operators without rows that write other channels than they read: no group's."""

POOLS = {"MaxPool": "maxpool", "AveragePool": "avgpool", "GlobalAveragePool": "globalavgpool"}


class GraphReader:
    """Reads layers, shapes and fused tails from an exported FP32 graph."""

    def __init__(self, model: Any) -> None:
        model, self.shapes = with_shapes(model)
        graph = model.graph
        self.graph = graph
        self.constants = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = tuple(node.attribute[0].t.dims)
        self.shapes = {**self.constants, **self.shapes}  # a layer may read a parameter
        self.index = GraphIndex(graph)
        self.weighted = [node for node in graph.node if self._is_weighted(node)]
        self._position = {node.name: number for number, node in enumerate(self.weighted)}
        self._sources: dict[str, list[tuple[int, Fraction]]] = {}
        self.chains = Chains(
            self.index,
            constants=self.constants,
            shapes=self.shapes,
            is_weighted=self._is_weighted,
        )
        self._behind = {node.name: self.chains.behind(node) for node in self.weighted}
        self.rows = list(self._rows())

    def _rows(self) -> Iterator[Any]:
        """Nodes that are rows of a table, in forward order."""
        taken = {name for fused in self._behind.values() for name in fused.nodes}
        for node in self.graph.node:
            if self._is_attention(node):
                taken.update(self.chains.within_attention(node))
        for node in self.graph.node:
            weighted, resizes = self._is_weighted(node), self._resizes_input(node)
            if weighted or resizes or self._is_pool(node) or self._is_attention(node):
                yield node
            elif node.name not in taken and self._stands_alone(node):
                self._behind[node.name] = self.chains.activation(node.output[0])
                taken.update(self._behind[node.name].nodes)
                yield node

    def _is_pool(self, node: Any) -> bool:
        """Of one or two dimensions: one across channels is of three, and has no row."""
        return node.op_type in POOLS and len(self.shapes.get(node.input[0], ())) <= 4

    def _stands_alone(self, node: Any) -> bool:
        """Whether a node computes with the channels of layers, and can be told as a row."""
        if node.op_type not in ALONE or not self.chains.computed(node):
            return False
        return bool(self.sources(self.read_by(node))) and bool(self._by_channels(node))

    def read_by(self, node: Any) -> str:
        """The tensor that tells what a row's node is given: channels, and in which precision.

        Of an attention these are the values; of a sum the part that comes straight from a layer.
        """
        if self._is_attention(node):
            return str(node.input[1])
        if node.op_type == "Concat":
            return str(node.output[0])
        read = self.chains.computed(node) or [str(node.input[0])]  # a parameter is not computed
        if node.op_type in ("Add", "Mul"):
            written = self.shapes.get(node.output[0])
            whole = [name for name in read if self.shapes.get(name) == written]
            plain = [name for name in whole if not self.chains.is_float(name)]
            return (plain or whole or read)[0]
        return read[0]

    def is_float(self, node: Any) -> bool:
        """Whether a row's node computes in base precision, whatever it reads."""
        if self._is_attention(node):
            return True
        return not self._is_weighted(node) and self.chains.is_float(node.output[0])

    def _by_channels(self, node: Any) -> tuple[int, ...]:
        """The shape of what a node that stands alone writes, as (N, C, ...); empty where it is told
        by something else than the channels of layers.
        """
        shape = self.shapes.get(node.output[0], ())
        sources = self.sources(self.read_by(node))
        channels = sum(self.width(index) * times for index, times in sources)
        if node.op_type == "LayerNormalization":
            return rows_and_features(shape) if shape and shape[-1] == channels else ()
        if len(shape) in (3, 4) and shape[1] == channels:
            return as_image(shape)
        if len(shape) > 1 and shape[-1] == channels and node.op_type != "Concat":
            return rows_and_features(shape)
        return ()

    def config(self, node: Any) -> LayerConfig:
        """The dense FP32 configuration of a row's node with its fused tail."""
        if node.op_type in ALONE:
            return self._alone(node)
        shape = self.shapes[node.input[0]]
        attributes = attributes_of(node)
        if self._is_attention(node):
            batch, heads, queries, keys = shape
            width = heads * self.shapes[node.input[1]][3]
            size = (batch, width, queries, keys)
            return LayerConfig(op="attention", in_shape=size, out_channels=width, groups=heads)
        if node.op_type == "Resize":
            height, width = self.shapes[node.output[0]][2:]
            less = (height, width)
            return LayerConfig(op="resize", in_shape=shape, out_channels=shape[1], kernel=less)
        if node.op_type in ("Gemm", "MatMul"):
            out = self._out_channels(node)
            # A linear layer over tokens is one over as many rows.
            return LayerConfig(
                op="linear",
                in_shape=rows_and_features(shape),
                out_channels=out,
                tail=self._behind[node.name].words,
            )
        if node.op_type == "GlobalAveragePool":
            image = as_image(shape)
            return LayerConfig(op="globalavgpool", in_shape=image, out_channels=shape[1])
        if len(shape) > 4:
            raise UsageError(
                f"{node.name.strip('/')} is a convolution in three dimensions",
                "hwloop knows those in one and two",
            )
        found = LayerConfig(
            op=WEIGHTED.get(node.op_type) or POOLS[node.op_type],
            in_shape=as_image(shape),
            out_channels=shape[1],
            **window(attributes),
        )
        if node.op_type in POOLS:
            return found
        return replace(
            found,
            out_channels=self._out_channels(node),
            groups=int(attributes.get("group", 1)),
            tail=self._behind[node.name].words,
        )

    def _alone(self, node: Any) -> LayerConfig:
        shape, fused = self._by_channels(node), self._behind[node.name].words
        if node.op_type == "Concat":
            return LayerConfig(op="concat", in_shape=shape, out_channels=shape[1], tail=fused)
        if node.op_type in NORMS:
            op = NORMS[node.op_type]
            return LayerConfig(op=op, in_shape=shape, out_channels=shape[1], tail=fused)
        tail = (*self.chains.words_of(node), *fused)
        return LayerConfig(op="elementwise", in_shape=shape, out_channels=shape[1], tail=tail)

    def sources(self, tensor: str) -> list[tuple[int, Fraction]]:
        """(index of the weighted node, inputs per channel) for all that feed a tensor."""
        if tensor not in self._sources:
            self._sources[tensor] = self._found_sources(tensor)
        return self._sources[tensor]

    def _found_sources(self, tensor: str) -> list[tuple[int, Fraction]]:
        node = self.index.producers.get(tensor)
        if node is None:
            return []
        if self._is_weighted(node):
            return [(self._position[node.name], Fraction(1))]
        dynamic = self.chains.computed(node)
        if node.op_type in OTHER_CHANNELS or not dynamic:
            return []
        if node.op_type == "Concat":
            return self._concatenated(node, [(name, self.sources(name)) for name in dynamic])
        read = self._passed_on(dynamic, tensor)
        found = self.sources(read)
        share = self._share(node, read, tensor, found)
        return [(index, times * share) for index, times in found] if share else []

    def _passed_on(self, dynamic: Sequence[str], tensor: str) -> str:
        """Of what a node reads, that whose channels it writes: not a mask, and not a gate."""
        written = self.shapes.get(tensor)
        known = [name for name in dynamic if self.sources(name)]
        whole = [name for name in known if self.shapes.get(name) == written]
        return (whole or known or list(dynamic))[0]

    def _share(
        self, node: Any, read: str, tensor: str, sources: list[tuple[int, Fraction]]
    ) -> Fraction:
        """Features of what a node writes for each that it reads; 0 where they are no channels."""
        before, after = self.shapes.get(read, ()), self.shapes.get(tensor, ())
        if node.op_type == "DepthToSpace":
            size = next(item.i for item in node.attribute if item.name == "blocksize")
            return Fraction(1, size**2)
        channels = sum(self.width(index) * times for index, times in sources)
        if node.op_type in ("Flatten", "Reshape"):
            flat = len(after) == 2 < len(before) and after[1] == math.prod(before[1:])
            tokens = before[1:-1] if flat and before[1] != channels == before[-1] else before[2:]
            return Fraction(math.prod(tokens) if flat else 1)
        if node.op_type not in ("Slice", "Split", "Gather"):
            return Fraction(1)
        if len(before) != len(after):  # one of them, or of the positions
            return Fraction(0 if channels in before and channels not in after else 1)
        sizes = zip(before, after, strict=True)
        part = next((own for size, own in sizes if size != own and size == channels), None)
        return Fraction(1) if part is None else part / Fraction(channels)

    def _concatenated(
        self, node: Any, parts: list[tuple[str, list[tuple[int, Fraction]]]]
    ) -> list[tuple[int, Fraction]]:
        """Of the channels; or of one part, where it is positions that are put side by side."""
        axis = next(item.i for item in node.attribute if item.name == "axis")
        for name, sources in parts:
            shape = self.shapes.get(name, ())
            channels = sum(self.width(index) * times for index, times in sources)
            if sources and shape and shape[axis] != channels:
                return sources
        return [item for _, sources in parts for item in sources]

    def width(self, index: int) -> int:
        """Channels that a weighted node writes."""
        return self._out_channels(self.weighted[index])

    def _out_channels(self, node: Any) -> int:
        dims = self.constants[node.input[1]]
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        return int(dims[0] if node.op_type == "Conv" or transposed else dims[-1])

    def readers(self, tensor: str) -> set[int]:
        """Weighted nodes that a tensor reaches with no other one between."""
        found: set[int] = set()
        reached, waiting = {tensor}, [tensor]
        while waiting:
            for user in self.index.users.get(waiting.pop(), ()):
                if self._is_weighted(user):
                    found.add(self._position[user.name])
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
            return {self._position[node.name]}
        dynamic = self.chains.computed(node)
        return {index for name in dynamic for index in self._reaching(name, seen)}

    def _is_weighted(self, node: Any) -> bool:
        return node.op_type in WEIGHTED and node.input[1] in self.constants

    def _resizes_input(self, node: Any) -> bool:
        """Whether it makes the image that the network is given a smaller one."""
        is_given = node.op_type == "Resize" and node.input[0] == self.graph.input[0].name
        return is_given and len(self.shapes.get(node.input[0], ())) == 4

    def _is_attention(self, node: Any) -> bool:
        """The product of a softmax, (N, heads, queries, keys), with values of as many heads."""
        if node.op_type != "MatMul" or node.input[1] in self.constants:
            return False
        source = self.index.producers.get(node.input[0])
        shapes = [self.shapes.get(name, ()) for name in node.input]
        if source is None or source.op_type != "Softmax":
            return False
        return all(len(shape) == 4 and min(shape) > 0 for shape in shapes)
