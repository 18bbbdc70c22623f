"""OpenVINO's graphs: what was chosen is what runs, in a network and in a row of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from graphs import row_onnx, weights
from test_quantize import INT8

from hwloop.compress.apply import quantized
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.measure.table import EMPTY, REFERENCE
from hwloop.records import Action, Candidate, LayerConfig, Network
from hwloop.runtimes.known import writing
from hwloop.runtimes.rowkinds import INT8_KINDS, kind_of
from hwloop.task import load_model
from hwloop.tasks.load import load_task

openvino = pytest.importorskip("openvino", reason='pip install "hwloop[openvino]"')

RECIPE = "openvino"
MOVES = ("Reorder", "Transpose")
FLOAT = {"precision_in": "fp32", "precision": "fp32", "precision_out": "fp32"}


def worker() -> Any:
    """The worker's own half, which needs the package."""
    from hwloop.device.ov import OpenVinoRuntime

    return OpenVinoRuntime({"threads": 1})


def precisions(graph: bytes, kind: str) -> Counter[str]:
    """In what the operators of one kind compute."""
    found = [op.get_rt_info() for op in worker().build(graph, {}).get_runtime_model().get_ops()]
    said = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in found]
    return Counter(precision for layer, precision in said if layer == kind)


def compiled(graph: bytes) -> list[str]:
    """Types of the operators that the compiled graph holds, whether they take time or not."""
    model = worker().build(graph, {}).get_runtime_model()
    return [op.get_rt_info()["layerType"].astype(str) for op in model.get_ops()]


def executed(graph: bytes) -> list[str]:
    """Types of the operators that take a microsecond or more; those fused or free take none."""
    core = openvino.Core()
    core.set_property("CPU", {"PERF_COUNT": True})
    hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(graph), "CPU", hints)
    request = model.create_infer_request()
    for port in model.inputs:
        kind = np.uint8 if port.element_type == openvino.Type.u8 else np.float32
        request.set_tensor(port, openvino.Tensor(np.ones(tuple(port.get_shape()), kind)))
    request.infer()
    ran = [item for item in request.profiling_info if item.status == item.Status.EXECUTED]
    idle = ("Constant", "Parameter", "Result")
    return [item.node_type for item in ran if item.node_type not in idle]


# ---------------------------------------------------------------------------- whole networks


@pytest.fixture(scope="module")
def demo() -> tuple[torch.nn.Module, torch.Tensor, bytes, Network, np.ndarray]:
    task = load_task("demo")
    module, example = load_model(task, None), task.example()
    graph = export_onnx(module, example)
    inputs = task.train().batch(range(32))[0].numpy()
    return module, example, graph, describe(module, example, graph, name="demo"), inputs


def candidate_graph(demo: tuple, chosen: set[str], isa: str = "avx2") -> tuple[bytes, int]:
    """The demo with some groups in int8, and how many convolutions that are."""
    module, example, graph, network, inputs = demo
    actions = tuple(INT8 if g.name in chosen else Action() for g in network.groups)
    layers = {layer for g in network.groups if g.name in chosen for layer in g.layers}
    made = quantized(
        module,
        example,
        graph,
        network=network,
        candidate=Candidate(actions=actions),
        calibration=inputs,
        runtime=writing(RECIPE, isa),
    )
    return made, len(layers - {"fc"})


def mixes(groups: list[str]) -> dict[str, set[str]]:
    return {
        "all": set(groups),
        "none": set(),
        "every second": set(groups[1::2]),
        "the others": set(groups[::2]),
        "all but the first": set(groups[1:]),
        "all but one in the middle": set(groups) - {groups[6]},
    }


@pytest.mark.parametrize("mix", mixes(["?"] * 7))
def test_an_int8_group_runs_in_int8_and_a_float_group_in_float(demo: tuple, mix: str) -> None:
    chosen = mixes([group.name for group in demo[3].groups])[mix]
    graph, int8 = candidate_graph(demo, chosen)
    wanted = {"u8": int8, "f32": 21 - int8}
    assert precisions(graph, "Convolution") == {key: n for key, n in wanted.items() if n}


def test_an_int8_file_gives_what_the_float_file_does(demo: tuple) -> None:
    inputs = demo[4][:8]
    graph, _ = candidate_graph(demo, {group.name for group in demo[3].groups}, isa="avx512_vnni")
    runtime = worker()
    dense = runtime.infer(runtime.build(demo[2], {}), inputs)[0]
    small = runtime.infer(runtime.build(graph, {}), inputs)[0]
    assert np.isfinite(small).all()
    assert (small.argmax(1) == dense.argmax(1)).all()
    assert np.abs(small - dense).max() < 0.1 * np.abs(dense).max()


def test_weights_have_seven_bits_where_sums_of_eight_would_saturate(demo: tuple) -> None:
    everything = {group.name for group in demo[3].groups}

    def largest(isa: str) -> int:
        values = weights(candidate_graph(demo, everything, isa)[0]).values()
        return max(int(np.abs(v.astype(np.int32)).max()) for v in values if v.dtype == np.int8)

    assert largest("avx2") <= 64
    assert largest("avx512f+avx512_vnni") == 127


# -------------------------------------------------------------------------------------- rows


def rows() -> list[LayerConfig]:
    """Every kind of row, in int8 and in float; changes of precision as they are here."""
    found = []
    for _, config in INT8_KINDS:
        if config.op == "quantize":
            found.append(replace(config, precision_in="fp32"))
        elif config.op == "dequantize":
            found.append(replace(config, precision="fp32", precision_out="fp32"))
        else:
            found += [config, replace(config, **FLOAT)]
    return found


def name(config: LayerConfig) -> str:
    return f"{config.precision} {config.op} {kind_of(config)}"


def is_float_pool(config: LayerConfig) -> bool:
    """Alone it takes the layout that is best on this CPU, whatever it costs to get there."""
    return config.precision == "fp32" and config.op in ("maxpool", "avgpool")


PRICED = [config for config in rows() if not is_float_pool(config)]
WEIGHTED = {"conv": "Convolution", "linear": "FullyConnected"}


@pytest.mark.parametrize("config", PRICED, ids=name)
def test_a_row_is_its_block_and_nothing_that_a_network_does_not_pay(config: LayerConfig) -> None:
    graph = row_onnx(config, RECIPE)
    ran = executed(graph)
    assert not set(ran) & set(MOVES), ran
    # The slice of one value takes a microsecond or less: by its time it is there or not.
    sliced = len(config.in_shape) == 4 and config.op != "globalavgpool"
    assert compiled(graph).count("StridedSlice") == sliced
    block = [one for one in ran if one != "Slice"]
    if config.op == "concat":  # float parts are written to where it lies, others are rescaled
        assert len(block) <= (3 if config.precision == "int8" else 1), ran
    else:  # an activation that no convolution takes in, or the scale behind a pool, is one more
        assert 1 <= len(block) <= 2, ran


@pytest.mark.parametrize("config", [c for c in PRICED if c.op in WEIGHTED], ids=name)
def test_a_row_computes_in_its_precision(config: LayerConfig) -> None:
    found = precisions(row_onnx(config, RECIPE), WEIGHTED[config.op])
    int8 = "i8" if config.op == "linear" else "u8"  # of the weights, where it gives floats
    assert found == {int8 if config.precision == "int8" else "f32": 1}


@pytest.mark.parametrize("config", [REFERENCE, EMPTY], ids=["reference", "empty"])
def test_the_rows_that_all_others_need_can_be_run(config: LayerConfig) -> None:
    runtime = worker()
    engine = runtime.build(row_onnx(config, RECIPE), {})
    (output,) = runtime.infer(engine, np.ones(engine.inputs[0].shape, np.float32))
    assert np.isfinite(output).all()
