"""An exported graph as a file: what all of them have in common, and how one is told from others."""

from __future__ import annotations

import hashlib
from typing import Any

from hwloop.parsing import to_json
from hwloop.records import LayerConfig

OPSET = 19
INPUT, OUTPUT = "input", "output"
ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "HardSwish": "hardswish", "Tanh": "tanh"}
"""ONNX operators that are fused behind others, with the words for them in rows."""


class GraphIndex:
    """Who writes and who reads each tensor of a graph, as it is now.

    Attributes:
        producers: the node that computes a tensor, by the tensor's name.
        users: the nodes that read it, once for each time that they do.
        order: position of each node, by the node's name.
    """

    def __init__(self, graph: Any) -> None:
        self.producers = {output: node for node in graph.node for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.order = {node.name: index for index, node in enumerate(graph.node)}

    def only_user(self, tensor: str) -> Any:
        """The node that alone reads a tensor, or None."""
        users = self.users.get(tensor, [])
        return users[0] if len(users) == 1 else None


class OnnxModel:
    """An ONNX file on its way to a device, addressed by its content.

    Attributes:
        data: the file's bytes.
        configs: the rows it consists of; only the simulated device reads them.
        row: it is one row of the table, so TensorRT may choose the layout of its inputs and
            outputs, as it does for a block within a network.
    """

    def __init__(
        self, data: bytes, configs: tuple[LayerConfig, ...] = (), *, row: bool = False
    ) -> None:
        self.data = data
        self.configs = configs
        self.row = row
        self.digest = hashlib.sha256(data).hexdigest()

    @property
    def key(self) -> str:
        """Its name on the device: the same file as a row is another engine."""
        return f"{self.digest}-row" if self.row else self.digest

    @property
    def hints(self) -> dict[str, Any]:
        """What the device is told about it."""
        found: dict[str, Any] = {"configs": [to_json(config) for config in self.configs]}
        if any(config.precision == "fp16" for config in self.configs):
            found["precision"] = "fp16"  # an engine without any would not be what was asked for
        if self.row:
            found["row"] = True
        return found
