"""Low rank: what is of low rank stays what it was, and inputs say which directions matter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models import vision_transformer

from hwloop.compress import space
from hwloop.compress.apply import compress, quantized
from hwloop.compress.describe import describe, graph_configs
from hwloop.compress.export import export_onnx
from hwloop.compress.methods.lowrank import LowRank
from hwloop.compress.methods.method import Work
from hwloop.compress.moments import InputMoments, input_moments
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.errors import CandidateError
from hwloop.records import Action, Group, Layer, LayerConfig
from hwloop.runtimes.known import writing
from hwloop.tasks.explicit import explicit

HALF, QUARTER = Action(kind="lowrank", amount=0.5), Action(kind="lowrank", amount=0.25)
RULES = SpaceRules(recipe="ort-x86", align=8, kinds=("keep", "lowrank"))
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(96, 128), (4, 7, 96)),
    "without a bias": (lambda: nn.Conv2d(64, 96, 1, bias=False), (2, 64, 6, 6)),
    "strided": (lambda: nn.Conv2d(64, 64, 3, stride=2, padding=1), (2, 64, 9, 9)),
    "dilated": (lambda: nn.Conv2d(64, 80, 3, padding=2, dilation=2), (2, 64, 9, 9)),
    "signal": (lambda: nn.Conv1d(64, 64, 5, padding=2), (2, 64, 20)),
}


def factored(
    layer: nn.Module, example: torch.Tensor, action: Action, moments: InputMoments | None = None
) -> nn.Module:
    network = nn.Sequential(layer).eval()
    group = Group(name="0", layers=("0",), channels=64, prunable=True, block="")
    work = Work(module=network, dense=network, example=example, rules=RULES, moments=moments)
    LowRank().apply(work, {group: action})
    return network


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_low_rank_answer_as_before(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, example = make(), torch.randn(shape)
    with torch.no_grad():
        rows = layer.weight.flatten(1)
        rows[:] = torch.randn(len(rows), 8) @ torch.randn(8, rows.shape[1]) / 8
    expected = layer(example)
    small = factored(layer, example, QUARTER)
    assert sum(value.numel() for value in small.parameters()) < layer.weight.numel() / 2
    torch.testing.assert_close(small(example), expected, rtol=1e-4, atol=1e-4)


def test_what_inputs_do_is_told_from_what_weights_could() -> None:
    torch.manual_seed(0)
    layer, mixing = nn.Conv2d(64, 96, 1), torch.randn(64, 6)
    batch = 1 + torch.einsum("ij,njhw->nihw", mixing, torch.randn(16, 6, 8, 8))
    moments = input_moments(nn.Sequential(layer), [batch])
    with torch.no_grad():
        expected = layer(batch)
        by_weights = factored(copy.deepcopy(layer), batch, HALF)(batch)
        by_inputs = factored(layer, batch, HALF, moments)(batch)
    error = (by_inputs - expected).norm() / expected.norm()
    assert error < 1e-3 < (by_weights - expected).norm() / expected.norm()


def test_a_mean_that_no_bias_can_make_up_for_is_a_direction() -> None:
    torch.manual_seed(0)
    layer, mixing = nn.Linear(64, 96, bias=False), torch.randn(64, 6) / 8
    batch = 1 + torch.randn(512, 6) @ mixing.T
    moments = input_moments(nn.Sequential(layer), [batch])
    with torch.no_grad():
        expected = layer(batch)
        found = factored(layer, batch, HALF, moments)(batch)
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_a_layer_with_two_names_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(64, 64)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    network, example = Twice().eval(), torch.randn(2, 64)
    group = Group(name="a", layers=("a",), channels=64, prunable=True, block="")
    work = Work(module=network, dense=network, example=example, rules=RULES)
    LowRank().apply(work, {group: HALF})
    assert isinstance(network.a, nn.Sequential)
    assert network.b is network.a


def test_a_layer_that_computes_in_its_own_way_fails_the_candidate() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    with pytest.raises(CandidateError, match="0 is a Own and computes in a way of its own"):
        factored(Own(64, 64), torch.randn(2, 64), HALF)


@pytest.mark.parametrize("known", [nn.Linear, nn.Conv1d, nn.Conv2d])
def test_a_class_that_only_makes_a_layer_differently_is_that_layer(known: type) -> None:
    class Own(known):  # type: ignore[misc]
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, *(() if known is nn.Linear else (3,)))

    torch.manual_seed(0)
    layer = Own(64)
    plain = known(64, 64, *(() if known is nn.Linear else (3,)))
    plain.load_state_dict(layer.state_dict())
    example = torch.randn(2, 64, *((5,) * (layer.weight.dim() - 2)))
    assert torch.equal(
        factored(layer, example, HALF)(example), factored(plain, example, HALF)(example)
    )


@pytest.mark.parametrize("precision", ["base", "int8"])
def test_heads_of_low_rank_run_with_the_rows_that_were_foreseen(precision: str) -> None:
    torch.manual_seed(0)
    dense = explicit(
        vision_transformer.VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128
        ).eval()
    )
    example = torch.randn(1, 3, 16, 16)
    graph = export_onnx(dense, example)
    network = describe(dense, example, graph, name="vit")
    chosen = space.uniform(network, replace(HALF, precision=precision), RULES)
    assert sum(action.kind == "lowrank" for action in chosen.actions) >= 4
    small = compress(dense, example, network, candidate=chosen, rules=RULES)
    exported = export_onnx(small, example)
    if precision == "base":
        assert graph_configs(exported) == list(network_configs(network, chosen, RULES))
    else:
        exported = quantized(
            small,
            example,
            exported,
            network=network,
            candidate=chosen,
            calibration=torch.randn(4, 3, 16, 16).numpy(),
            runtime=writing(RULES.recipe, "avx2+avx512_vnni"),
        )
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": example.numpy()})
    expected = small(example).detach().numpy()
    tolerance = 1e-4 if precision == "base" else 0.2
    assert abs(found - expected).max() <= tolerance * max(abs(expected).max(), 1e-3)


def test_it_is_for_wide_layers_that_it_makes_much_cheaper() -> None:
    def legal(action: Action = HALF, **config: Any) -> bool:
        shape = (1, config.pop("inputs"), 14, 14)
        row = LayerConfig(op="conv", in_shape=shape, **config)
        layer = Layer(name="it", config=row, out_group=0, in_groups=())
        group = Group(name="it", layers=("it",), channels=64, prunable=False, block="")
        return LowRank().legal(action, group, (layer,), RULES)

    assert legal(inputs=64, out_channels=64, kernel=(3, 3), padding=(1, 1))
    assert not legal(inputs=32, out_channels=64, kernel=(3, 3), padding=(1, 1))
    assert not legal(inputs=64, out_channels=64, kernel=(3, 3), padding=(1, 1), groups=2)


def test_rows_add_up_to_the_share_of_the_work_that_the_action_names() -> None:
    row = LayerConfig(
        op="conv", in_shape=(1, 256, 14, 14), out_channels=256, kernel=(3, 3), padding=(1, 1)
    )
    for action in LowRank().actions():
        first, second = LowRank().rows(row, action, RULES)
        assert second.in_shape == (1, first.out_channels, 14, 14)
        assert first.out_channels % RULES.align == 0
        share = (first.macs + second.macs) / row.macs
        assert share == pytest.approx(action.amount, abs=0.02)
