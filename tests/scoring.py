"""A network with large outputs that costs nothing to run, and what scoring it takes of memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwloop.task import ClassificationTask
from hwloop.tasks.splits import Indices

MAPS = (21, 128, 128)
POLL_S = 0.01


def maps_model() -> bytes:
    """Inputs (1, 3, 224, 224), outputs (1, 21, 128, 128): the mean of each input, everywhere."""
    shapes = {"input": (1, 3, 224, 224), "output": (1, *MAPS)}
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(shapes["output"], np.int64), "shape"),
        onnx.numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
    ]
    nodes = [
        onnx.helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=1),
        onnx.helper.make_node("Expand", ["mean", "shape"], ["output"]),
    ]
    graph = onnx.helper.make_graph(nodes, "maps", ends[:1], ends[1:], constants)
    opsets: Any = [onnx.helper.make_opsetid("", 19)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


class MapsSplit:
    """Images of one value each, made when they are read; that value is the target of each pixel."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.as_tensor(np.asarray(indices)) % 7
        images = values.float()[:, None, None, None].expand(-1, 3, 224, 224).contiguous()
        return images, values[:, None, None].expand(-1, *MAPS[1:]).to(torch.uint8)

    def digests(self) -> frozenset[str]:
        return frozenset(str(index) for index in range(self.count))


class MapsTask(ClassificationTask):
    """Its metric reads one input at a time, as one of somebody with little memory would."""

    def __init__(self, count: int) -> None:
        self.split = MapsSplit(count)

    def search(self) -> MapsSplit:
        return self.split

    def metric(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        right = [
            float((maps[0] == wanted).mean()) for maps, wanted in zip(outputs, targets, strict=True)
        ]
        return float(np.mean(right))


class Peak:
    """How far a process's memory rises above where it was.

    Attributes:
        anon_bytes: memory of its own.
        resident_bytes: with the pages of mapped files, which are the kernel's cache.
    """

    def __init__(self, pid: int) -> None:
        self.anon_bytes = self.resident_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._start = self._read()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            anon, resident = self._read()
            self.anon_bytes = max(self.anon_bytes, anon - self._start[0])
            self.resident_bytes = max(self.resident_bytes, resident - self._start[1])

    def _read(self) -> tuple[int, int]:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        return int(found["RssAnon"]) << 10, int(found["VmRSS"]) << 10
