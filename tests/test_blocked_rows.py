"""Float rows of ONNX Runtime on x86: the operators that run between convolutions, and no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwloop.compress.describe import graph_configs
from hwloop.compress.export import export_onnx
from hwloop.device import state
from hwloop.records import LayerConfig
from hwloop.runtimes.blocked import block_of
from hwloop.runtimes.known import writing

BLOCK = block_of(state.isa())
REORDERS = ("ReorderInput", "ReorderOutput")

pytestmark = pytest.mark.skipif(
    BLOCK is None, reason=f"ONNX Runtime has no blocked kernels for {state.isa()}"
)


class Between(nn.Module):
    """A part between two convolutions."""

    def __init__(self, part: nn.Module, channels: tuple[int, int], *, adds: bool = False) -> None:
        super().__init__()
        self.before = nn.Conv2d(16, channels[0], 1)
        self.part = part
        self.after = nn.Conv2d(channels[1], 32, 1)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        found = self.part(x)
        return self.after(torch.relu(x + found) if self.adds else found)


def conv(inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


PARTS: dict[str, tuple[nn.Module, tuple[int, int], bool]] = {
    "plain": (nn.Sequential(conv(32, 64, 3), nn.ReLU()), (32, 64), False),
    "of odd widths": (nn.Sequential(conv(24, 40, 3), nn.ReLU()), (24, 40), False),
    "strided": (nn.Sequential(conv(32, 64, 3, stride=2), nn.ReLU()), (32, 64), False),
    "clipped": (nn.Sequential(conv(32, 48, 1), nn.ReLU6()), (32, 48), False),
    "depthwise": (nn.Sequential(conv(40, 40, 3, groups=40), nn.ReLU6()), (40, 40), False),
    "grouped": (nn.Sequential(conv(64, 64, 3, groups=4), nn.ReLU()), (64, 64), False),
    "thin": (nn.Sequential(conv(5, 32, 3), nn.ReLU()), (5, 32), False),
    "gated by itself": (nn.Sequential(conv(32, 64, 1), nn.SiLU()), (32, 64), False),
    "hard": (nn.Sequential(conv(32, 64, 1), nn.Hardswish()), (32, 64), False),
    "residual": (conv(32, 32, 3), (32, 32), True),
    "pooled": (nn.MaxPool2d(2), (32, 32), False),
}


def optimized(graph: bytes, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def kernels(model: onnx.ModelProto) -> Counter[tuple[Any, ...]]:
    """Operator, shape of its weights, group, activation, and how many tensors it reads."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    found: Counter[tuple[Any, ...]] = Counter()
    for node in model.graph.node:
        values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        weights = tuple(shapes[name] for name in node.input[1:2] if name in shapes)
        read = len([name for name in node.input if name])
        about = (values.get("group"), values.get("activation"), read)
        found[(node.domain, node.op_type, weights, *about)] += 1
    return found


def rows_of(name: str) -> tuple[bytes, list[LayerConfig]]:
    torch.manual_seed(0)
    part, channels, adds = PARTS[name]
    graph = export_onnx(Between(part, channels, adds=adds).eval(), torch.zeros(1, 16, 16, 16))
    return graph, graph_configs(graph)


@pytest.mark.parametrize("name", PARTS)
def test_rows_are_the_operators_that_run_in_the_network(name: str, tmp_path: Path) -> None:
    graph, configs = rows_of(name)
    within = kernels(optimized(graph, tmp_path))
    runtime, alone = writing("ort-x86", state.isa()), Counter[tuple[Any, ...]]()
    for config in configs:
        alone += kernels(optimized(runtime.row_graph(config), tmp_path))

    def without_reorders(found: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
        return Counter({key: n for key, n in found.items() if key[1] not in REORDERS})

    assert without_reorders(alone) == without_reorders(within)
    # At the network's ends the layout changes once each, which is nobody's row.
    changes = [
        sum(n for key, n in found.items() if key[1] in REORDERS) for found in (alone, within)
    ]
    assert changes[1] - changes[0] in (1, 2)


@pytest.mark.parametrize("name", PARTS)
def test_what_a_row_computes_is_finite(name: str) -> None:
    runtime = writing("ort-x86", state.isa())
    for config in rows_of(name)[1]:
        session = onnxruntime.InferenceSession(
            runtime.row_graph(config), providers=["CPUExecutionProvider"]
        )
        feeds = {t.name: np.ones(t.shape, np.float32) for t in session.get_inputs()}
        (output,) = session.run(None, feeds)
        assert np.isfinite(output).all()


def test_signals_are_not_kept_in_blocks() -> None:
    config = LayerConfig(
        op="conv", in_shape=(1, 32, 1, 50), out_channels=32, kernel=(1, 5), padding=(0, 2)
    )
    graph = onnx.load_from_string(writing("ort-x86", state.isa()).row_graph(config))
    assert [node.domain for node in graph.graph.node] == [""]


def test_other_cpus_have_rows_of_channels_first() -> None:
    config = rows_of("plain")[1][0]
    domains = {
        isa: {
            node.domain
            for node in onnx.load_from_string(writing(recipe, isa).row_graph(config)).graph.node
        }
        for recipe, isa in (("ort-x86", "avx2"), ("ort-x86", "baseline"), ("ort-arm", "asimd"))
    }
    assert domains == {"avx2": {"com.microsoft.nchwc"}, "baseline": {""}, "asimd": {""}}
