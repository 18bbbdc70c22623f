"""FP16 graphs: legal, close to FP32, and honest about what FP16 cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import nodes, weights
from tiny import TinyTask, network
from torch import Tensor, nn

from hwloop.distill import NO_RECOVERY, Recovery
from hwloop.errors import CandidateError, UsageError
from hwloop.evaluate import Evaluator, Stopwatch, subject
from hwloop.export import check_deployed, export_onnx, host_run
from hwloop.fp16 import sort_nodes, to_fp16
from hwloop.profile import TargetProfile, load_profile
from hwloop.records import Action, Candidate
from hwloop.scope import Scope
from hwloop.store import Store
from hwloop.targets import DeviceSession

EXAMPLE = torch.zeros(1, 1, 8, 8)


class Normalised(nn.Module):
    """A layer norm and a softmax between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.last(self.norm(self.first(x))), dim=-1)


def types(graph: bytes) -> dict[str, int]:
    """ONNX type of every tensor."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True)
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_everything_between_the_ends_is_fp16() -> None:
    half = to_fp16(export_onnx(network(), EXAMPLE))
    kinds = types(half)
    assert kinds.pop("input") == kinds.pop("output") == onnx.TensorProto.FLOAT
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    assert {value.dtype for value in weights(half).values() if value.dtype.kind == "f"} == {
        np.dtype(np.float16)
    }
    assert len(nodes(half, "Cast")) == 2


def test_fp16_outputs_are_close_to_fp32() -> None:
    plain = export_onnx(network(), EXAMPLE)
    difference = check_deployed(EXAMPLE, host_run(plain), host_run(to_fp16(plain)), int8=False)
    assert 0 < difference < 0.01


def test_the_same_graph_gives_the_same_bytes() -> None:
    plain = export_onnx(network(), EXAMPLE)
    assert to_fp16(plain) == to_fp16(plain)


@pytest.mark.parametrize("op", ["LayerNormalization", "Softmax"])
def test_operators_that_overflow_stay_fp32(op: str) -> None:
    half = to_fp16(export_onnx(Normalised().eval(), torch.zeros(1, 16)))
    kinds = types(half)
    (node,) = nodes(half, op)
    assert kinds[node.input[0]] == kinds[node.output[0]] == onnx.TensorProto.FLOAT
    assert all(kinds[gemm.output[0]] == onnx.TensorProto.FLOAT16 for gemm in nodes(half, "Gemm"))


def test_a_weight_beyond_fp16_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(8, 4))
    with torch.no_grad():
        module[1].bias[2] = -70000.0
    with pytest.raises(CandidateError, match=r"export: FP16: tensor '1.bias' has 7e\+04"):
        to_fp16(export_onnx(module, EXAMPLE))


def test_a_bound_beyond_fp16_is_none() -> None:
    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(x, 0.0, 1e6)

    run = host_run(to_fp16(export_onnx(nn.Sequential(nn.Conv2d(1, 2, 1), Bounded()), EXAMPLE)))
    assert np.isfinite(run(EXAMPLE.numpy())).all()


def test_a_cycle_is_refused() -> None:
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [make("Relu", ["a"], ["b"]), make("Relu", ["b"], ["a"])], "", [], []
    )
    with pytest.raises(ValueError, match="cycle"):
        sort_nodes(graph)


# ------------------------------------------------------------------------ an FP16 target


def fp16_profile() -> TargetProfile:
    fake = load_profile("fake")
    return replace(fake, space=replace(fake.space, base_precision="fp16"), recipe="tensorrt")


def test_what_an_fp16_target_gets_is_fp16_and_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, module = TinyTask(), network()
    with DeviceSession(fp16_profile()) as session, Store(tmp_path / "s.sqlite") as store:
        found = subject(task, module, session.profile, isa=session.isa, name="tiny")
        assert found.rules.recipe == "tensorrt"
        assert found.graph == to_fp16(found.float_graph) != found.float_graph
        evaluator = Evaluator(
            found,
            session,
            Scope(store, "tiny"),
            recovery=Recovery(task, module, seed=0),
            loop_recipe=NO_RECOVERY,
            max_drop=None,
            protocol=session.profile.protocols.loop,
            simulated=True,
            clock=Stopwatch(),
        )
        assert evaluator.dense_model.data == found.graph
        assert {config.precision for config in evaluator.dense_model.configs} == {"fp16"}
        dense = evaluator.build(found.dense_candidate, NO_RECOVERY)
        assert dense.model.digest == evaluator.dense_model.digest
        actions = list(found.dense_candidate.actions)
        actions[0] = Action(precision="int8")
        mixed = evaluator.build(Candidate(actions=tuple(actions)), NO_RECOVERY)
        assert len(nodes(mixed.model.data, "QuantizeLinear")) > 0
        assert np.dtype(np.float16) in {value.dtype for value in weights(mixed.model.data).values()}
        monkeypatch.setattr(evaluator, "run", lambda model: lambda x: 2 * host_run(model.data)(x))
        with pytest.raises(CandidateError, match="check: FP16 and FP32 differ"):
            evaluator.build(found.dense_candidate, NO_RECOVERY)


def test_a_network_that_fp16_cannot_hold_is_refused_at_once() -> None:
    module = network()
    with torch.no_grad():
        module.fc.bias[0] = 1e6
    with (
        DeviceSession(fp16_profile()) as session,
        pytest.raises(UsageError, match=r"FP16: tensor 'fc.bias'"),
    ):
        subject(TinyTask(), module, session.profile, isa=session.isa, name="tiny")
