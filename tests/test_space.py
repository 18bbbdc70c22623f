"""The action space: masks, widths and the rows that a candidate costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwloop.compress import space
from hwloop.compress.methods import method_of
from hwloop.compress.reachable import reachable_configs
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.parsing import digest
from hwloop.records import KEEP, Action, Candidate, Group, Layer, LayerConfig, Network
from hwloop.runtimes.known import writing

ORT = SpaceRules(recipe="ort-x86")
MENU = space.menu(ORT)
HALF = Action(kind="prune", amount=0.5)
INT8 = Action(precision="int8")
HALF_INT8 = Action(kind="prune", amount=0.5, precision="int8")


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
    rules = replace(ORT, align=align)
    mask = space.legal_actions(group, rules)
    effects = [
        (method_of(action).channels(action, group, rules), action.precision)
        for action, ok in zip(MENU, mask, strict=True)
        if ok
    ]
    assert mask[0]
    assert len(set(effects)) == len(effects)
    for kept, _ in effects:
        assert kept == channels or (prunable and kept % align == 0 and kept < channels)


def test_widths_are_rounded_up_to_what_the_target_likes() -> None:
    group = Group(name="g", layers=("g",), channels=44, prunable=True, block="")

    def widths(align: int) -> list[int]:
        actions = [action for action in MENU if action.precision == "base"]
        rules = replace(ORT, align=align)
        return [method_of(action).channels(action, group, rules) for action in actions]

    assert widths(8) == [44, 40, 24, 16, 8]
    assert widths(16) == [44, 44, 32, 16, 16]
    assert widths(64) == [44] * 5


def test_precisions_and_kinds_that_a_target_lacks_are_masked() -> None:
    group = chain().groups[1]
    no_int8 = space.legal_actions(group, replace(ORT, precisions=("base",)))
    assert not any(ok for ok, a in zip(no_int8, MENU, strict=True) if a.precision == "int8")
    assert not any(a.kind == "prune" for a in space.menu(replace(ORT, kinds=("keep",))))


@given(st.lists(st.integers(0, len(MENU) - 1), min_size=4, max_size=4))
def test_channels_that_leave_a_layer_arrive_at_the_next(indices: list[int]) -> None:
    network, rules = chain(), ORT
    legal = space.masks(network, rules)
    choices = tuple(i if mask[i] else 0 for i, mask in zip(indices, legal, strict=True))
    rows = network_configs(network, space.candidate(choices, rules), rules)
    layers = [row for row in rows if row.op in ("conv", "linear")]
    for before, after in itertools.pairwise(layers):
        spatial = 64 if after.op == "linear" else 1
        assert after.in_shape[1] == before.out_channels * spatial


def test_each_change_of_precision_costs_one_row() -> None:
    network, rules = chain(), ORT
    rows = network_configs(network, Candidate(actions=(KEEP, INT8, KEEP, KEEP)), rules)
    assert [row.op for row in rows if row.op in ("quantize", "dequantize")] == [
        "quantize",
        "dequantize",
    ]
    all_int8 = network_configs(network, Candidate(actions=(INT8,) * 4), rules)
    assert [row.op for row in all_int8 if "quantize" in row.op] == ["quantize"]


TENSORRT = SpaceRules(base_precision="fp16", recipe="tensorrt")
ASKED = "91e0c16d76b084190e432bae183bc727cb0d528490d3e89ab12381efbcc3d532"
"""Of the defaults, in the identity of every run so far."""


def test_tensorrt_pays_for_quantizing_alone() -> None:
    network = chain()
    rows = network_configs(network, Candidate(actions=(KEEP, INT8, KEEP, KEEP)), TENSORRT)
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
    found = writing("tensorrt").int8_pays(config, out_channels=out_channels, first=False)
    assert found == pays


def test_masks_of_tensorrt_forbid_int8_where_one_layer_of_a_group_is_thin() -> None:
    network = chain((16, 32, 48))
    int8 = MENU.index(INT8)
    found = [mask[int8] for mask in space.masks(network, TENSORRT)]
    assert found == [True, True, True, False]  # the first layer may be thin, a classifier not
    assert all(mask[int8] for mask in space.masks(network, ORT))
    narrow = space.masks(network, TENSORRT)[0]
    assert not narrow[MENU.index(HALF_INT8)]  # 8 channels from 3
    thin = replace(network.layers[1], config=conv(12), out_group=2)
    both = replace(network, layers=(*network.layers, thin))
    assert not space.masks(both, TENSORRT)[2][int8]


@pytest.mark.parametrize("rules", [ORT, TENSORRT])
def test_every_row_of_any_candidate_is_reachable(rules: SpaceRules) -> None:
    network = chain((16, 32))
    reachable = set(reachable_configs(network, rules))
    menus = [[i for i, ok in enumerate(mask) if ok] for mask in space.masks(network, rules)]
    for choices in itertools.product(*menus):
        assert set(network_configs(network, space.candidate(choices, rules), rules)) <= reachable


def test_a_uniform_recipe_falls_back_where_it_is_illegal() -> None:
    found = space.uniform(chain(), HALF_INT8, ORT)
    assert found.actions[1] == HALF_INT8
    assert found.actions[-1] == INT8  # its width is fixed
    quarter = space.uniform(chain(), Action(kind="prune", amount=0.25, precision="int8"), ORT)
    assert quarter.actions[0] == HALF_INT8  # a quarter of 16 channels is 8 as well
    assert quarter.actions[1].amount == 0.25
    assert space.uniform(chain(), HALF, ORT).actions[-1] == KEEP
    no_int8 = space.uniform(chain(), HALF_INT8, replace(ORT, precisions=("base",)))
    assert no_int8 == space.dense_candidate(chain())
    unknown = space.uniform(chain(), Action(kind="lowrank", amount=0.5), ORT)
    assert unknown == space.dense_candidate(chain())


def test_choices_and_candidates_are_inverse() -> None:
    choices = (0, 3, 5, 7)
    assert space.choices_of(space.candidate(choices, ORT), ORT) == choices


def test_a_menu_begins_with_leaving_a_group_alone_and_has_each_action_once() -> None:
    assert MENU[0] == KEEP
    assert len(set(MENU)) == len(MENU)
    features = space.menu_features(ORT)
    assert len(set(features)) == len(MENU)
    assert all(-1 <= value <= 1 for row in features for value in row)


def test_a_candidate_of_another_menu_or_network_is_refused() -> None:
    whole = space.dense_candidate(chain())
    space.check_candidate(whole, 4, MENU)
    with pytest.raises(ValueError, match="another network"):
        space.check_candidate(whole, 3, MENU)
    other = Candidate(actions=(Action(kind="drop"), *whole.actions[1:]))
    with pytest.raises(ValueError, match="another network"):
        space.check_candidate(other, 4, MENU)


def test_what_a_profile_asks_for_is_known_by_the_same_digest_as_ever() -> None:
    found = SpaceRules(kept_float=("Softmax",), refused_kinds=("quantize",))
    assert digest(found.asked()) == digest(SpaceRules().asked()) == digest(ORT.asked()) == ASKED
