"""Networks of every wiring: what can change, does so rightly; what cannot, says why."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from method_contract import one_by_one
from torch import Tensor, nn
from wirings import (
    NEVER,
    Grouped,
    Heads,
    Window,
    WindowV2,
    answers_as_if_nobody_read_what_went,
)
from wirings import WIRINGS as PLAIN
from wirings_reshaped import RESHAPED

from hwloop.compress import space
from hwloop.compress.apply import compress, quantized
from hwloop.compress.coupling import OUTPUT, couplings
from hwloop.compress.cut import cut, ranking
from hwloop.compress.describe import describe, graph_configs
from hwloop.compress.export import check_outputs, export_onnx
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Candidate, Network
from hwloop.runtimes.known import writing
from hwloop.tasks.attention import Attention
from hwloop.tasks.explicit import explicit

WIRINGS = {**PLAIN, **RESHAPED}
EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
RULES = SpaceRules(recipe="ort-x86", align=8)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return explicit(WIRINGS[name][0]().eval())


WITHOUT_NORMS_OVER_CHANNELS = [
    name
    for name, (_, free) in WIRINGS.items()
    if free
    and not any(isinstance(child, nn.LayerNorm | nn.GroupNorm) for child in made(name).modules())
]


@functools.cache
def known(name: str) -> tuple[nn.Module, Network]:
    """A network and what is known of it, for tests that leave it as it is."""
    dense = made(name)
    return dense, described(dense)


def described(dense: nn.Module, name: str = "it") -> Network:
    return describe(dense, EXAMPLE, export_onnx(dense, EXAMPLE), name=name)


@pytest.mark.parametrize("name", WIRINGS)
def test_what_can_change_is_found_and_the_rest_says_why(name: str) -> None:
    _, network = known(name)
    free = {group.name for group in network.groups if group.prunable}
    assert WIRINGS[name][1] <= free
    assert not free & NEVER.get(name, frozenset())
    assert all(group.prunable != bool(group.fixed_by) for group in network.groups)
    assert next(group for group in network.groups if "last" in group.layers).fixed_by == OUTPUT


@pytest.mark.parametrize("name", WIRINGS)
def test_every_width_alone_and_all_together_run_and_have_the_rows_that_were_foreseen(
    name: str,
) -> None:
    dense, network = known(name)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    half = Action(kind="prune", amount=0.5)
    alone = [
        Candidate(actions=tuple(half if i == index else KEEP for i in range(len(network.groups))))
        for index, mask in enumerate(space.masks(network, RULES))
        if mask[space.menu(RULES).index(half)]
    ]
    for candidate in (*alone, space.uniform(network, half, RULES)):
        small = compress(dense, EXAMPLE, network, candidate=candidate, rules=RULES)
        graph = export_onnx(small, EXAMPLE)
        assert graph_configs(graph) == list(network_configs(network, candidate, RULES))
        check_outputs(small, EXAMPLE, one_by_one(graph))
        with torch.no_grad():
            assert small(EXAMPLE).shape == dense(EXAMPLE).shape
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


@pytest.mark.parametrize("name", WITHOUT_NORMS_OVER_CHANNELS)
def test_a_cut_network_answers_as_if_nobody_read_what_went(name: str) -> None:
    dense, _ = known(name)
    weighted = (nn.Conv1d, nn.Conv2d, nn.Linear)
    layers = [path for path, child in dense.named_modules() if isinstance(child, weighted)]
    found = couplings(dense, EXAMPLE, layers=layers, fixed=("last",))
    answers_as_if_nobody_read_what_went(dense, EXAMPLE, found)


def test_a_shuffle_loses_whole_columns() -> None:
    group = next(group for group in described(made("shuffle alone")).groups if group.prunable)
    (before,) = (g for g in described(made("shuffle alone")).groups if g.name == "before")
    assert (group.channels, before.channels) == (32, 48 // 4)


def test_what_no_layer_takes_in_is_a_row_of_its_own() -> None:
    def alone(name: str) -> list[tuple[str, tuple[str, ...]]]:
        rows = [layer.config for layer in known(name)[1].layers]
        return [(row.op, row.tail) for row in rows if row.op not in ("conv", "linear")]

    tokens = [("layernorm", ()), ("attention", ()), ("elementwise", ("add",))]
    assert alone("heads") == [*tokens, ("layernorm", ()), ("elementwise", ("add",))]
    assert alone("dense block")[:3] == [
        ("batchnorm", ("relu",)),
        ("concat", ()),
        ("batchnorm", ("relu",)),
    ]
    assert alone("squeeze-excite") == [("elementwise", ("scale",)), ("elementwise", ("add",))]


def test_behind_what_stays_float_an_int8_layer_pays_for_its_own_input() -> None:
    _, network = known("dense block")
    int8 = space.uniform(network, Action(precision="int8"), RULES)
    rows = network_configs(network, int8, RULES)
    quantized_widths = [row.in_shape[1] for row in rows if row.op == "quantize"]
    # The network's input, and behind each norm whatever was put side by side, at once.
    assert quantized_widths == [3, *range(32, 32 + 36 * 8, 8)]
    norms = [row for row in rows if row.op == "batchnorm"]
    assert {row.precision for row in norms} == {"fp32"}


@pytest.mark.parametrize("name", ["heads", "windows", "fused qkv", "grouped", "shuffle", "signal"])
def test_all_of_it_in_int8_runs(name: str) -> None:
    dense = made(name)
    graph, network = export_onnx(dense, EXAMPLE), described(dense)
    candidate = space.uniform(network, Action(precision="int8"), RULES)
    inputs = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    small = quantized(
        dense,
        EXAMPLE,
        graph,
        network=network,
        candidate=candidate,
        calibration=inputs,
        runtime=writing(RULES.recipe, "avx2"),
    )
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": EXAMPLE.numpy()})[0]
    expected = dense(EXAMPLE).detach().numpy()
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["heads", "windows", "chunk of tokens"])
def test_linear_layers_over_tokens_are_one_int8_kernel_each_and_give_floats(
    name: str, tmp_path: Path
) -> None:
    dense = made(name)
    graph, network = export_onnx(dense, EXAMPLE), described(dense)
    small = quantized(
        dense,
        EXAMPLE,
        graph,
        network=network,
        candidate=space.uniform(network, Action(precision="int8"), RULES),
        calibration=np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32),
        runtime=writing(RULES.recipe, "avx2+avx512_vnni"),
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath).graph
    ops = Counter(node.op_type for node in optimized.node)
    linear = sum(layer.config.op == "linear" for layer in network.layers)
    assert ops["QGemm"] == linear - 1  # the last one has too few channels
    assert not {"QLinearMatMul", "QLinearAdd", "MatMulIntegerToFloat"} & set(ops)
    if name != "chunk of tokens":
        assert ops["Gelu"] >= 1  # as one kernel, which it is of floats alone


def test_whole_groups_of_a_grouped_convolution_go() -> None:
    dense = Grouped().eval()
    order = ranking(dense, EXAMPLE, ["before"])["before"]
    small = copy.deepcopy(dense)
    cut(small, EXAMPLE, {"before": 24}, dense=dense)
    grouped = small.grouped
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (3, 24, 24)
    kept = sorted(order[:24])
    assert all(kept[i : i + 8] == list(range(kept[i], kept[i] + 8)) for i in range(0, 24, 8))
    assert torch.equal(small.grouped.weight, dense.grouped.weight[kept])
    # What reads nothing of the others answers as before.
    masked = copy.deepcopy(dense)
    gone = [channel for channel in range(64) if channel not in kept]
    with torch.no_grad():
        masked.after.weight[:, gone] = 0
    torch.testing.assert_close(small(EXAMPLE), masked(EXAMPLE))


@pytest.mark.parametrize("kind", [Heads, Window, WindowV2])
def test_a_network_without_some_heads_answers_as_one_that_does_not_read_them(kind: type) -> None:
    torch.manual_seed(0)
    dense = explicit(kind().eval())
    attention = "attention" if kind is Heads else "blocks.1.attn"
    if kind is not Heads:
        with torch.no_grad():
            dense.get_submodule(attention).position_bias.normal_()
    query, projection = f"{attention}.query", f"{attention}.projection"
    order = ranking(dense, EXAMPLE, [query])[query]
    small, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    cut(small, EXAMPLE, {query: 32}, dense=dense)
    assert small.get_submodule(attention).heads == 2
    with torch.no_grad():
        masked.get_submodule(projection).weight[:, list(order[32:])] = 0
    torch.testing.assert_close(small(EXAMPLE), masked(EXAMPLE))


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"])
def test_torchvisions_transformers_answer_the_same_in_explicit_layers(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    size = 60 if name.startswith("swin") else 224  # so that windows must be filled up
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        for parameter in network.parameters():  # biases and scales are not left at their start
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = network(x)
        found = explicit(network)(x)
    assert not [m for m in network.modules() if type(m) is nn.MultiheadAttention]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_torchs_encoder_layer_takes_explicit_attention_with_its_masks() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 7, 32)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    padded = torch.zeros(2, 7, dtype=torch.bool)
    padded[1, 5:] = True

    def answers(network: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [
                network(x),
                network(x, mask=causal),
                network(x, src_key_padding_mask=padded)[:, :5],
            ]

    expected = answers(encoder)
    for found, wanted in zip(answers(explicit(encoder)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_attention_that_is_used_twice_stays_one() -> None:
    network = nn.ModuleDict({"a": nn.MultiheadAttention(32, 4)})
    network["b"] = network["a"]
    explicit(network)
    assert network["a"] is network["b"]
    assert isinstance(network["a"], Attention)


def test_attention_that_is_not_plain_is_left_as_it_is() -> None:
    other = nn.MultiheadAttention(32, 4, kdim=16)
    assert explicit(other) is other
    more = nn.MultiheadAttention(32, 4, add_bias_kv=True)
    assert explicit(more) is more
