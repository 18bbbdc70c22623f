"""FP16 graphs: legal, close to FP32, and honest about what FP16 cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import needs_builder, nodes, weights
from tiny import TinyTask, network
from torch import Tensor, nn

from hwloop.compress.apply import in_base_precision
from hwloop.compress.export import check_deployed, export_onnx, host_run
from hwloop.compress.fp16_range import Kept, kept_float
from hwloop.compress.recover import NO_RECOVERY, Recovery
from hwloop.compress.subject import Subject, subject
from hwloop.errors import CandidateError, UsageError
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.parsing import to_json
from hwloop.records import Action, Candidate
from hwloop.run import target_limits
from hwloop.run.clock import Stopwatch
from hwloop.run.evaluate import evaluator_of
from hwloop.run.memory import Figures
from hwloop.runtimes.fp16 import FALLBACKS, sort_nodes, to_fp16
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.proof import layer_types, prove

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
def test_operators_that_are_kept_stay_fp32(op: str) -> None:
    half = to_fp16(export_onnx(Normalised().eval(), torch.zeros(1, 16)), FALLBACKS[-1])
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


# ---------------------------------------------------------------- what has to stay FP32


class Attention(nn.Module):
    """Tokens (1, 16, 64) attend to each other, by four heads, behind a norm."""

    def __init__(self, scale: float = 1.0, *, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.mixed = nn.Linear(64, 3 * 64)
        self.last = nn.Linear(64, 64)
        self.scale = scale
        mask = torch.full((16, 16), float("-inf")).triu(1)
        self.mask = nn.Buffer(mask if causal else torch.zeros(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mixed(self.norm(self.scale * x)).reshape(1, 16, 3, 4, 16)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-1, -2) * 16**-0.5 + self.mask
        heads = torch.softmax(scores, dim=-1) @ values
        return x + self.last(heads.transpose(1, 2).reshape(1, 16, 64))


class Gelu(nn.Module):
    """The usual two layers of a transformer with a GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.first(x)))


class Spread(nn.Module):
    """A root mean square by hand: its squares leave FP16's range, its result does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = 2000 * self.first(x)
        return torch.sqrt(y.pow(2).mean(dim=-1, keepdim=True))


class Faint(nn.Module):
    """Weights so small that FP16 has no number near them; nothing in it is large."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(64, 64, bias=False)
        with torch.no_grad():
            self.only.weight.mul_(1e-7)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


TOKENS = torch.zeros(1, 16, 64)


def some_tokens(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 16, 64)).astype(np.float32)


def kept(module: nn.Module, inputs: np.ndarray | None = None) -> Kept:
    torch.manual_seed(0)
    graph = export_onnx(module.eval(), TOKENS)
    return kept_float(graph, TOKENS, some_tokens() if inputs is None else inputs)


@pytest.mark.parametrize("causal", [False, True], ids=["open", "causal"])
def test_an_attention_is_fp16_throughout(causal: bool) -> None:
    assert kept(Attention(causal=causal)) == Kept(operators=(), reason="")


def test_a_gelu_is_fp16_throughout() -> None:
    assert kept(Gelu()) == Kept(operators=(), reason="")


def test_a_norm_over_large_numbers_stays_fp32_and_the_softmax_does_not() -> None:
    found = kept(Attention(scale=100))
    assert found.operators == FALLBACKS[1]
    assert "Softmax" not in found.operators
    assert "the sum in LayerNormalization '/norm/LayerNormalization' reaches" in found.reason


def test_squares_that_overflow_stay_fp32_though_onnx_runtime_hides_them_here() -> None:
    graph = export_onnx(Spread().eval(), TOKENS)
    check_deployed(TOKENS, host_run(graph), host_run(to_fp16(graph)), int8=False)
    found = kept_float(graph, TOKENS, some_tokens())
    assert found.operators == FALLBACKS[-1]
    assert found.reason.startswith("tensor '/Pow_output_0' reaches ")


def test_outputs_that_fp16_loses_fall_back_to_the_last() -> None:
    found = kept(Faint())
    assert found.operators == FALLBACKS[-1]
    assert "FP16 and FP32 differ by" in found.reason


def test_real_inputs_decide_together_with_the_random_ones() -> None:
    torch.manual_seed(0)
    graph = export_onnx(Gelu().eval(), TOKENS)
    assert kept_float(graph, TOKENS, some_tokens()).operators == ()
    assert kept_float(graph, TOKENS, 20_000 * some_tokens()).operators == FALLBACKS[-1]


def test_the_decision_is_the_same_each_time() -> None:
    module = Attention(scale=100)
    assert kept(module) == kept(module)


def test_a_decision_survives_json_and_another_one_is_refused() -> None:
    found = Kept(operators=FALLBACKS[1], reason="the sum in a norm")
    assert Kept.from_json(to_json(found)) == found
    with pytest.raises(ValueError, match="not kept together"):
        Kept.from_json({"operators": ["Conv"], "reason": ""})


@needs_builder
@pytest.mark.parametrize(("module", "before"), [(Attention(), 6), (Gelu(), 4)])
def test_the_parser_sees_no_casts_but_those_at_the_ends(module: nn.Module, before: int) -> None:
    graph = export_onnx(module.eval(), TOKENS)
    assert layer_types(to_fp16(graph, FALLBACKS[-1]))["CAST"] == before
    half = to_fp16(graph, kept(module).operators)
    assert layer_types(half)["CAST"] == 2
    proof = prove(half, precisions=["fp16"])
    assert dict(proof.dtypes)["FLOAT"] == 1  # the output's cast


# ------------------------------------------------------------------------ an FP16 target


def fp16_profile() -> TargetProfile:
    fake = load_profile("fake")
    return replace(fake, space=replace(fake.space, base_precision="fp16"), recipe="tensorrt")


def test_what_an_fp16_target_gets_is_fp16_and_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, module = TinyTask(), network()
    with DeviceSession(fp16_profile()) as session, Store(tmp_path / "s.sqlite") as store:
        found = subject(
            task, module, rules_for(session.profile, session.isa), isa=session.isa, name="tiny"
        )
        assert found.rules.recipe == "tensorrt"
        assert found.graph == to_fp16(found.float_graph) != found.float_graph
        evaluator = evaluator_of(
            found,
            session,
            figures=Figures(store, "tiny"),
            recovery=Recovery(task, module, seed=0),
            loop_schedule=NO_RECOVERY,
            max_drop=None,
            protocol=session.profile.protocols.loop,
            simulated=True,
            clock=Stopwatch(),
        )
        assert evaluator.latencies.dense.data == found.graph
        assert {config.precision for config in evaluator.latencies.dense.configs} == {"fp16"}
        dense = evaluator.builder.build(found.dense_candidate, NO_RECOVERY)
        assert dense.model.digest == evaluator.latencies.dense.digest
        actions = list(found.dense_candidate.actions)
        actions[0] = Action(precision="int8")
        mixed = evaluator.builder.build(Candidate(actions=tuple(actions)), NO_RECOVERY)
        assert len(nodes(mixed.model.data, "QuantizeLinear")) > 0
        assert np.dtype(np.float16) in {value.dtype for value in weights(mixed.model.data).values()}
        monkeypatch.setattr(session, "infer", lambda model, x: 2 * host_run(model.data)(x))
        with pytest.raises(CandidateError, match="check: FP16 and FP32 differ"):
            evaluator.builder.build(found.dense_candidate, NO_RECOVERY)


def test_a_network_that_fp16_cannot_hold_is_refused_at_once() -> None:
    module = network()
    with torch.no_grad():
        module.fc.bias[0] = 1e6
    with (
        DeviceSession(fp16_profile()) as session,
        pytest.raises(UsageError, match=r"FP16: tensor 'fc.bias'"),
    ):
        subject(
            TinyTask(),
            module,
            rules_for(session.profile, session.isa),
            isa=session.isa,
            name="tiny",
        )


def test_what_was_decided_before_holds_for_the_network_and_its_candidates() -> None:
    profile = fp16_profile()
    before = Kept(operators=FALLBACKS[1], reason="as it was")
    found = subject(TinyTask(), network(), rules_for(profile, ""), isa="", name="tiny", fp16=before)
    assert found.fp16 == before
    assert found.rules.kept_float == FALLBACKS[1]
    plain = export_onnx(Normalised().eval(), torch.zeros(1, 16))
    assert in_base_precision(plain, found.rules) == to_fp16(plain, FALLBACKS[1])
    assert (
        subject(TinyTask(), network(), rules_for(load_profile("fake"), ""), isa="", name="t").fp16
        is None
    )


def normed() -> Subject:
    """A network of which each fall-back makes another graph."""
    torch.manual_seed(0)
    layers = (nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 4), nn.Softmax(-1))
    module = nn.Sequential(nn.Flatten(), *layers).eval()
    return subject(TinyTask(), module, rules_for(fp16_profile(), ""), isa="", name="tiny")


class Drifting(DeviceSession):
    """A board whose outputs are wrong until enough stays FP32."""

    def __init__(self, wrong: int, stage: str = "") -> None:
        super().__init__(fp16_profile())
        self.wrong = wrong
        self.stage = stage

    def infer(self, model: OnnxModel, inputs: np.ndarray) -> np.ndarray:
        if self.stage:
            raise CandidateError(self.stage, "the builder says no")
        self.wrong -= 1
        return (1.5 if self.wrong >= 0 else 1.0) * host_run(model.data)(inputs)

    def forget(self, model: OnnxModel) -> None:
        pass


@pytest.mark.parametrize("wrong", [0, 1, 2, 5])
def test_the_target_has_the_last_word_on_fp16(wrong: int) -> None:
    found = normed()
    held = target_limits.held_on_target(found, Drifting(wrong))
    assert held.fp16.operators == FALLBACKS[min(wrong, 2)] == held.rules.kept_float
    assert held.graph == to_fp16(found.float_graph, held.fp16.operators)
    assert ("on the target, FP16 and FP32 differ" in held.fp16.reason) == (wrong > 0)


def test_where_every_choice_is_the_same_graph_none_is_tried() -> None:
    found = subject(TinyTask(), network(), rules_for(fp16_profile(), ""), isa="", name="tiny")
    assert target_limits.held_on_target(found, Drifting(5)) == found


def test_a_target_that_cannot_build_it_leaves_the_choice_alone() -> None:
    found = normed()
    assert target_limits.held_on_target(found, Drifting(0, "build")) == found
