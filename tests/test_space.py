"""The action space: masks, widths and the rows that a candidate costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwloop.compress import space
from hwloop.compress.space import ACTIONS, SpaceRules
from hwloop.parsing import digest
from hwloop.records import Action, Group, Layer, LayerConfig, Network


def chain(channels: tuple[int, ...] = (16, 32, 48)) -> Network:
    """Convolutions in a row, one group each, and a classifier of fixed width."""
    layers, groups, before = [], [], 3
    for index, width in enumerate(channels):
        config = LayerConfig(
            op="conv",
            in_shape=(1, before, 8, 8),
            out_channels=width,
            kernel=(3, 3),
            padding=(1, 1),
            tail=("bias", "relu"),
        )
        feeding = ((index - 1, 1),) if index else ()
        layers.append(Layer(name=f"c{index}", config=config, out_group=index, in_groups=feeding))
        groups.append(
            Group(name=f"c{index}", layers=(f"c{index}",), channels=width, prunable=True, block="")
        )
        before = width
    last = len(channels)
    config = LayerConfig(op="linear", in_shape=(1, before * 64), out_channels=10)
    layers.append(Layer(name="fc", config=config, out_group=last, in_groups=((last - 1, 64),)))
    groups.append(Group(name="fc", layers=("fc",), channels=10, prunable=False, block=""))
    return Network(
        name="chain", input_shape=(1, 3, 8, 8), layers=tuple(layers), groups=tuple(groups)
    )


@given(st.integers(1, 300), st.sampled_from([1, 4, 8, 16]), st.booleans())
@example(16, 8, True)  # a half and a quarter are both 8 channels
def test_no_two_legal_actions_have_the_same_effect(
    channels: int, align: int, prunable: bool
) -> None:
    group = Group(name="g", layers=("g",), channels=channels, prunable=prunable, block="")
    mask = space.legal_actions(group, SpaceRules(align=align))
    effects = [
        (space.width(group, action, align), action.precision)
        for action, ok in zip(ACTIONS, mask, strict=True)
        if ok
    ]
    assert mask[0]
    assert len(set(effects)) == len(effects)
    for kept, _ in effects:
        assert kept == channels or (prunable and kept % align == 0 and kept < channels)


def test_widths_are_rounded_up_to_what_the_target_likes() -> None:
    group = Group(name="g", layers=("g",), channels=44, prunable=True, block="")
    amounts = [action for action in ACTIONS if action.precision == "base"]
    assert [space.width(group, action, 8) for action in amounts] == [44, 40, 24, 16]
    assert [space.width(group, action, 16) for action in amounts] == [44, 44, 32, 16]
    assert [space.width(group, action, 64) for action in amounts] == [44] * 4


def test_precisions_and_kinds_that_a_target_lacks_are_masked() -> None:
    group = chain().groups[1]
    no_int8 = space.legal_actions(group, SpaceRules(precisions=("base",)))
    assert not any(ok for ok, a in zip(no_int8, ACTIONS, strict=True) if a.precision == "int8")
    no_prune = space.legal_actions(group, SpaceRules(kinds=("keep",)))
    assert not any(ok for ok, a in zip(no_prune, ACTIONS, strict=True) if a.kind == "prune")


@given(st.lists(st.integers(0, len(ACTIONS) - 1), min_size=4, max_size=4))
def test_channels_that_leave_a_layer_arrive_at_the_next(indices: list[int]) -> None:
    network, rules = chain(), SpaceRules()
    legal = space.masks(network, rules)
    choices = tuple(i if mask[i] else 0 for i, mask in zip(indices, legal, strict=True))
    rows = space.network_configs(network, space.candidate(choices), rules)
    layers = [row for row in rows if row.op in ("conv", "linear")]
    for before, after in itertools.pairwise(layers):
        spatial = 64 if after.op == "linear" else 1
        assert after.in_shape[1] == before.out_channels * spatial


def test_each_change_of_precision_costs_one_row() -> None:
    network, rules = chain(), SpaceRules()
    base, int8 = 0, 4
    rows = space.network_configs(network, space.candidate((base, int8, base, base)), rules)
    assert [row.op for row in rows if row.op in ("quantize", "dequantize")] == [
        "quantize",
        "dequantize",
    ]
    all_int8 = space.network_configs(network, space.candidate((int8,) * 4), rules)
    assert [row.op for row in all_int8 if "quantize" in row.op] == ["quantize"]


TENSORRT = SpaceRules(base_precision="fp16", recipe="tensorrt")
ASKED = "91e0c16d76b084190e432bae183bc727cb0d528490d3e89ab12381efbcc3d532"
"""Of the defaults, in the identity of every run so far."""


def test_tensorrt_pays_for_quantizing_alone() -> None:
    network = chain()
    base, int8 = 0, 4
    rows = space.network_configs(network, space.candidate((base, int8, base, base)), TENSORRT)
    assert [row.op for row in rows if "quantize" in row.op] == ["quantize"]
    assert {row.precision for row in rows} == {"fp16", "int8"}
    (cast,) = (row for row in rows if row.op == "quantize")
    assert (cast.precision_in, cast.precision, cast.in_shape) == ("fp16", "int8", (1, 16, 8, 8))


def conv(in_channels: int, kernel: tuple[int, int] = (3, 3), groups: int = 1) -> LayerConfig:
    shape = (1, in_channels, 8, 8)
    return LayerConfig(op="conv", in_shape=shape, out_channels=64, kernel=kernel, groups=groups)


@pytest.mark.parametrize(
    ("config", "out_channels", "pays"),
    [
        (conv(16), 16, True),
        (conv(64), 8, True),  # one side is wide, both are multiples of 8, the kernel is square
        (conv(64, kernel=(1, 3)), 8, False),
        (conv(64), 12, False),
        (conv(8), 8, False),
        (conv(64, groups=64), 64, True),
        (conv(64, groups=64, kernel=(1, 1)), 64, False),
        (conv(64, groups=64), 60, False),
        (conv(128, groups=32), 128, False),  # 4 channels in each group
        (conv(128, groups=8), 128, True),
        (LayerConfig(op="linear", in_shape=(1, 512), out_channels=64), 64, False),
        (LayerConfig(op="linear", in_shape=(49, 512), out_channels=64), 64, True),
        (LayerConfig(op="linear", in_shape=(49, 8), out_channels=64), 64, False),
        (LayerConfig(op="linear", in_shape=(49, 512), out_channels=10), 10, False),
    ],
)
def test_int8_is_for_layers_that_tensorrt_has_kernels_for(
    config: LayerConfig, out_channels: int, pays: bool
) -> None:
    found = space.tensorrt_int8_pays(config, out_channels=out_channels, first=False)
    assert found == pays


def test_masks_of_tensorrt_forbid_int8_where_one_layer_of_a_group_is_thin() -> None:
    network = chain((16, 32, 48))
    int8 = ACTIONS.index(Action(precision="int8"))
    found = [mask[int8] for mask in space.masks(network, TENSORRT)]
    assert found == [True, True, True, False]  # the first layer may be thin, a classifier not
    assert all(mask[int8] for mask in space.masks(network, SpaceRules()))
    narrow = space.masks(network, TENSORRT)[0]
    half = ACTIONS.index(Action(kind="prune", amount=0.5, precision="int8"))
    assert not narrow[half]  # 8 channels from 3
    thin = replace(network.layers[1], config=conv(12), out_group=2)
    both = replace(network, layers=(*network.layers, thin))
    assert not space.masks(both, TENSORRT)[2][int8]


@pytest.mark.parametrize("rules", [SpaceRules(), TENSORRT])
def test_every_row_of_any_candidate_is_reachable(rules: SpaceRules) -> None:
    network = chain((16, 32))
    reachable = set(space.reachable_configs(network, rules))
    menus = [[i for i, ok in enumerate(mask) if ok] for mask in space.masks(network, rules)]
    for choices in itertools.product(*menus):
        assert set(space.network_configs(network, space.candidate(choices), rules)) <= reachable


def test_a_uniform_recipe_falls_back_where_it_is_illegal() -> None:
    masks = space.masks(chain(), SpaceRules())
    half_int8 = 6
    choices = space.uniform(masks, half_int8)
    assert choices[1] == half_int8
    assert ACTIONS[choices[-1]] == Action(precision="int8")  # its width is fixed
    assert space.uniform(masks, 2)[-1] == 0
    no_int8 = space.masks(chain(), SpaceRules(precisions=("base",)))
    assert space.uniform(no_int8, half_int8) == (0, 0, 0, 0)


def test_choices_and_candidates_are_inverse() -> None:
    choices = (0, 3, 5, 7)
    assert space.choices_of(space.candidate(choices)) == choices


def test_what_a_profile_asks_for_is_known_by_the_same_digest_as_ever() -> None:
    found = SpaceRules(kept_float=("Softmax",), refused_kinds=("quantize",))
    assert digest(found.asked()) == digest(SpaceRules().asked()) == ASKED
