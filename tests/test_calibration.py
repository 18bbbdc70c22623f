"""Ranges for INT8: those of the real inputs, found within the graph, and no files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import quantize
from onnx import helper
from onnxruntime import quantization
from torch import Tensor, nn

from hwloop.compress.describe import weighted_nodes
from hwloop.compress.export import export_onnx
from hwloop.errors import CandidateError
from hwloop.runtimes import runtime
from hwloop.runtimes.calibration import ranges
from hwloop.runtimes.qdq_ort import GIVES_FLOATS

INPUTS = np.random.default_rng(0).standard_normal((6, 3, 12, 12)).astype(np.float32)


class Small(nn.Module):
    """A residual block, its pool, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def graph() -> bytes:
    torch.manual_seed(0)
    return export_onnx(Small().eval(), torch.zeros(1, 3, 12, 12))


def computed(graph: bytes) -> dict[str, np.ndarray]:
    """Every tensor of the graph for every input, (N, ...) by name."""
    model = onnx.load_from_string(graph)
    names = [node.output[0] for node in model.graph.node if node.op_type != "Constant"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [session.run(None, {"input": INPUTS[i : i + 1]}) for i in range(len(INPUTS))]
    return {name: np.concatenate(values) for name, *values in zip(names, *found, strict=True)}


def test_ranges_are_the_extremes_of_what_the_graph_computes(graph: bytes) -> None:
    tensors = {"input": INPUTS, **computed(graph)}
    found = ranges(onnx.load_from_string(graph), tensors, INPUTS, optimized=False)
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert tuple(found[name]) == (values.min(), values.max())


def test_a_graph_for_two_inputs_at_once_is_calibrated_two_by_two() -> None:
    graph = export_onnx(Small().eval(), torch.zeros(2, 3, 12, 12))
    found = ranges(onnx.load_from_string(graph), ["input"], INPUTS[:3], optimized=True)
    assert tuple(found["input"]) == (INPUTS[:3].min(), INPUTS[:3].max())
    assert quantize(graph, weighted_nodes(graph), calibration=INPUTS, recipe="ort-x86", isa="")


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (2, 1, 3, 7), (5, 2, 11, 11)])
def test_one_wrong_value_of_many_fails_the_candidate(
    graph: bytes, place: tuple[int, int, int, int]
) -> None:
    inputs = INPUTS.copy()
    inputs[place] = np.nan
    with pytest.raises(CandidateError, match="not finite"):
        ranges(onnx.load_from_string(graph), ["input"], inputs, optimized=True)


def test_a_range_that_one_input_breaks_fails_the_candidate() -> None:
    """The logarithm of a mean: not a number for the one input whose mean is negative."""
    log = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input"], ["mean"]),
            helper.make_node("Log", ["mean"], ["log"]),
        ],
        "log",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, (1, 3, 12, 12))],
        [helper.make_tensor_value_info("log", onnx.TensorProto.FLOAT, (1, 1, 1, 1))],
    )
    model = helper.make_model(log, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    inputs = np.abs(INPUTS)
    assert np.isfinite(ranges(model, ["log"], inputs, optimized=True)["log"]).all()
    inputs[2] *= -1
    with pytest.raises(CandidateError, match="'log' is not finite"):
        ranges(model, ["log"], inputs, optimized=True)


@pytest.mark.parametrize("recipe", ["ort-x86", "tensorrt"])
def test_a_range_without_end_fails_the_candidate(graph: bytes, recipe: str) -> None:
    for wrong in (np.inf, np.nan):
        with pytest.raises(CandidateError, match=r"compress: INT8: the range of .* not finite"):
            quantize(
                graph,
                weighted_nodes(graph),
                calibration=np.full_like(INPUTS, wrong),
                recipe=recipe,
                isa="",
            )


@pytest.mark.parametrize("float_stem", [False, True])
def test_the_file_is_the_one_that_onnx_runtimes_own_tool_writes(
    graph: bytes, tmp_path: Path, float_stem: bool
) -> None:
    model = onnx.load_from_string(graph)

    class Reader(quantization.CalibrationDataReader):
        feeds = iter([{"input": INPUTS[i : i + 1]} for i in range(len(INPUTS))])

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    chosen = [node for node in model.graph.node if node.op_type != "Constant"]
    weighted = weighted_nodes(graph)
    if float_stem:  # the addition and what follows it then read floats
        weighted = weighted[1:]
        chosen = [node for node in chosen if node.name in weighted]
    quantization.quantize_static(
        model,
        tmp_path / "int8.onnx",
        Reader(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=[node.name for node in chosen],
        op_types_to_quantize=sorted({node.op_type for node in chosen}),
        extra_options={"OpTypesToExcludeOutputQuantization": list(GIVES_FLOATS)},
    )
    made = quantize(graph, weighted, calibration=INPUTS, recipe="ort-arm", isa="")
    assert made == (tmp_path / "int8.onnx").read_bytes()


def test_a_graph_that_no_file_can_hold_fails_the_candidate(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "LARGEST_BYTES", 1000)
    with pytest.raises(CandidateError, match=r"compress: INT8: the graph has 0\.0 GB"):
        quantize(graph, weighted_nodes(graph), calibration=INPUTS, recipe="ort-x86", isa="")


ENDLESS = """
import numpy, torch
from hwloop.compress.export import export_onnx
from hwloop.compress.describe import weighted_nodes
from hwloop.runtimes.known import writing

module, example = torch.nn.Conv2d(3, 64, 5).eval(), torch.zeros(1, 3, 64, 64)
inputs = numpy.zeros((64, 3, 64, 64), numpy.float32)
while True:
    graph = export_onnx(module, example)
    writing("ort-x86").quantized(graph, weighted_nodes(graph), calibration=inputs)
    print("once", flush=True)
"""


def test_a_killed_quantization_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "once\n"
        seen: set[Path] = set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            seen.update(tmp_path.iterdir())
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert not seen
    assert not list(tmp_path.iterdir())
