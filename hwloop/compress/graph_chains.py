"""What of an exported graph a runtime fuses behind an operator, and what stands alone.

An activation, an addition or a bias behind a convolution costs no kernel of its own; a norm, an
addition of tokens or a gate does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hwloop.runtimes.graph import ACTIVATIONS, GraphIndex
from hwloop.runtimes.qdq_ort import FOLLOWERS, GIVES_FLOATS

NORMS = {"LayerNormalization": "layernorm", "BatchNormalization": "batchnorm"}
ARITHMETIC = ("Add", "Mul")
ALONE = (*NORMS, *ARITHMETIC, *ACTIVATIONS, "Clip", "Concat")
"""Operators that cost a kernel where nothing takes them in."""

FLOAT = (*NORMS, *ARITHMETIC, "Sub", "Div", "Softmax", "InstanceNormalization", "ReduceMean")
"""Operators that stay in base precision, whatever they read; an addition may follow."""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What goes with an operator.

    Attributes:
        words: of a row's tail, in order.
        nodes: names of the operators.
    """

    words: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    def __add__(self, other: Fused) -> Fused:
        return Fused(words=self.words + other.words, nodes=self.nodes + other.nodes)


class Chains:
    """Follows chains of operators in one graph.

    Args:
        constants: shapes of the graph's constants by name.
        shapes: of its values.
        is_weighted: whether a node is a convolution or a linear layer.
    """

    def __init__(
        self,
        index: GraphIndex,
        *,
        constants: Mapping[str, tuple[int, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        is_weighted: Callable[[Any], bool],
    ) -> None:
        self.index = index
        self.constants = constants
        self.shapes = shapes
        self._is_weighted = is_weighted

    def behind(self, node: Any) -> Fused:
        """What runtimes fuse behind a weighted node: bias, one residual add, activation."""
        found = Fused(words=("bias",) if len(node.input) > 2 and node.input[2] else ())
        output = node.output[0]
        add = self._only_user(output, "Add")
        if node.op_type == "MatMul" and add is not None and self._is_bias(add):
            found += Fused(words=("bias",), nodes=(add.name,))
            output = add.output[0]
        if node.op_type == "Conv" and add is not None and self._closes(add, output):
            found += Fused(words=("add",), nodes=(add.name,))
            output = add.output[0]
        return found + self.activation(output)

    def activation(self, tensor: str) -> Fused:
        """An activation that alone reads a tensor, or is all that does."""
        found = Fused()
        for op, word in {**ACTIVATIONS, "Clip": "clip:0:6"}.items():
            user = self._only_user(tensor, op)
            if user is not None:
                found += Fused(words=(word,), nodes=(user.name,))
        return found + self._gated(tensor)

    def words_of(self, node: Any) -> tuple[str, ...]:
        """What an operator that stands alone does, as the tail of a row."""
        if node.op_type not in ARITHMETIC:
            return (ACTIVATIONS.get(node.op_type, "clip:0:6"),)
        shapes = {self.shapes.get(name, self.constants.get(name)) for name in node.input}
        return ("add",) if node.op_type == "Add" and len(shapes) == 1 else ("scale",)

    def computed(self, node: Any) -> list[str]:
        """What a node reads that is no constant."""
        return [name for name in node.input if name and name not in self.constants]

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor is computed in base precision, whatever the groups' precisions.

        What a linear layer gives is: see :data:`hwloop.runtimes.qdq_ort.GIVES_FLOATS`.
        """
        node = self.index.producers.get(tensor)
        if node is None or self._is_weighted(node):
            return node is not None and node.op_type in GIVES_FLOATS
        if node.op_type == "Add" and self.follows(tensor):
            return False
        if node.op_type in FLOAT and not self._is_gated(node):
            return True
        read = self.computed(node)
        if node.op_type == "Concat":
            return bool(read) and all(map(self.is_float, read))
        return bool(read) and self.is_float(read[0])

    def follows(self, tensor: str) -> bool:
        """Whether a tensor is in int8 where all layers are."""
        node = self.index.producers.get(tensor)
        if node is None or self._is_weighted(node):
            return node is not None and node.op_type not in GIVES_FLOATS
        read = self.computed(node)
        return node.op_type in FOLLOWERS and bool(read) and all(map(self.follows, read))

    def within_attention(self, product: Any) -> Iterator[str]:
        """Names of the operators between the products of an attention, which is one row.

        Args:
            product: of its softmax and its values.
        """
        waiting = [self.index.producers.get(product.input[0])]
        seen: set[str] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node.op_type == "MatMul" or node.name in seen:
                continue
            seen.add(node.name)  # a mask may be computed by many paths
            yield node.name
            waiting += [self.index.producers.get(name) for name in self.computed(node)]

    def _is_gated(self, node: Any) -> bool:
        """Whether a product is an activation's last step."""
        if node.op_type != "Mul":
            return False
        return any(node.name in self._gated(name).nodes for name in self._sources(node))

    def _sources(self, node: Any) -> list[str]:
        """Tensors that an activation may be of, of which a node is the last step."""
        found = []
        for name in self.computed(node):
            found.append(name)
            producer = self.index.producers.get(name)
            found += [] if producer is None else self.computed(producer)
        return found

    def _gated(self, tensor: str) -> Fused:
        """An activation that multiplies a tensor with a gate of itself."""
        users = self.index.users.get(tensor, [])
        ops = sorted(user.op_type for user in users)
        if ops == ["Mul", "Sigmoid"]:
            gate = next(user for user in users if user.op_type == "Sigmoid")
            product = next(user for user in users if user.op_type == "Mul")
            if gate.output[0] not in product.input:
                return Fused()
            return Fused(words=("silu",), nodes=(gate.name, product.name))
        for user in users if len(users) == 2 else []:
            scaled = user.op_type in ("Div", "Mul") and user.output[0]
            if scaled and self._only_user(scaled, "Erf") is not None:
                return Fused(words=("gelu",), nodes=tuple(self._to_product(user)))
        return Fused()

    def _to_product(self, scaled: Any) -> Iterator[str]:
        """The steps of a GELU from its first one on: x / sqrt(2), erf, + 1, * x, / 2."""
        node, products = scaled, 0
        while node is not None:
            yield node.name
            products += node.op_type == "Mul" and node is not scaled
            following = self.index.only_user(node.output[0])
            is_half = following is not None and len(self.computed(following)) == 1
            node = following if not products or (products == 1 and is_half) else None

    def _is_bias(self, add: Any) -> bool:
        """A constant for each feature."""
        return any(len(self.constants.get(name, ())) == 1 for name in add.input)

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

    def _only_user(self, tensor: str, op: str) -> Any:
        user = self.index.only_user(tensor)
        return user if user is not None and user.op_type == op else None
