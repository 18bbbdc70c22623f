"""What holds for every runtime: a subclass names a profile, and inherits the tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from method_contract import Grouped
from onnx import TensorProto, helper
from torch import Tensor, nn

from hwloop.compress.describe import graph_configs, weighted_nodes
from hwloop.compress.export import export_onnx
from hwloop.device.runtime import (
    CAPABILITIES,
    COPIES,
    CROSS_CHECK,
    ENERGY,
    ENGINE,
    LAUNCH_FLOOR,
    LAYER_PROFILE,
)
from hwloop.errors import CandidateError
from hwloop.findings import CLOCKS
from hwloop.measure import paired
from hwloop.measure.profile import TargetProfile, recipe_for
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import REFERENCE
from hwloop.runtimes.graph import INPUT, OnnxModel
from hwloop.runtimes.known import writing
from hwloop.task import load_model
from hwloop.tasks.load import load_task

COUNT = 5
FLOAT_DIFFERENCE = 1e-4
DOUBTED = 0.5  # what a ratio may be off where the measurement itself says that it was disturbed
INT8_DIFFERENCE = 0.05
"""Of the demo's logits with a few convolutions in int8: another network would be far above it."""

LARGE_MIB, LARGE_COUNT = 32, 4


class Depthwise(nn.Module):
    """Convolutions with one filter for each channel, clipped activations."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 24, 1)
        self.last = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.mix(nn.functional.relu6(self.each(x))))
        return self.last(x).mean(dim=(2, 3))


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model with inputs, and the outputs that are right, each (COUNT, ...)."""

    model: OnnxModel
    inputs: np.ndarray
    outputs: np.ndarray
    difference: float = FLOAT_DIFFERENCE


def example_inputs(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.standard_normal((COUNT, *shape[1:])).astype(np.float32)


def network(module: nn.Module, shape: tuple[int, ...]) -> Known:
    """A network as PyTorch computes it."""
    graph = export_onnx(module.eval(), torch.zeros(shape))
    inputs = example_inputs(shape)
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs)).numpy()
    return Known(
        model=OnnxModel(graph, tuple(graph_configs(graph))), inputs=inputs, outputs=outputs
    )


@functools.cache
def demo() -> Known:
    task = load_task("demo")
    found = network(load_model(task, None), (1, 1, 28, 28))
    images = task.search().batch(range(COUNT))[0].numpy()
    with torch.no_grad():
        outputs = load_model(task, None)(torch.from_numpy(images)).numpy()
    return replace(found, inputs=images, outputs=outputs)


def partly_int8(recipe: str, isa: str) -> Known:
    found = demo()
    nodes = weighted_nodes(found.model.data)[2:6]
    images = load_task("demo").search().batch(range(64))[0].numpy()
    graph = writing(recipe, isa).quantized(found.model.data, nodes, calibration=images)
    model = OnnxModel(graph, found.model.configs)
    return replace(found, model=model, difference=INT8_DIFFERENCE)


def row(recipe: str, isa: str) -> Known:
    """A row of the table as ONNX Runtime computes it; what it takes is the recipe's business."""
    graph = writing(recipe, isa).row_graph(REFERENCE)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = example_inputs(tuple(session.get_inputs()[0].shape))
    (name,) = [tensor.name for tensor in session.get_inputs()]
    outputs = [session.run(None, {name: inputs[i : i + 1]})[0] for i in range(COUNT)]
    model = OnnxModel(graph, (REFERENCE,), row=True)
    return Known(model=model, inputs=inputs, outputs=np.concatenate(outputs))


@functools.cache
def known(recipe: str, isa: str) -> dict[str, Known]:
    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    return {
        "demo": demo(),
        "partly int8": partly_int8(recipe, isa),
        "depthwise": network(Depthwise(), (1, 16, 12, 12)),
        "concatenated": network(Grouped(), (1, 3, 16, 16)),
        "linear": network(perceptron, (1, 12)),
        "row": row(recipe, isa),
    }


GRAPHS = ("demo", "partly int8", "depthwise", "concatenated", "linear", "row")


def one_large_weight(seed: int) -> OnnxModel:
    """A graph that adds a constant of LARGE_MIB to its input."""
    size = LARGE_MIB << 18
    value = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, size)) for name in (INPUT, "y")
    ]
    node = helper.make_node("Add", [INPUT, "large"], ["y"])
    weights = [onnx.numpy_helper.from_array(value, "large")]
    graph = helper.make_graph([node], "large", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return OnnxModel(bytes(made.SerializeToString()))


def of_nobody() -> bytes:
    """A graph with an operator that no runtime has."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in (INPUT, "y")]
    node = helper.make_node("NobodyHasIt", [INPUT], ["y"], domain="nowhere")
    graph = helper.make_graph([node], "odd", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(made.SerializeToString())


def resident_mib(session: DeviceSession) -> float:
    status = Path(f"/proc/{session.state()['pid']}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


class RuntimeContract:
    """Tests of one runtime, through a session with a worker of its own.

    Attributes:
        noise: how far from 1 a model's ratio to itself may be without a doubt about it.
    """

    profile: TargetProfile
    noise = 0.05

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls) -> Iterator[DeviceSession]:
        with DeviceSession(cls.profile) as opened:
            yield opened

    def known(self, session: DeviceSession, name: str) -> Known:
        isa = session.isa
        return known(recipe_for(self.profile, isa), isa)[name]

    # ------------------------------------------------------------------------------ who it is

    def test_it_says_what_it_is(self, session: DeviceSession) -> None:
        found = session.fingerprint
        assert found.runtime == self.profile.runtime
        assert found.device
        assert found.runtime_version
        names = [name for name, _ in found.settings]
        assert len(names) == len(set(names)) > 0

    def test_a_second_session_finds_the_same(self, session: DeviceSession) -> None:
        with DeviceSession(self.profile) as another:
            assert another.fingerprint == session.fingerprint
            assert another.capabilities == session.capabilities

    def test_what_it_declares_it_can_do_and_the_rest_is_absent_or_said(
        self, session: DeviceSession
    ) -> None:
        model = self.known(session, "linear").model
        assert session.capabilities <= CAPABILITIES
        for word, ask in ((COPIES, session.copies), (LAUNCH_FLOOR, session.launch_floor)):
            assert (ask(model) is not None) == (word in session.capabilities)
        if ENERGY not in session.capabilities:
            assert session.energy(model, seconds=0.1) is None
        for word, build in (
            (ENGINE, session.engine),
            (LAYER_PROFILE, session.layer_profile),
            (CROSS_CHECK, session.cross_check),
        ):
            if word in session.capabilities:
                assert build(model)
            else:
                with pytest.raises(CandidateError, match=f"{self.profile.runtime} has no engines"):
                    build(model)

    # --------------------------------------------------------------------- what it computes

    @pytest.mark.parametrize("name", GRAPHS)
    def test_outputs_are_right_and_in_the_order_of_the_inputs(
        self, session: DeviceSession, name: str
    ) -> None:
        right = self.known(session, name)
        assert session.build(right.model) > 0
        found = session.infer(right.model, right.inputs)
        assert found.shape == right.outputs.shape
        assert np.isfinite(found).all()
        for one, expected in zip(found, right.outputs, strict=True):
            away = np.linalg.norm(one - expected) / np.linalg.norm(expected)
            assert away <= right.difference
        backwards = session.infer(right.model, right.inputs[::-1])
        np.testing.assert_array_equal(backwards[::-1], found)

    # -------------------------------------------------------------------------- how it is timed

    @pytest.mark.parametrize("name", GRAPHS)
    def test_it_is_timed_against_another_in_rounds_on_a_known_clock(
        self, session: DeviceSession, name: str
    ) -> None:
        model = self.known(session, name).model
        protocol = self.profile.protocols.row
        reference = self.known(session, "row").model
        found = session.measure(model, reference, protocol=protocol, reference_latency_ms=0.0)
        assert len(found.samples_ms) == len(found.reference_ms) == sum(found.rounds) > 0
        assert all(0 < value < math.inf for value in (*found.samples_ms, *found.reference_ms))
        assert found.clock in CLOCKS
        assert 0 < found.ratio < math.inf

    def test_a_model_is_as_fast_as_itself(self, session: DeviceSession) -> None:
        """Or doubted: who else uses the machine is not up to the runtime."""
        model = self.known(session, "demo").model
        found = paired.against(
            session,
            model,
            model,
            protocol=self.profile.protocols.loop,
            reference_latency_ms=1.0,
        )
        assert abs(found.ratio - 1) <= (DOUBTED if found.unstable else self.noise)

    # ----------------------------------------------------------------------------- what goes wrong

    @pytest.mark.parametrize("graph", [b"no graph at all", of_nobody()], ids=["text", "operator"])
    def test_a_graph_that_cannot_run_costs_a_candidate_and_no_worker(
        self, session: DeviceSession, graph: bytes
    ) -> None:
        before = session.state()["pid"]
        right = self.known(session, "linear")
        model = OnnxModel(graph, right.model.configs)
        with pytest.raises(CandidateError) as caught:
            session.build(model)
        assert caught.value.stage == "build"
        with pytest.raises(CandidateError):
            session.infer(model, right.inputs)
        assert session.build(right.model) > 0
        assert session.state()["pid"] == before

    def test_what_is_forgotten_takes_no_memory(self, session: DeviceSession) -> None:
        with session.holding(one_large_weight(0)) as first:
            session.build(first)
        before_mib = resident_mib(session)
        for seed in range(1, 1 + LARGE_COUNT):
            with session.holding(one_large_weight(seed)) as model:
                session.build(model)
        assert resident_mib(session) - before_mib < LARGE_MIB * LARGE_COUNT / 2
