"""Which additions a row has is what the runtime makes of a graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from method_contract import NETWORKS

from hwloop.compress.describe import graph_configs
from hwloop.compress.export import export_onnx


@pytest.mark.parametrize("name", ["demo", "resnet", "mobilenet"])
def test_the_additions_in_the_rows_are_those_that_onnx_runtime_fuses(
    name: str, tmp_path: Path
) -> None:
    factory, shape = NETWORKS[name]
    graph = export_onnx(factory().eval(), torch.randn(shape))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    convolutions = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    fused = sum(len(node.input) > 3 and bool(node.input[3]) for node in convolutions)
    configs = [config for config in graph_configs(graph) if config.op == "conv"]
    assert len(convolutions) == len(configs)
    assert fused == sum("add" in config.tail for config in configs) > 0
